"""What a list of runs shows of each, read cheaply, and which runs may be drawn on one chart.

A run of a hundred thousand steps has a hundred thousand rows, of which a list needs the evaluations and the last one:
the others are passed over as bytes. What was read is kept until a file of the run changes.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Sequence

from .errors import PistachioError
from .messages import as_json, message
from .run import Run, RunFolder, is_finished

SPARKLINE_POINTS = 40
TRASH_FOLDER = ".trash"
COMPARED_POINTS = 400  # of a curve on the chart of several
EVALUATION_MARK, SAMPLE_MARK, ERRORS_MARK = b'"kind": "eval"', b'"kind": "sample"', b', "errors": {'
SAME_ERROR = 1e-6  # relative; two sums of the same numbers in another order differ by less

_UNREADABLE = {
    "family": "", "base_file": "", "is_refit": False, "override_step": None, "trigger": "", "num_pictures": 0, "num_steps": 0, "step": 0, "chosen_step": None, "last_step": None, "state": "unreadable",
    "checkpoints": [], "eval_delta_pct": None, "sparkline": [], "created": None, "size_bytes": 0, "status": "unreadable",
}
_kept: dict[Path, tuple[tuple, dict]] = {}
_trashed: dict[Path, tuple[int, int]] = {}


def summarise(run: Run) -> dict:
    """JSON values: what the run is, how far it came, its curve in a few points, and its size on the disk."""
    stamp = _stamp(run.folder)
    kept = _kept.get(run.folder)
    if kept is None or kept[0] != stamp:
        try:
            read = _read(run)
        except ValueError as error:  # not JSON: one broken folder must not hide the others
            verdict = message("verdict.unreadable", "A file of this run can't be read: {reason}", reason=str(error))
            read = _UNREADABLE | {"name": run.name, "verdict": verdict, "verdict_message": as_json(verdict), "modified": run.folder.stat().st_mtime}
        kept = _kept[run.folder] = (stamp, read)
    if "status" in kept[1]:
        return dict(kept[1])
    # Whether somebody trains it is in no file.
    return kept[1] | {"status": RunFolder(run.folder).status()}


def _stamp(folder: Path) -> tuple:
    def of(path: Path):
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size

    names = ("config.json", "dataset.json", "metrics.jsonl", "report.json", "checkpoints", "samples", "state")
    return tuple(of(folder / name) for name in names)


def _read(run: Run) -> dict:
    folder = RunFolder(run.folder)
    config, dataset, report = folder.config() or {}, folder.dataset() or {}, _report(run.folder / "report.json") or {}
    evaluations, step = _evaluations_and_step(run.folder / "metrics.jsonl", with_errors=False)
    curve = [[row["step"], row["loss_delta_pct"]] for row in evaluations if row.get("loss_delta_pct") is not None]
    ended = {"status": "finished"} if is_finished(config, report) else {}
    return ended | {
        "name": run.name,
        "family": config.get("family", ""),
        "base_file": config.get("base_file", ""),
        "trigger": dataset.get("trigger_word", ""),
        "num_pictures": len(dataset.get("pictures", ())),
        "num_steps": config.get("settings", {}).get("num_steps", 0),
        "step": step,
        "chosen_step": report.get("chosen_step"),
        "last_step": report.get("last_step"),
        "state": report.get("state"),
        "checkpoints": folder.checkpoint_steps(),
        "override_step": (report.get("override") or {}).get("step"),
        "verdict": report.get("verdict"),
        "verdict_message": report.get("verdict_message"),
        "is_refit": "refit" in report,
        "eval_delta_pct": report.get("eval_delta_pct"),
        "sparkline": thinned(curve, SPARKLINE_POINTS),
        "created": report.get("created"),
        "modified": (run.folder / "config.json").stat().st_mtime,
        "size_bytes": size_bytes(run.folder),
    }


def _report(path: Path) -> dict | None:
    """Without what is measured per picture, which is most of the file: it is cut out of the text before that is read as JSON."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    for key, brackets in (("t_values", "{}"), ("evaluations", "[]")):
        begin = text.find(f'\n "{key}": {brackets[0]}\n')  # as `RunFolder.write_json` indents it
        end = text.find(f"\n {brackets[1]}", begin)
        if 0 <= begin < end:
            text = f'{text[:begin]}\n "{key}": {brackets}{text[end + 3:]}'
    return json.loads(text)


def _evaluations_and_step(path: Path, *, with_errors: bool) -> tuple[list[dict], int]:
    """(evaluation rows by step, last step of any row). `with_errors`: the base's errors per picture too; nobody asks for the others'."""
    if not path.is_file():
        return [], 0
    lines = path.read_bytes().split(b"\n")
    by_step = {row["step"]: row for line in lines if EVALUATION_MARK in line and (row := _evaluation(line, with_errors)) is not None}
    last = next((row for line in reversed(lines) if line and (row := _row(line)) is not None), {})
    return [by_step[step] for step in sorted(by_step)], last.get("step", 0)


def _evaluation(line: bytes, with_errors: bool) -> dict | None:
    head, mark, _ = line.partition(ERRORS_MARK)
    row = _row(head + b"}") if mark and line.endswith(b"}") else _row(line)
    if row is None or row.get("kind") != "eval":
        return None
    return _row(line) if mark and with_errors and row["step"] == 0 else row


def sample_rows(folder: Path) -> list[dict]:
    """The rows of a run's samples, in the order written."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    rows = (_row(line) for line in path.read_bytes().split(b"\n") if SAMPLE_MARK in line)
    return [row for row in rows if row is not None and row.get("kind") == "sample"]


def _row(line: bytes) -> dict | None:
    """None for a line that a kill cut short."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def thinned(points: Sequence, count: int) -> list:
    """At most `count` of them, evenly, first and last included."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]


def size_bytes(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(place) / name).lstat().st_size
            except OSError:
                continue  # a file that was replaced in this moment
    return total


# ---- runs on one chart -------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """`curves`: of the runs that may share a chart with the first; `left_out`: why the others may not, a sentence each."""

    curves: tuple[dict, ...]  # {"name", "points": [[step, percent, standard error in percent], ...], "chosen_step"}
    left_out: dict[str, str]

    @property
    def problem(self) -> str:
        """Why nothing can be drawn; empty where two runs or more can."""
        return "" if len(self.curves) > 1 else next(iter(self.left_out.values()), "")


def compare(runs: Sequence[Run]) -> Comparison:
    """Curves are comparable when the base was measured on the same pictures, at the same noise levels, with the same result.

    Raises PistachioError for fewer than two runs.
    """
    if len(runs) < 2:
        raise PistachioError("One run alone can't be compared. Choose at least two in the list of runs.")
    measured = {run.name: _evaluations_and_step(run.folder / "metrics.jsonl", with_errors=True)[0] for run in runs}
    first = runs[0].name
    differences = {run.name: _difference(first, measured[first], run.name, measured[run.name]) for run in runs[1:]}
    left_out = {name: words for name, words in differences.items() if words}
    return Comparison(curves=tuple(_curve(run, measured[run.name]) for run in runs if run.name not in left_out), left_out=left_out)


def _curve(run: Run, rows: Sequence[dict]) -> dict:
    points = [_point(row) for row in rows if row.get("loss_delta_pct") is not None]
    chosen = RunFolder(run.folder).chosen_step()
    kept = {point[0] for point in thinned(points, COMPARED_POINTS)} | {chosen}
    return {"name": run.name, "points": [point for point in points if point[0] in kept], "chosen_step": chosen}


def _point(row: dict) -> list[float]:
    base = (row.get("loss") or 0.0) - (row.get("loss_delta") or 0.0)
    margin = 100 * row["se"] / base if row.get("se") and base > 0 else 0.0
    return [row["step"], row["loss_delta_pct"], margin]


def _difference(a: str, rows_a: list[dict], b: str, rows_b: list[dict]) -> str:
    for name, rows in ((a, rows_a), (b, rows_b)):
        if not rows or rows[0]["step"] != 0:
            return message("compare.no_base", "'{run}' has not measured its base yet. Let it train to its first evaluation.", run=name)
    base_a, base_b = rows_a[0], rows_b[0]
    pictures_a, pictures_b = set(base_a["errors"]), set(base_b["errors"])
    if pictures_a != pictures_b:
        return message(
            "compare.pictures",
            "'{run}' and '{other}' hold out other pictures ({shared} of {count} are the same), so their losses speak of different things.",
            run=a, other=b, shared=len(pictures_a & pictures_b), count=len(pictures_a),
        )
    if base_a["t_values"] != base_b["t_values"]:
        return message(
            "compare.timesteps",
            "'{run}' and '{other}' were measured at other noise levels. Set timesteps_per_image and the timestep distribution alike to compare them.",
            run=a, other=b,
        )
    pairs = [(x, y) for key in pictures_a for x, y in zip(base_a["errors"][key], base_b["errors"][key])]
    if not all(x is not None and y is not None and math.isclose(x, y, rel_tol=SAME_ERROR) for x, y in pairs):
        return message(
            "compare.losses", "'{run}' and '{other}' began at other losses on the same pictures: the base model, the captions or the resolution differ.",
            run=a, other=b,
        )
    return ""


# ---- keeping house -----------------------------------------------------------


def rename_run(run: Run, new: Run) -> None:
    """`new`: a name that is free. PistachioError where the run is being trained or the name is taken."""
    folder = RunFolder(run.folder)
    _refuse_running(folder, "renamed")
    if new.folder.exists():
        raise PistachioError(f"There is a run '{new.name}' already. Choose another name.")
    report = folder.report()
    try:
        run.folder.rename(new.folder)
    except OSError as error:
        raise PistachioError(f"Run '{run.name}' can't be renamed: {error}.") from error
    if report is not None:
        RunFolder(new.folder).write_json("report.json", report | {"run": new.name})


def trash_run(run: Run) -> Path:
    """Move it to the trash folder beside the runs; nothing is deleted. Gives its place there."""
    _refuse_running(RunFolder(run.folder), "moved to the trash")
    trash = run.folder.parent / TRASH_FOLDER
    target = next(path for number in range(1, 10_000) if not (path := trash / (run.name if number == 1 else f"{run.name} ({number})")).exists())
    try:
        trash.mkdir(exist_ok=True)
        run.folder.rename(target)
    except OSError as error:
        raise PistachioError(f"Run '{run.name}' can't be moved to '{trash}': {error}.") from error
    return target


def trash_bytes(runs_folder: Path) -> int:
    """Of the runs in the trash, measured anew when one comes or goes."""
    trash = runs_folder / TRASH_FOLDER
    try:
        changed_ns = trash.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
    kept = _trashed.get(trash)
    if kept is None or kept[0] != changed_ns:
        kept = _trashed[trash] = (changed_ns, size_bytes(trash))
    return kept[1]


def _refuse_running(folder: RunFolder, what: str) -> None:
    if folder.status() == "running":
        raise PistachioError(f"Run '{folder.name}' is being trained and can't be {what} now. Cancel it first, or wait for its end.")
