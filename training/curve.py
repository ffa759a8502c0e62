"""A run's metrics.jsonl as a chart needs it: read once, then only what was appended since.

Steps and losses lie in arrays of numbers, 16 bytes a step; of the other rows the few that are drawn are kept whole. Knows
the rows' fields and nothing of who draws them.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np

SPEED_SMOOTHING = 0.1  # share of the latest step, as the panel smooths what comes after
TAIL_BYTES = 64
# A training row as the loop writes it: three times as fast as all of its JSON, and most rows are these. Any other is read as JSON.
TRAIN_ROW = re.compile(rb'\{"kind": "train", "step": (\d+), "loss": ([^,"]+), "loss_ema": ([^,"]+), [^{}]*"seconds": ([^,"{}]+)\}')
LEFT_OUT = ("errors", "t_values", "checks")  # of an evaluation: kilobytes that no curve shows


class Curve:
    """Call `update` before reading it."""

    def __init__(self, path: Path):
        self.path = path
        self._begin()

    def _begin(self) -> None:
        self.offset, self.tail = 0, b""
        self.steps, self.losses = array("q"), array("d")
        self.step, self.note, self.note_message, self.seconds_per_step = 0, "", None, None
        self.evaluations: list[dict] = []
        self.probes: list[dict] = []
        self.samples: list[dict] = []

    def update(self) -> "Curve":
        try:
            with open(self.path, "rb") as file:
                if not self._goes_on(file):
                    self._begin()
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            self._begin()
            return self
        whole = data[: data.rfind(b"\n") + 1]  # a line that is being written, or was cut short by a kill, waits
        for line in whole.splitlines():
            if line and not self._add(line):
                break
        self.offset += len(whole)
        self.tail = (self.tail + whole)[-TAIL_BYTES:]
        return self

    def _goes_on(self, file) -> bool:
        """False where a run that was resumed has written its rows anew."""
        file.seek(self.offset - len(self.tail))
        return file.read(len(self.tail)) == self.tail

    def _add(self, line: bytes) -> bool:
        found = TRAIN_ROW.fullmatch(line)
        if found:
            step, loss, smooth, seconds = found.groups()
            try:
                self._add_step(int(step), _number(loss) if smooth == b"null" else _number(smooth), _number(seconds))
                return True
            except ValueError:
                pass  # no number after all
        try:
            row = json.loads(line)
        except ValueError:
            return False
        kind = row.get("kind")
        self.step = max(self.step, row.get("step", 0))
        if kind == "train":
            loss = row.get("loss_ema")
            self._add_step(row["step"], row.get("loss") if loss is None else loss, row.get("seconds"))
        elif kind == "eval":
            self.evaluations.append({key: value for key, value in row.items() if key not in LEFT_OUT})
        elif kind == "probe":
            self.probes.append(row)
        elif kind == "sample":
            self.samples.append(row)
        elif kind == "note":
            self.note, self.note_message = row.get("text", ""), row.get("message")
        return True

    def _add_step(self, step: int, loss: float | None, seconds: float | None) -> None:
        self.step = max(self.step, step)
        if loss is not None and math.isfinite(loss) and (not self.steps or step > self.steps[-1]):
            self.steps.append(step)
            self.losses.append(loss)
        if seconds is not None:
            before = seconds if self.seconds_per_step is None else self.seconds_per_step
            self.seconds_per_step = before + SPEED_SMOOTHING * (seconds - before)

    def training(self, count: int, first: int = 0, last: int | None = None) -> dict:
        """`steps`, `low` and `high` of at most `count` stretches of `stride` steps between first and last; where the stride is 1, `high` is `low`."""
        start = bisect_left(self.steps, first)
        end = len(self.steps) if last is None else bisect_right(self.steps, last)
        steps, losses = np.array(self.steps[start:end], dtype=np.int64), np.array(self.losses[start:end])
        stride = 1
        while len(steps) and int(steps[-1]) // stride - int(steps[0]) // stride >= count:
            stride *= 2
        if stride == 1:
            values = losses.tolist()
            return {"stride": 1, "steps": steps.tolist(), "low": values, "high": values}
        stretches = steps // stride
        begins = np.flatnonzero(np.concatenate([[True], stretches[1:] != stretches[:-1]]))
        return {
            "stride": stride, "steps": steps[begins].tolist(),
            "low": np.minimum.reduceat(losses, begins).tolist(), "high": np.maximum.reduceat(losses, begins).tolist(),
        }


def _number(text: bytes) -> float | None:
    return None if text == b"null" else float(text)
