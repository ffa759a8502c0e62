"""HTTP for a run's curve: small enough for any page, however long the run.

GET /pistachio/runs/{name}/history gives the whole run in a bounded number of points, with the number of the last event that
they contain: a page asks once, and goes on with the events. ?first=&last= gives the training loss between two steps, in detail.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from aiohttp import web

from ..training.curve import Curve
from ..training.errors import PistachioError
from ..training.run import Run, RunFolder
from .answers import answered
from .events import finite, live_state, shown_pictures
from .folders import find_run

POINTS = 4096  # the page keeps as many
KEPT_CURVES = 8

_curves: OrderedDict[Path, Curve] = OrderedDict()
_lock = threading.Lock()


def add_history_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/runs/{name}/history")(get_history)


async def get_history(request: web.Request) -> web.Response:
    try:
        run = find_run(request.match_info["name"])
    except PistachioError as error:
        return web.json_response({"error": str(error)}, status=404)
    query = request.rel_url.query
    if "first" in query or "last" in query:
        return await answered(lambda _: detail(run, _step(query.get("first", "0")), _step(query.get("last", ""))))(request)
    return await answered(lambda _: history(run))(request)


def history(run: Run) -> dict:
    folder = RunFolder(run.folder)
    status = folder.status()
    # Before the rows are read: they may contain more than this event, and never less.
    live = live_state(run.name) if status == "running" else None
    config, report, plan = folder.config() or {}, folder.report() or {}, folder.plan()
    with _lock:
        curve = _curve(run.folder)
        answer = {
            "step": curve.step, "training": curve.training(POINTS), "seconds_per_step": curve.seconds_per_step, "evaluations": list(curve.evaluations),
            "probes": list(curve.probes), "note": curve.note, "note_message": curve.note_message,
            "samples": [{"step": row["step"], "pictures": shown_pictures(run.folder, row["pictures"])} for row in curve.samples],
        }
    is_finished = status == "finished"
    return finite(answer | {
        "name": run.name, "status": status, "live": live, "num_steps": config.get("settings", {}).get("num_steps", 0),
        "chosen_step": report.get("chosen_step") if is_finished else None, "verdict": report.get("verdict", "") if is_finished else "",
        "verdict_message": report.get("verdict_message") if is_finished else None, "is_refit": "refit" in report,
        "tied_range": report.get("tied_range") if is_finished else None, "memory": live["memory"] if live else _measured(plan),
    })


def _measured(plan: dict | None) -> dict | None:
    """Of a run that nobody trains: its predicted peak and, where the device has a counter, the real one."""
    if plan is None:
        return None
    phases = plan["plan"].get("phases") or {}
    return {
        "place": "plan", "used_bytes": None, "peak_bytes": plan.get("measured_bytes"), "total_bytes": plan.get("limit_bytes"),
        "planned_bytes": max(phases.values()) if phases else None,
    }


def detail(run: Run, first: int, last: int) -> dict:
    with _lock:
        return {"name": run.name, "first": first, "last": last, "training": finite(_curve(run.folder).training(POINTS, first, last))}


def _curve(folder: Path) -> Curve:
    curve = _curves.pop(folder, None) or Curve(folder / "metrics.jsonl")
    _curves[folder] = curve
    while len(_curves) > KEPT_CURVES:
        _curves.popitem(last=False)
    return curve.update()


def _step(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise PistachioError(f"'{text}' is no step. Give whole numbers as first and last.")
    return int(text)
