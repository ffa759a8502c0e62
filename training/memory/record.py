"""A run's plan on the disk, and the real peak beside it.

plan.json holds the plan that a resumed run goes on with, the settings that it was made for, and what was measured. A peak
that nothing measures stays null: a CPU has no counter that runs along.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..config import to_dict
from ..config.memory import MemoryConfig
from ..run import RunFolder
from .plan import MemoryPlan, size_words
from .search import Choice
from .table import alternatives_sentence, rows, sentence

PLAN_FILE = "plan.json"
STEPS_LOOKED_AT = 20  # the last of a run: their median is its time of a step
TOLERANCE = 0.1  # between predicted and real peak, before the report says more than the two numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Situation:
    """What two plans must share for the time of one to say something of the other."""

    base_model: str
    device: str
    precision: str
    latent_shape: tuple[int, ...]
    adapter: str
    optimizer: str

    def to_dict(self) -> dict:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in ((n, getattr(self, n)) for n in self.__slots__)}


class MemoryRecord:
    """One sitting's plan. `torch`'s counters of the device are read where it has any."""

    def __init__(self, choice: Choice, settings: MemoryConfig, situation: Situation, *, device: torch.device, notes: Sequence[str] = (), history: Sequence[dict] = ()):
        self.choice, self.settings, self.situation, self.device = choice, settings, situation, device
        self.notes = list(notes)  # what became of an earlier plan
        self.history = list(history)  # plans that this run has left, with the reason

    @property
    def plan(self) -> MemoryPlan:
        return self.choice.plan

    @property
    def trainer_settings(self) -> dict:
        """Of the `Trainer`, beside what blocks keep."""
        plan = self.plan
        return {"micro_batch": plan.batch_size, "optimizer_place": plan.optimizer_state, "average_place": plan.weight_average}

    @property
    def words(self) -> list[str]:
        """Sentences for the run's notes."""
        return [*self.notes, sentence(self.choice), *filter(None, [alternatives_sentence(self.choice)])]

    def replaced_by(self, plan: MemoryPlan, reason: str) -> "MemoryRecord":
        """The record of a leaner plan, and why."""
        history = [*self.history, {"plan": self.plan.to_dict(), "reason": reason}]
        choice = replace(self.choice, plan=plan, alternatives=(), pinned=False)
        return MemoryRecord(choice, self.settings, self.situation, device=self.device, notes=[*self.notes, reason], history=history)

    # ---- the real peak -------------------------------------------------

    def begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def measured_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def report(self, metrics: Sequence[dict]) -> dict:
        """For report.json."""
        measured, predicted = self.measured_bytes(), self.plan.peak_bytes
        return {
            "plan": self.plan.to_dict(), "plans": rows(self.choice), "limit_bytes": self.choice.limit_bytes, "device": self.situation.device,
            "predicted_bytes": predicted, "measured_bytes": measured, "measured_by": "torch.cuda.max_memory_allocated" if measured is not None else None,
            "measured_over_predicted": round(measured / predicted, 3) if measured and predicted else None,
            "step_seconds": step_seconds(metrics), "left_plans": self.history, "words": self._comparison(measured, predicted),
        }

    def _comparison(self, measured: int | None, predicted: int | None) -> str:
        if predicted is None:
            return "The peak was not predicted."
        if measured is None:
            return f"Predicted peak {size_words(predicted)}; this device has no counter of the real one."
        off = measured / predicted - 1
        more = " That is more than planning allows for: please report the model and the settings." if abs(off) > TOLERANCE else ""
        return f"Predicted peak {size_words(predicted)}, real peak {size_words(measured)} ({off:+.1%}).{more}"

    # ---- on the disk ---------------------------------------------------

    def save(self, folder: RunFolder, metrics: Sequence[dict] = ()) -> None:
        folder.write_json(PLAN_FILE, {
            "settings": to_dict(self.settings), "situation": self.situation.to_dict(), "limit_bytes": self.choice.limit_bytes, "plan": self.plan.to_dict(),
            "plans": rows(self.choice), "measured_bytes": self.measured_bytes() if metrics else None, "step_seconds": step_seconds(metrics),
            "left_plans": self.history,
        })


def step_seconds(metrics: Sequence[dict]) -> float | None:
    """The median of the last steps; None of a run too short to say."""
    times = [row["seconds"] for row in metrics if row.get("kind") == "train"][-STEPS_LOOKED_AT:]
    return statistics.median(times) if len(times) >= STEPS_LOOKED_AT else None


def seconds_measured_before(runs_folder: Path, situation: Situation, plan: MemoryPlan) -> float | None:
    """The time of a step in an earlier run on this machine with the same plan and the same work."""
    found = []
    for path in runs_folder.glob(f"*/{PLAN_FILE}"):
        kept = RunFolder(path.parent).plan()
        if kept and kept.get("step_seconds") and kept["situation"] == situation.to_dict() and MemoryPlan.from_dict(kept["plan"]).same_choice(plan):
            found.append(kept["step_seconds"])
    return statistics.median(found) if found else None
