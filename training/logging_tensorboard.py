"""A run's numbers and samples as TensorBoard event files in the run folder, if the user wants them.

The keys are wandb's. A disk that fails never ends a training run: it is said once, and the numbers are in metrics.jsonl anyway.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

from .config import LoggingConfig
from .errors import PistachioError
from .logging_wandb import STEP, sample_keys, selection_values, wandb_values

log = logging.getLogger("pistachio")

FOLDER = "tensorboard"


class TensorBoardLogger:
    """Does nothing when it is off. Raises PistachioError when the package is not installed."""

    def __init__(self, config: LoggingConfig, run_folder: Path):
        self.folder = run_folder
        self._writer_class = _import_writer() if config.tensorboard else None
        self._writer = None
        self._failed = False

    def log(self, row: dict) -> None:
        """One row of metrics.jsonl, on the axis of training steps."""
        if self._writer_class is not None:
            self._guard(lambda: self._log(row))

    def finish(self, report: dict | None = None) -> None:
        """Close the files; `report` (report.json) adds the choice. Safe to call twice."""
        writer, self._writer, self._writer_class = self._writer, None, None
        if writer is None:
            return
        if report is not None:
            words = "\n\n".join(f"**{key}**: {value}" for key, value in selection_values(report).items())
            self._guard(lambda: writer.add_text("select", words, report["last_step"]))
        self._guard(writer.close)

    def _log(self, row: dict) -> None:
        step = row["step"]
        if self._writer is None:
            # What a killed run wrote after its last save is hidden, as the rows of metrics.jsonl are dropped.
            self._writer = self._writer_class(log_dir=str(self.folder / FOLDER), purge_step=step + 1 if row["kind"] == "note" else step)
        for key, value in wandb_values(row).items():
            if key != STEP:
                self._writer.add_scalar(key, value, step)
        for key, picture in sample_keys(row).items():
            self._writer.add_image(key, _pixels(self.folder / picture["file"]), step, dataformats="HWC")

    def _guard(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except OSError as error:
            self._failed = True
            log.warning("TensorBoard's files can't be written (%s). Training goes on; the numbers are in metrics.jsonl.", error)


def _pixels(path: Path):
    import numpy
    from PIL import Image

    return numpy.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))


def _import_writer():
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PistachioError(
            "Logging to TensorBoard is switched on, but the package 'tensorboard' is not installed. "
            "Install it with 'pip install tensorboard' in ComfyUI's Python, or switch it off in Logging Settings."
        ) from error
    return SummaryWriter
