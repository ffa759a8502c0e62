"""A run's rows as websocket events and the progress bar of the node, whose panel draws the rest.

Owns the event names and the throttling of steps. Nothing is replayed to a browser that
reconnects: the history is in `routes`.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Callable

from server import PromptServer

from ..training.run import RunFolder
from .progress import NodeProgress

EVENTS = {
    "train": "pistachio.step",
    "eval": "pistachio.evaluation",
    "probe": "pistachio.probe",
    "phase": "pistachio.phase",
    "note": "pistachio.note",
    "sample": "pistachio.sample",
    "finished": "pistachio.finished",
}
MIN_INTERVAL_SECONDS = 1 / 20  # between two steps; every other event is always sent
BULKY = ("kind", "errors", "t_values", "report")  # kilobytes that no canvas shows; GET /pistachio/runs/{name} has them


class RunEvents:
    """Give it every row of a run, in order."""

    def __init__(
        self,
        *,
        node_id: str,
        folder: Path,  # the run's; its config.json is there before the first row
        send: Callable[[str, dict], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.node_id, self.folder, self.num_steps = node_id, folder, 0
        self.send = send or PromptServer.instance.send_sync
        self.clock = clock
        self.progress = NodeProgress(node_id)
        self.first: tuple[int, float] | None = None  # step and time of the first step of this sitting
        self.last_sent = -math.inf

    def __call__(self, row: dict) -> None:
        kind, now = row["kind"], self.clock()
        self.num_steps = self.num_steps or RunFolder(self.folder).config()["settings"]["num_steps"]
        payload = {key: value for key, value in row.items() if key not in BULKY}
        if kind == "train":
            seconds_left = self._seconds_left(row["step"], now)
            if now - self.last_sent < MIN_INTERVAL_SECONDS and row["step"] != self.num_steps:
                return
            self.last_sent = now
            payload["seconds_left"] = seconds_left
        elif kind == "finished":
            payload |= {key: row["report"][key] for key in ("chosen_step", "verdict", "eval_delta_pct", "tied_range") if key in row.get("report", {})}
        if kind == "sample":
            payload["pictures"] = [picture | {"thumbnail": thumbnail_file(self.folder, picture["file"])} for picture in row["pictures"]]
        self.send(EVENTS[kind], finite({**payload, "run": self.folder.name, "node_id": self.node_id, "num_steps": self.num_steps}))
        if kind == "train":
            # Last: the host's bar is where a pressed cancel button is noticed.
            self.progress(row["step"], self.num_steps)

    def _seconds_left(self, step: int, now: float) -> float | None:
        """From the wall clock since the first step, so that evaluations count."""
        if self.first is None:
            self.first = (step, now)
            return None
        first_step, started = self.first
        return (now - started) / (step - first_step) * max(0, self.num_steps - step) if step > first_step else None


def thumbnail_file(run_folder: Path, file: str) -> str:
    """What GET /pistachio/thumbnail takes for a file of a run."""
    return str(run_folder / file)


def finite(value):
    """The same structure with None for NaN and infinity, which browsers can't read as JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
