"""What a node shows on itself, pictures and sentences, and which checkpoint of a run it speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image

from ..training.chart import draw_loss_chart
from ..training.errors import PistachioError
from ..training.folds import evidence_rows
from ..training.messages import as_json, known, message
from ..training.report import records_from_rows
from ..training.run import Run, RunFolder
from ..training.selection import Selection, not_measured, override_words, select


def image_tensor(image: Image.Image) -> torch.Tensor:
    """IMAGE, [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


def shown(*, image: Image.Image | None = None, sentences: tuple[str, ...] = ()) -> dict:
    """The `ui` of a node's output: the text, and its sentences one by one for a page that says them in another language."""
    pictures = ui.PreviewImage(image_tensor(image)).as_dict() if image is not None else {}
    texts = ui.PreviewText("\n".join(sentences)).as_dict() | {"pistachio_sentences": spoken(sentences)} if sentences else {}
    return pictures | texts


def spoken(sentences: Sequence[str]) -> list[dict]:
    return [{"text": str(sentence), "message": as_json(sentence)} for sentence in sentences]


def selection_of(run: Run) -> Selection:
    """The protocol's choice among the evaluations so far, whether the run is finished or not."""
    folder = RunFolder(run.folder)
    rows = [*folder.metrics(), *evidence_rows(folder)]
    if not rows:
        raise PistachioError(f"Run '{run.name}' has no numbers yet. Let Train LoRA take some steps first.")
    records = records_from_rows(rows)
    selection = select(records) if len(records) > 1 else not_measured(rows[-1]["step"])
    report = folder.report()
    # Of a run on all pictures the first sentence is that nothing measured it.
    return replace(selection, words=_words(report)) if report and report.get("refit") else selection


def _words(report: dict) -> tuple[str, ...]:
    return tuple(map(known, report["words"], report.get("messages") or [None] * len(report["words"])))  # none of an older version


def chosen_step(run: Run) -> int:
    """The step of the checkpoint to use; PistachioError when none can be kept."""
    step = RunFolder(run.folder).chosen_step()
    if step is not None and step > 0:
        return step
    steps = RunFolder(run.folder).checkpoint_steps()
    if not steps:
        raise PistachioError(f"Run '{run.name}' has no checkpoint yet. Let Train LoRA go on until its first evaluation.")
    selection = selection_of(run)
    if selection.chosen_step not in steps:
        raise PistachioError(f"Run '{run.name}' has no checkpoint to recommend: {selection.verdict} Any of these can be taken by its step on Select Checkpoint: {', '.join(map(str, steps))}.")
    return selection.chosen_step


def loss_chart(run: Run) -> Image.Image:
    """The chart of a run, finished or not."""
    folder = RunFolder(run.folder)
    return draw_loss_chart([*folder.metrics(), *evidence_rows(folder)], selection_of(run))


def run_sentences(run: Run) -> tuple[str, ...]:
    """The verdict of a finished run, and what may be done next."""
    folder = RunFolder(run.folder)
    report = folder.report()
    if report is None:
        steps = folder.checkpoint_steps()
        saved = message("run.checkpoints", "Checkpoints so far: {steps}.", steps=", ".join(map(str, steps))) if steps else message(
            "run.no_checkpoint", "No checkpoint so far.",
        )
        return message("run.status", "Run '{run}' is {status}.", run=run.name, status=_status(folder.status())), saved
    override = report.get("override")
    own = (override_words(override["step"], override["chosen_step"]),) if override else ()
    offered = report.get("offers", ())
    return (*_words(report), *own, *map(known, offered, report.get("offer_messages") or [None] * len(offered)))


def _status(status: str) -> str:
    return {
        "finished": message("run.finished", "finished"), "running": message("run.running", "running"),
        "interrupted": message("run.interrupted", "interrupted"), "new": message("run.new", "new"),
    }[status]
