"""Pictures sampled while a run trains: what of, how often, and how."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

MAX_PROMPTS = 16  # a typed novel would sample for hours


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    """Not part of a run's identity: the numbers of a run are the same with and without samples."""

    prompts: tuple[str, ...] = ()  # empty: the captions of the first two held-out pictures
    negative_prompt: str = ""
    without_trigger: bool = True  # a prompt with the trigger is also sampled without it, from the same noise
    every_evaluations: int = 2  # at step 0, at every k-th evaluation, and at the last
    width: int = 0  # pixels; 0: as the pictures are trained
    height: int = 0
    num_steps: int = 20
    cfg: float = 0.0  # 0: automatic, by the model
    sampler: str = "euler"  # the host's names
    scheduler: str = "simple"
    seed: int = 0

    def __post_init__(self):
        check(len(self.prompts) <= MAX_PROMPTS, f"{len(self.prompts)} sample prompts. Write at most {MAX_PROMPTS} lines in Sample Settings.")
        check(self.every_evaluations >= 1, f"Samples at every {self.every_evaluations}th evaluation. Set it to 1 or more in Sample Settings.")
        check(self.num_steps >= 1, f"{self.num_steps} sampling steps. Set it to 1 or more in Sample Settings.")
        check(self.cfg >= 0, f"Guidance (cfg) is {self.cfg}. Set it to 0 (automatic) or above in Sample Settings.")
        for name, size in (("width", self.width), ("height", self.height)):
            check(size == 0 or 16 <= size <= 8192, f"The samples' {name} is {size}. Set it to 0 (as trained) or to 16 to 8192 in Sample Settings.")
