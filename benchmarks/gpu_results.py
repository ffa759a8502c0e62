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
        self.save()

    def rows(self, part: str) -> list[dict]:
        return list(self.value["parts"].get(part, {}).values())

    def row(self, part: str, name: str) -> dict | None:
        return self.value["parts"].get(part, {}).get(name)

    def add(self, part: str, name: str, row: dict) -> dict:
        """The row as it stands now. A row with `times_s` joins what an earlier round measured of the same name."""
        rows = self.value["parts"].setdefault(part, {})
        before = rows.get(name)
        if before is not None and "times_s" in before:
            if "times_s" not in row:  # a later round that was skipped or failed does not undo the first
                before.setdefault("later", []).append({key: row[key] for key in (*UNFINISHED, "out_of_memory") if key in row})
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
