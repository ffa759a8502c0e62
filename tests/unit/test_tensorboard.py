"""Real event files, read back by TensorBoard's own reader."""

import errno
import logging
import sys

import pytest
from pistachio.training.config import LoggingConfig
from pistachio.training.errors import PistachioError
from pistachio.training.logging_tensorboard import TensorBoardLogger

pytest.importorskip("tensorboard", reason="tensorboard is optional; dev.py test installs it")
REPORT = {"tied_range": [1, 2], "best_step": 1, "chosen_step": 2, "state": "plateau", "last_step": 6}


def row(step: int, loss: float) -> dict:
    return {"kind": "train", "step": step, "loss": loss, "loss_ema": loss, "lr": 1e-4}


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_rows_and_the_choice_are_written(tmp_path):
    logger = TensorBoardLogger(LoggingConfig(tensorboard=True), tmp_path)
    logger.log({"kind": "note", "step": 0, "text": "not for TensorBoard"})
    for step in range(1, 4):
        logger.log(row(step, 1 / step))
    logger.finish(REPORT)
    logger.finish(REPORT)
    board = read(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    (words,) = board.Tensors("select/text_summary")
    assert words.step == 6 and b"chosen_step" in words.tensor_proto.string_val[0]


def test_what_a_killed_life_wrote_after_its_last_save_is_hidden(tmp_path):
    killed = TensorBoardLogger(LoggingConfig(tensorboard=True), tmp_path)
    for step in range(1, 6):
        killed.log(row(step, 9.0))
    killed._writer.flush()  # and no close: the process is gone
    resumed = TensorBoardLogger(LoggingConfig(tensorboard=True), tmp_path)
    resumed.log({"kind": "note", "step": 3, "text": "Resumed from step 3 of 6."})
    for step in range(4, 7):
        resumed.log(row(step, 1.0))
    resumed.finish()
    assert [(event.step, event.value) for event in read(tmp_path).Scalars("train/loss")] == [(1, 9.0), (2, 9.0), (3, 9.0), (4, 1.0), (5, 1.0), (6, 1.0)]


def test_off_touches_nothing(tmp_path):
    logger = TensorBoardLogger(LoggingConfig(), tmp_path)
    logger.log(row(1, 1.0))
    logger.finish(REPORT)
    assert list(tmp_path.iterdir()) == []


def test_not_installed_is_named(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what `import` sees when the package is absent
    with pytest.raises(PistachioError, match="pip install tensorboard"):
        TensorBoardLogger(LoggingConfig(tensorboard=True), tmp_path)


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path, monkeypatch, caplog):
    logger = TensorBoardLogger(LoggingConfig(tensorboard=True), tmp_path)
    logger.log(row(1, 1.0))

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logger._writer, "add_scalar", full)
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        logger.log(row(2, 1.0))
        logger.log(row(3, 1.0))
    assert caplog.text.count("can't be written") == 1
