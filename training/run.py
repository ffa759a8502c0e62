"""A run is a folder; this module is its layout.

    config.json      resolved settings and the run's identity
    dataset.json     content hashes, captions, split
    plan.json        the plan of memory, where one was made
    metrics.jsonl    one row a step and an evaluation, appended and flushed
    checkpoints/step-000250/{adapter_model.safetensors, adapter_config.json, evaluation.json}
    samples/step-000250/00-with-trigger.png
    state/state.pt   adapter, average and optimiser at the last save
    report.json, loss.png

Every file but metrics.jsonl is written whole or not at all. Nothing here knows what the numbers mean.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file
from torch import Tensor

from ..dataset.files import atomic_write_text, free_bytes, free_words, write_error
from .errors import PistachioError, RunConflictError

CHECKPOINT_NAME = re.compile(r"step-(\d{6,})$")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")
WEIGHTS_FILE = "adapter_model.safetensors"
TRAINED_KINDS = ("train", "note")  # rows of metrics.jsonl that an evaluation does not write


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the PISTACHIO_RUN socket carries."""

    name: str
    folder: Path


def check_run_name(name: str) -> str:
    name = name.strip()
    if not RUN_NAME.match(name) or name.endswith("."):
        raise PistachioError(
            f"'{name}' can't be a run name. Use letters, digits, spaces, '.', '-' and '_', starting with a letter or digit, on Train LoRA."
        )
    return name


def list_runs(root: Path) -> list[Run]:
    """Newest first."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if (path / "config.json").is_file()]
    folders.sort(key=lambda path: (path / "config.json").stat().st_mtime, reverse=True)
    return [Run(name=path.name, folder=path) for path in folders]


def is_finished(config: dict | None, report: dict | None) -> bool:
    if not config or not report or not report.get("finished"):
        return False
    # A run that was stopped before its planned end is continued to the same number of steps: its report is no longer the last word.
    goes_on = config.get("continued_from", 0) and report.get("last_step", 0) <= config["continued_from"]
    return not goes_on and report.get("settings", {}).get("num_steps") == config["settings"]["num_steps"]


class RunFolder:
    def __init__(self, path: Path):
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    # ---- reading ---------------------------------------------------------

    def config(self) -> dict | None:
        return self._read_json("config.json")

    def dataset(self) -> dict | None:
        return self._read_json("dataset.json")

    def attention(self) -> dict | None:
        """Which implementation of attention the run has settled on."""
        return self._read_json("attention.json")

    def plan(self) -> dict | None:
        """The plan of memory, with the settings it was made for."""
        return self._read_json("plan.json")

    def report(self) -> dict | None:
        return self._read_json("report.json")

    def is_finished(self) -> bool:
        """Trained to the end of what config.json asks for: the report of a run that is being continued speaks of fewer steps."""
        return is_finished(self.config(), self.report())

    def ended_at(self) -> int | None:
        """The last step of a finished run, which may have been stopped before its planned end; None for others."""
        report = self.report()
        return report["last_step"] if report and self.is_finished() else None

    def status(self) -> str:
        """'finished', 'running', 'interrupted' or 'new'."""
        if self.config() is None:
            return "new"
        if self.is_finished():
            return "finished"
        lock = self._file_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return "running"
        lock.release()
        return "interrupted"

    def metrics(self) -> list[dict]:
        """Rows in the order written. A last line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            return []
        rows = []
        # As bytes: the cut may lie within a letter, and a caption may hold what Unicode calls a line end.
        for line in path.read_bytes().split(b"\n"):
            if not line:
                continue
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except (json.JSONDecodeError, UnicodeDecodeError):
                break
        return rows

    def checkpoint_steps(self) -> list[int]:
        folder = self.path / "checkpoints"
        names = [CHECKPOINT_NAME.match(path.name) for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(match[1]) for match in names if match and self.checkpoint_file(int(match[1])).is_file())

    def checkpoint_file(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:06d}" / WEIGHTS_FILE

    def chosen_step(self) -> int | None:
        report = self.report()
        return report["chosen_step"] if report else None

    def _read_json(self, name: str) -> dict | None:
        path = self.path / name
        if not path.is_file():
            return None
        return json.loads(path.read_text(encoding="utf-8"))

    # ---- writing ---------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time, across processes; a killed one leaves no lock behind."""
        self._make(self.path)
        lock = self._file_lock()
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunConflictError(
                f"Run '{self.name}' is being trained by another process. Wait for it, or choose another run name on Train LoRA."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _file_lock(self) -> FileLock:
        return FileLock(str(self.path / ".lock"))

    def write_json(self, name: str, value: dict) -> None:
        atomic_write_text(self.path / name, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))

    def append_metric(self, row: dict) -> None:
        path = self.path / "metrics.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise write_error(path, error) from error

    def rewind_metrics(self, step: int, *, keep_evaluation: bool = True) -> list[dict]:
        """Drop the rows after `step`, and what was measured at it if asked: they are about to be computed again."""
        rows = [r for r in self.metrics() if r["step"] < step or (r["step"] == step and (keep_evaluation or r["kind"] in TRAINED_KINDS))]
        atomic_write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return rows

    def save_checkpoint(
        self, step: int, tensors: dict[str, Tensor], metadata: dict[str, str], adapter_config: dict, evaluation: dict
    ) -> None:
        with self._whole_folder(self.checkpoint_file(step).parent) as folder:
            save_file(tensors, str(folder / WEIGHTS_FILE), metadata=metadata)
            for name, value in (("adapter_config.json", adapter_config), ("evaluation.json", evaluation)):
                (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")

    def save_samples(self, step: int, pictures: dict[str, bytes]) -> list[str]:
        """File name -> PNG. Gives the files' paths from the run folder, with forward slashes."""
        target = self.path / "samples" / f"step-{step:06d}"
        with self._whole_folder(target) as folder:
            for name, data in pictures.items():
                (folder / name).write_bytes(data)
        return [f"samples/{target.name}/{name}" for name in pictures]

    @contextmanager
    def _whole_folder(self, target: Path) -> Iterator[Path]:
        """A folder that appears complete or not at all; one from a stretch that is being repeated is replaced."""
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            for path in temporary.iterdir():
                _flush_to_disk(path)
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        except OSError as error:
            raise write_error(target, error) from error

    def remove_leftovers(self) -> None:
        """What a killed writer left half done."""
        for folder in (self.path / "checkpoints", self.path / "samples"):
            for path in folder.glob(".step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)
        for pattern in (".*.pistachio-tmp", "state/.*.tmp"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def save_state(self, state: dict) -> None:
        path = self.path / "state" / "state.pt"
        temporary = path.with_name(".state.pt.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            torch.save(state, temporary)
            _flush_to_disk(temporary)
            # A state must never outlive the rows before it, not even where the power fails.
            if (self.path / "metrics.jsonl").is_file():
                _flush_to_disk(self.path / "metrics.jsonl")
            os.replace(temporary, path)
        except OSError as error:
            raise write_error(path, error) from error
        except RuntimeError as error:  # torch reports a full disk this way
            raise PistachioError(f"'{path}' could not be written ({free_words(path.parent)}): {error}") from error

    def has_state(self) -> bool:
        return (self.path / "state" / "state.pt").is_file()

    def load_state(self) -> dict | None:
        path = self.path / "state" / "state.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def check_space(self, needed_bytes: int) -> None:
        """PistachioError when the disk can't hold the run's files."""
        if free_bytes(self.path) < needed_bytes:
            raise PistachioError(
                f"The run needs {needed_bytes / 1e9:.1f} GB for its checkpoints, and the disk of '{self.path}' has {free_words(self.path)}. "
                "Free some space, lower the rank in Adapter Settings, or ask for fewer evaluations in Evaluation Settings."
            )

    def _make(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / ".write-test"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise write_error(path / "config.json", error) from error


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
