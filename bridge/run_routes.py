"""HTTP for the list of runs: what there is, which may share a chart, and what a person does with one.

GET /pistachio/runs, /pistachio/runs/{name}, /pistachio/compare?run=...&run=...
POST /pistachio/runs/{name}/rename {"name"}, /install {"step", "lora_name"}, /trash {}, /show_folder {}, and /ask {"wish"} of a run
that is being trained: "evaluate", "sample" or "stop"
"""

from __future__ import annotations

import asyncio
import json
import webbrowser

from aiohttp import web

from ..training.errors import PistachioError
from ..training.messages import as_json
from ..training.overview import compare, rename_run, summarise, trash_bytes, trash_run
from ..training.report import record_override, withdraw_override
from ..training.run import Run, RunFolder, check_run_name, list_runs
from .answers import answered, is_from_this_machine, json_body, text_of
from .control import ask
from .events import finite, thumbnail_file
from .folders import find_run, runs_folder
from .lora import install_checkpoint


def add_run_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/runs")(answered(get_runs))
    routes.get("/pistachio/runs/{name}")(get_run)
    routes.get("/pistachio/compare")(answered(get_comparison))
    for action, handler in (("rename", post_rename), ("install", post_install), ("trash", post_trash), ("show_folder", post_show_folder), ("ask", post_ask)):
        routes.post(f"/pistachio/runs/{{name}}/{action}")(answered(handler))


# ---- looking ------------------------------------------------------------------


def get_runs(request: web.Request) -> dict:
    runs = [summarise(run) for run in list_runs(runs_folder())]
    return finite({"runs": runs, "folder": str(runs_folder()), "size_bytes": sum(run["size_bytes"] for run in runs), "trash_bytes": trash_bytes(runs_folder())})


async def get_run(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    try:
        return web.json_response(finite(await asyncio.to_thread(lambda: details(find_run(name)))))
    except PistachioError as error:
        return web.json_response({"error": str(error)}, status=404)
    except (json.JSONDecodeError, OSError) as error:
        return web.json_response({"error": f"A file of the run can't be read: {error}"}, status=500)


def details(run: Run) -> dict:
    folder = RunFolder(run.folder)
    return summarise(run) | {
        "folder": str(run.folder),
        "config": folder.config(),
        "dataset": folder.dataset(),
        "metrics": (metrics := folder.metrics()),
        "report": folder.report(),
        "samples": samples(folder, metrics),
    }


def samples(folder: RunFolder, metrics: list[dict]) -> list[dict]:
    """By step; `thumbnail` is what GET /pistachio/thumbnail takes as its file."""
    return [
        {"step": row["step"], "pictures": [p | {"thumbnail": thumbnail_file(folder.path, p["file"])} for p in row["pictures"]]}
        for row in metrics if row["kind"] == "sample"
    ]


def get_comparison(request: web.Request) -> dict:
    comparison = compare([find_run(name) for name in request.rel_url.query.getall("run", [])])
    return finite({
        "problem": comparison.problem, "curves": list(comparison.curves), "left_out": comparison.left_out,
        "left_out_messages": {name: as_json(words) for name, words in comparison.left_out.items()},
    })


# ---- changing -----------------------------------------------------------------


async def post_rename(request: web.Request) -> dict:
    body = await json_body(request)
    run, name = find_run(request.match_info["name"]), check_run_name(text_of(body, "name"))
    await asyncio.to_thread(rename_run, run, Run(name=name, folder=runs_folder() / name))
    return {"name": name}


async def post_install(request: web.Request) -> dict:
    body = await json_body(request)
    run, step = find_run(request.match_info["name"]), body.get("step")
    if not isinstance(step, int) or isinstance(step, bool):
        raise PistachioError("'step' is missing, or is no whole number.")
    folder = RunFolder(run.folder)
    is_chosen = step == folder.chosen_step()
    default = run.name if is_chosen else f"{run.name}-step{step}"

    def install() -> dict:
        file = install_checkpoint(run, step, str(body.get("lora_name") or "").strip() or default)
        if is_chosen:
            withdraw_override(folder)
        is_recorded = is_chosen or record_override(folder, step, file)
        return {"lora_name": file, "step": step, "recorded": is_recorded}

    return await asyncio.to_thread(install)


async def post_trash(request: web.Request) -> dict:
    await json_body(request)
    target = await asyncio.to_thread(trash_run, find_run(request.match_info["name"]))
    return {"folder": str(target)}


async def post_ask(request: web.Request) -> dict:
    body = await json_body(request)
    wish = text_of(body, "wish")
    ask(find_run(request.match_info["name"]).name, wish)
    return {"asked": wish}


async def post_show_folder(request: web.Request) -> dict:
    """Opens the folder in the file manager of the machine that ComfyUI runs on, which must be the asker's own."""
    await json_body(request)
    folder = find_run(request.match_info["name"]).folder
    if not is_from_this_machine(request):
        raise PistachioError(f"ComfyUI runs on another machine. The run's folder there is {folder}")
    if not await asyncio.to_thread(webbrowser.open, folder.as_uri()):
        raise PistachioError(f"This machine has nothing to open a folder with. The run's folder is {folder}")
    return {"folder": str(folder)}
