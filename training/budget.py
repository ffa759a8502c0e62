"""How long a step and an evaluation take on this machine, measured once at the start of a run.

Kept in the run's folder: a resumed or extended run plans from the same two numbers. It leaves the trainer as it found it.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from .run import RunFolder
from .trainer import Trainer

TIMING_FILE = "timing.json"
TIMED_STEPS = 3  # after one that warms up


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    seconds_per_step: float
    seconds_per_evaluation: float  # with all timesteps that were asked for


def timing_of(folder: RunFolder, trainer: Trainer, evaluate_once: Callable[[], object]) -> Timing:
    path = folder.path / TIMING_FILE
    if path.is_file():
        return Timing(**json.loads(path.read_text(encoding="utf-8")))
    before = copy.deepcopy(trainer.state())
    try:
        evaluate_once()
        evaluation = _seconds(evaluate_once)
        trainer.advance()
        step = _seconds(lambda: [trainer.advance() for _ in range(TIMED_STEPS)]) / TIMED_STEPS
    finally:
        trainer.load(before)
    timing = Timing(seconds_per_step=step, seconds_per_evaluation=evaluation)
    folder.write_json(TIMING_FILE, asdict(timing))
    return timing


def _seconds(work: Callable[[], object]) -> float:
    # Both end with numbers on the host, so a device has finished.
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
