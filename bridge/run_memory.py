"""A run's memory from its first plan to its last: made before anything is loaded, kept in its folder, left for a leaner one.

`planning` counts and chooses. This module knows when: what a resumed run goes on with, and what an out-of-memory leads to.
"""

from __future__ import annotations

import gc
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Sequence

import comfy.model_management
import torch

from ..dataset.types import EncodedDataset
from ..training.config import TrainConfig, to_dict
from ..training.config.memory import MemoryConfig
from ..training.errors import DeviceMemoryError, PistachioError
from ..training.memory.plan import AS_LOADED, MemoryPlan, words_of
from ..training.memory.record import MemoryRecord, Situation, seconds_measured_before
from ..training.memory.search import Choice
from ..training.memory.table import table
from ..training.messages import message
from ..training.run import RunFolder
from ..training.streaming.context import streamed
from .items import Regularization, load_items
from .noise import HostNoise
from .planning import UNTRACEABLE, Planner, SampleSize, device_name
from .quantize import quantize_base

log = logging.getLogger("pistachio")


class RunMemory:
    """What a run keeps and streams. `record` is None where nothing was planned."""

    def __init__(self, patcher, *, notes: Sequence[str] = (), record: MemoryRecord | None = None, planner: Planner | None = None):
        self.patcher, self.record, self.planner = patcher, record, planner
        self.notes = tuple(notes)  # for the report of a run without a record

    @property
    def keep(self) -> str | None:
        return self.record.plan.keep if self.record else None

    @property
    def batch_size(self) -> int | None:
        return self.record.plan.batch_size if self.record else None

    @property
    def keep_in_ram(self) -> bool:
        return self.record is not None and self.record.plan.keep_in_ram

    def streaming(self, model) -> AbstractContextManager:
        """Inside `model.training()`, around everything that reads weights."""
        count = self.record.plan.blocks_streamed if self.record else 0
        return streamed(model, count) if count else nullcontext()

    def fall_back(self, words: str, folder: RunFolder) -> bool:
        """After an out-of-memory before the first step was through: on to the next leaner plan, out loud. False at the end of the ladder."""
        gc.collect()
        comfy.model_management.soft_empty_cache()
        leaner = self._leaner()
        if leaner is None:
            return False
        before = self.record.plan
        reason = message(
            "plan.left", "Out of memory with the plan '{before}' ({reason}): the run goes on with '{plan}'.",
            before=words_of(before), reason=words, plan=words_of(leaner),
        )
        log.warning("%s", reason)
        self.record = self.record.replaced_by(leaner, reason)
        self.record.save(folder)
        return True

    def _leaner(self) -> MemoryPlan | None:
        if self.record is None or self.planner is None:
            return None
        plan = self.planner.leaner(self.record.plan)
        # Another format of the base would be another model than the one that was measured at step 0.
        return plan if plan is not None and plan.base_format == self.record.plan.base_format else None


def plan_run(
    patcher, encoded: EncodedDataset, config: TrainConfig, memory: MemoryConfig | None, folder: RunFolder, *, model_hash: str,
    runs_folder: Path, regularization: Regularization | None = None, sampler=None, trains_text: bool = False,
) -> RunMemory:
    """Before the model is loaded. PistachioError when nothing fits, with the nearest that would."""
    device = patcher.load_device
    if device.type == "cpu" and memory is None:
        return RunMemory(patcher)
    settings = memory or MemoryConfig()
    if trains_text:
        return _unplanned(patcher, "a text encoder in training is not counted")
    try:
        train_set, held_out = load_items(encoded, HostNoise(patcher, device=torch.device("cpu")), regularization=regularization)
        items = [*train_set.items, *train_set.regularization]
        planner = Planner(
            patcher, items, config, settings, device=device, has_held_out=bool(held_out), samples=SampleSize(sampler, patcher) if sampler else None,
        )
        situation = Situation(
            base_model=model_hash, device=device_name(device), precision=config.precision, latent_shape=tuple(planner.largest.shape),
            adapter=f"{config.adapter.kind} {config.adapter.rank}", optimizer=config.optimizer.name,
        )
        choice, notes, history = _choice(planner, folder, settings, situation)
    except PistachioError:
        raise  # a sentence for the user: nothing fits, or a file is gone
    except UNTRACEABLE as error:
        return _unplanned(patcher, f"{type(error).__name__}: {error}")
    choice = _timed(choice, runs_folder, situation)
    record = MemoryRecord(choice, settings, situation, device=device, notes=notes, history=history)
    log.info("%s", table(choice))
    if choice.plan.base_format != AS_LOADED:
        patcher, report = quantize_base(patcher, choice.plan.base_format)
        record.notes.append(f"The base is kept in {choice.plan.base_format}, which the plan asked for: {report.text().splitlines()[0]}")
    record.save(folder)
    return RunMemory(patcher, record=record, planner=planner)


def _unplanned(patcher, why: str) -> RunMemory:
    note = message(
        "plan.unplanned", "The memory of this run could not be predicted ({reason}), so nothing was planned: block checkpointing is as Train LoRA says.",
        reason=why,
    )
    log.warning("%s", note)
    return RunMemory(patcher, notes=[note])


def _choice(planner: Planner, folder: RunFolder, settings: MemoryConfig, situation: Situation) -> tuple[Choice, list[str], list[dict]]:
    """(choice, what became of the plan of before, the plans that were left)."""
    kept = folder.plan() if folder.has_state() else None
    if kept is None:
        return planner.choose(), [], []
    before, history = MemoryPlan.from_dict(kept["plan"]), kept.get("left_plans", [])
    if kept["settings"] == to_dict(settings) and kept["situation"]["device"] == situation.device:
        return Choice(plan=before, limit_bytes=kept["limit_bytes"], alternatives=(), pinned=True), [], history
    why = "the memory settings changed" if kept["settings"] != to_dict(settings) else f"the device is now {situation.device}"
    choice = planner.choose()
    note = f"The plan of before ({words_of(before)}) is left, since {why}: numbers from here on may differ from it by rounding."
    return choice, [note], [*history, {"plan": kept["plan"], "reason": why}]


def _timed(choice: Choice, runs_folder: Path, situation: Situation) -> Choice:
    timed = lambda plan: replace(plan, step_seconds=seconds_measured_before(runs_folder, situation, plan))
    return replace(choice, plan=timed(choice.plan), alternatives=tuple(map(timed, choice.alternatives)))


def is_out_of_memory_at_first_step(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, DeviceMemoryError) and error.is_first_step)
