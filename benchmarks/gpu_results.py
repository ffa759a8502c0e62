"""The suite's result file: written whole after every row, so that what was measured stays whatever happens next.

A call with the same file goes on where the last one ended. Knows rows by part and name; knows nothing of what they say.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

# What must be alike for rows of two calls to stand in one table.
SAME = ("device", "host_version", "torch_version", "commit")
UNFINISHED = ("skipped", "failed")
TRIED = ("failed", "timed_out")  # what counts as a try
MOST_TRIES = 3  # of a row, over all calls


class Results:
    def __init__(self, path: Path | None, head: dict, *, fresh: bool = False):
        """Raises ValueError where the file holds results of another card, host or code."""
        self.path = path
        self.value = {"parts": {}}
        if path is not None and path.exists() and not fresh:
            self.value = json.loads(path.read_text(encoding="utf-8"))
            before, now = self.value.get("environment", {}), head["environment"]
            changed = [name for name in SAME if before.get(name) != now.get(name)]
            if changed or self.value.get("rehearsal") != head["rehearsal"]:
                raise ValueError(f"{path} holds results with another {', '.join(changed) or 'kind of run'}. Give --json another file, or --fresh to write it anew.")
        self.value |= head
        running = self.value.pop("running", None)
        if running is not None:
            self.add(*running, self.timed_out(*running, "the call before was killed over it"))
        self.save()

    def rows(self, part: str) -> list[dict]:
        return list(self.value["parts"].get(part, {}).values())

    def row(self, part: str, name: str) -> dict | None:
        return self.value["parts"].get(part, {}).get(name)

    def add(self, part: str, name: str, row: dict) -> dict:
        """The row as it stands now. A row with `times_s` joins what an earlier round measured of the same name."""
        rows = self.value["parts"].setdefault(part, {})
        before = rows.get(name)
        self.value.pop("running", None)
        if before is not None and "failed" in before and "skipped" in row and "timed_out" not in row:
            return before  # which says more
        tries = self.tries(part, name) + any(key in row for key in TRIED)
        row = {**row, "tries": tries} if tries else row
        if before is not None and "times_s" in before:
            if "times_s" not in row:  # a later round that was skipped or failed does not undo the first
                before.setdefault("later", []).append({key: row[key] for key in (*UNFINISHED, "out_of_memory") if key in row})
                before |= {"tries": tries} if tries else {}
                self.save()
                return before
            row = joined(before, row)
        rows[name] = row
        self.save()
        return row

    def rounds(self, part: str, name: str) -> int:
        """How often the row was measured; one that can't be is done."""
        row = self.row(part, name)
        if row is None or any(key in row for key in UNFINISHED):
            return 0
        return len(row["times_s"]) if "times_s" in row else 99

    def tries(self, part: str, name: str) -> int:
        return (self.row(part, name) or {}).get("tries", 0)

    def rank(self, part: str, name: str) -> int:
        """What is to be measured first: 0, what nothing speaks against; 1, what was skipped; 2, what failed."""
        return 2 if self.tries(part, name) else int("skipped" in (self.row(part, name) or {}))

    def begin(self, part: str, name: str) -> None:
        """Told before a row, so that a call that is killed over it leaves a word."""
        self.set("running", [part, name])

    def timed_out(self, part: str, name: str, words: str) -> dict:
        if self.tries(part, name) + 1 < MOST_TRIES:
            return {"skipped": words, "timed_out": True}
        return {"failed": f"{words}, as {MOST_TRIES - 1} times before", "timed_out": True}

    def set(self, key: str, value) -> None:
        self.value[key] = value
        self.save()

    def save(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_text(json.dumps(self.value, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def joined(before: dict, row: dict) -> dict:
    """Two rounds of one arm: their times side by side, the larger peak, the first round's first step."""
    rounds = [*before["times_s"], *row["times_s"]]
    merged = {**before, **row, "times_s": rounds, **summary(rounds)}
    for key in ("peak_gib", "peak_over_predicted"):
        if key in before and key in row:
            merged[key] = max(before[key], row[key])
    if "first_step_s" in before:
        merged["first_step_s"] = before["first_step_s"]
    merged["clocks"] = [*before.get("clocks", []), *row.get("clocks", [])]
    merged["notes"] = sorted({*before.get("notes", []), *row.get("notes", [])})
    return merged


def summary(rounds: list[list[float]]) -> dict:
    """Of the measured steps of each round: the median of all, its range, and what a round's median was."""
    every = [seconds for one in rounds for seconds in one]
    return {
        "step_s": statistics.median(every), "step_s_range": [min(every), max(every)], "round_medians_s": [statistics.median(one) for one in rounds],
        "num_steps": len(every),
    }
