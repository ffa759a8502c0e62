"""A run's rows as websocket events and the progress bar of the node, whose panel draws the rest.

Owns the event names, their numbering and the batching of steps. Nothing is replayed to a browser that reconnects: it sees
by the numbers what it missed, and `history_routes` has the rows. The training thread never waits for a browser.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from pathlib import Path
from typing import Callable

from server import PromptServer

from ..training.run import RunFolder
from .live_memory import LiveMemory
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
BATCH_SECONDS = 0.1  # steps of at least so long go out as one message, and none is left out
LISTENER_SECONDS = 0.025  # and of so long for each open page: every page costs a message, and ten pages no more than four
PROGRESS_SECONDS = 0.1
MEMORY_SECONDS = 1.0
BULKY = ("kind", "errors", "t_values", "report")  # kilobytes that no canvas shows; GET /pistachio/runs/{name} has them

_latest: "RunEvents | None" = None  # a server trains one run at a time


class RunEvents:
    """Give it every row of a run, in order, from one thread.

    Every message has `sitting` and `sequence`, which counts from 1. A `pistachio.step` is the latest of the steps in its
    `rows`: [step, smoothed loss, seconds], one for each step since the message before.
    """

    def __init__(
        self,
        *,
        node_id: str,
        folder: Path,  # the run's; its config.json is there before the first row
        workflow: str | None = None,  # id of the canvas's workflow that the node is in: another's node may have the same number
        send: Callable[[str, dict], None] | None = None,
        later: Callable[[float, Callable[[], None]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        memory: LiveMemory | None = None,
        listeners: Callable[[], int] | None = None,
    ):
        """`later(seconds, call)` must return at once and call from another thread; `listeners`: how many pages are open."""
        global _latest
        self.node_id, self.folder, self.workflow, self.num_steps = node_id, folder, workflow, 0
        self.send = send or PromptServer.instance.send_sync
        self.later = later or _on_the_servers_loop
        self.clock = clock
        self.progress = NodeProgress(node_id)
        self.memory = memory or LiveMemory(folder)
        self.listeners = listeners or (lambda: len(PromptServer.instance.sockets))
        self.sitting, self.sequence = secrets.token_hex(4), 0
        self.phase, self.seconds_left = "", None
        self.first: tuple[int, float] | None = None  # step and time of the first step of this sitting
        self.pending: list[dict] = []  # steps that no message has taken yet
        self.is_flush_due = False
        self.sent_at = self.progress_at = self.memory_at = -math.inf
        self.lock = threading.RLock()
        _latest = self

    def __call__(self, row: dict) -> None:
        kind, now = row["kind"], self.clock()
        if not self.num_steps:
            self.num_steps = RunFolder(self.folder).config()["settings"]["num_steps"]
        with self.lock:
            if kind == "train":
                self.phase = ""
                self.seconds_left = self._seconds_left(row["step"], now)
                self.pending.append(row)
                batch_seconds = max(BATCH_SECONDS, LISTENER_SECONDS * self.listeners())
                if now - self.sent_at >= batch_seconds or row["step"] == self.num_steps:
                    self._send_steps(now)
                elif not self.is_flush_due:
                    # The next step may take minutes, and this one is not to wait for it.
                    self.is_flush_due = True
                    self.later(batch_seconds, self._flush)
            else:
                self._send_steps(now)
                self._send_other(kind, row, now)
        if kind == "train" and (now - self.progress_at >= PROGRESS_SECONDS or row["step"] == self.num_steps):
            self.progress_at = now
            # Last: the host's bar is where a pressed cancel button is noticed.
            self.progress(row["step"], self.num_steps)

    def state(self) -> dict:
        """What a page that asks for the history needs to go on from there: rows on the disk at this moment reach at least so far."""
        with self.lock:
            return {
                "sitting": self.sitting, "sequence": self.sequence, "phase": self.phase, "seconds_left": self.seconds_left,
                "memory": self.memory.now(),
            }

    def _flush(self) -> None:
        with self.lock:
            self.is_flush_due = False
            self._send_steps(self.clock())

    def _send_steps(self, now: float) -> None:
        if not self.pending:
            return
        rows, self.pending, self.sent_at = self.pending, [], now
        self._send("train", {
            **rows[-1], "seconds_left": self.seconds_left, "rows": [[row["step"], _smoothed(row), row.get("seconds")] for row in rows],
        }, now)

    def _send_other(self, kind: str, row: dict, now: float) -> None:
        payload = dict(row)
        if kind == "phase":
            self.phase = row["phase"]
        elif kind == "finished":
            report = row.get("report", {})
            payload |= {key: report[key] for key in ("chosen_step", "verdict", "verdict_message", "eval_delta_pct", "tied_range") if key in report}
            payload["is_refit"] = "refit" in report
        elif kind == "sample":
            payload["pictures"] = shown_pictures(self.folder, row["pictures"])
        self._send(kind, payload, now)

    def _send(self, kind: str, payload: dict, now: float) -> None:
        self.sequence += 1
        message = {key: value for key, value in payload.items() if key not in BULKY}
        message |= {
            "run": self.folder.name, "node_id": self.node_id, "workflow": self.workflow, "num_steps": self.num_steps, "sitting": self.sitting, "sequence": self.sequence,
        }
        if kind == "finished" or now - self.memory_at >= MEMORY_SECONDS:
            self.memory_at = now
            message["memory"] = self.memory.now()
        self.send(EVENTS[kind], finite(message))

    def _seconds_left(self, step: int, now: float) -> float | None:
        """From the wall clock since the first step, so that evaluations count."""
        if self.first is None:
            self.first = (step, now)
            return None
        first_step, started = self.first
        return (now - started) / (step - first_step) * max(0, self.num_steps - step) if step > first_step else None


def live_state(run_name: str) -> dict | None:
    """Of a run that this server trains or has trained last."""
    return finite(_latest.state()) if _latest is not None and _latest.folder.name == run_name else None


def _on_the_servers_loop(seconds: float, call: Callable[[], None]) -> None:
    loop = PromptServer.instance.loop
    loop.call_soon_threadsafe(loop.call_later, seconds, call)


def _smoothed(row: dict) -> float | None:
    loss = row.get("loss_ema")
    return row.get("loss") if loss is None else loss


def shown_pictures(run_folder: Path, pictures: list[dict]) -> list[dict]:
    """With `thumbnail`, which GET /pistachio/thumbnail takes as its file."""
    return [picture | {"thumbnail": thumbnail_file(run_folder, picture["file"])} for picture in pictures]


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
