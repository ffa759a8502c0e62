"""What a node shows on itself: pictures and sentences."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import ui
from PIL import Image

from ..training.chart import draw_loss_chart
from ..training.errors import PistachioError
from ..training.report import records_from_rows
from ..training.run import Run, RunFolder
from ..training.selection import not_measured, select


def image_tensor(image: Image.Image) -> torch.Tensor:
    """IMAGE, [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]


def shown(*, image: Image.Image | None = None, sentences: tuple[str, ...] = ()) -> dict:
    """The `ui` of a node's output."""
    pictures = ui.PreviewImage(image_tensor(image)).as_dict() if image is not None else {}
    texts = ui.PreviewText("\n".join(sentences)).as_dict() if sentences else {}
    return pictures | texts


def loss_chart(run: Run) -> Image.Image:
    """The chart of a run, finished or not."""
    rows = RunFolder(run.folder).metrics()
    records = records_from_rows(rows)
    if not rows:
        raise PistachioError(f"Run '{run.name}' has no numbers yet. Let Train LoRA take some steps first.")
    return draw_loss_chart(rows, select(records) if len(records) > 1 else not_measured(rows[-1]["step"]))


def run_sentences(run: Run) -> tuple[str, ...]:
    """The verdict of a finished run, and what may be done next."""
    folder = RunFolder(run.folder)
    report = folder.report()
    if report is None:
        steps = folder.checkpoint_steps()
        saved = f"Checkpoints so far: {', '.join(map(str, steps))}." if steps else "No checkpoint so far."
        return (f"Run '{run.name}' is {folder.status()}.", saved)
    return (*report["words"], *report.get("offers", ()))
