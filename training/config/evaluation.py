"""How often the held-out pictures are measured, and when a run ends by itself."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_evaluations: int = 16  # spread over the run, besides step 0; each is also a saved checkpoint
    timesteps_per_image: int = 8
    early_stop: bool = True
    patience: int = 5  # evaluations without a new best before the run stops
    min_evaluations: int = 8  # never stop before this many

    def __post_init__(self):
        check(self.num_evaluations >= 1, f"{self.num_evaluations} evaluations. Set it to 1 or more in Evaluation Settings.")
        check(self.timesteps_per_image >= 1, f"{self.timesteps_per_image} timesteps a picture. Set it to 1 or more in Evaluation Settings.")
        check(self.patience >= 1, f"Patience is {self.patience}. Set it to 1 or more in Evaluation Settings.")
