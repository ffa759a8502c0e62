"""Pictures of the model in training: which evaluations make them, and what the engine asks of whoever makes them.

The engine knows no sampler: `bridge.sampling` makes the pictures with the host's own. A failure to make
them is a sentence in the report, never the end of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Sequence

from .config.samples import SampleConfig

# What sampling or writing its pictures may raise. The host's cancel is none of them.
SAMPLING_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, OSError)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePicture:
    file_name: str  # "00-with-trigger.png"
    png: bytes  # with its prompt and settings as text
    prompt: str
    with_trigger: bool
    seed: int


class Sampler(Protocol):
    config: SampleConfig

    def sample(self, step: int) -> list[SamplePicture]:
        """With the weights that the network has now. Must leave no trace in the model or in any random stream."""


def sample_steps(evaluation_steps: Sequence[int], every_evaluations: int) -> frozenset[int]:
    """Of a run's evaluations: step 0, every k-th, and the last."""
    return frozenset({*evaluation_steps[::every_evaluations], evaluation_steps[-1]})


def sample_row(step: int, pictures: Sequence[SamplePicture], files: Sequence[str], seconds: float) -> dict:
    """The metrics row of one evaluation's samples; paths are from the run folder."""
    described = [
        {"file": file, "prompt": picture.prompt, "with_trigger": picture.with_trigger, "seed": picture.seed}
        for picture, file in zip(pictures, files, strict=True)
    ]
    return {"kind": "sample", "step": step, "pictures": described, "seconds": seconds}
