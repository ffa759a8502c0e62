"""HTTP: the history of runs as JSON, and small previews of dataset pictures.

GET /pistachio/runs, /pistachio/runs/{name} and /pistachio/thumbnail?file=...&size=..., with &folder=... for a picture of a
reviewed folder. Files are read in a thread, so that a long metrics file never stalls the server.
"""

from __future__ import annotations

import asyncio
import functools
import json
from io import BytesIO
from pathlib import Path

from aiohttp import web
from PIL import ImageOps
from server import PromptServer

from ..dataset.images import read_rgb
from ..training.errors import PistachioError
from ..training.run import Run, RunFolder, list_runs
from .events import finite, thumbnail_file
from .folders import allowed_file, find_run, runs_folder
from .review_routes import add_review_routes, reviewed_file

MAX_THUMBNAIL_PX = 1024
KEPT_THUMBNAILS = 4096  # of about 8 kB: scrolling back decodes nothing


def add_routes() -> None:
    """Once, before the host builds its application."""
    routes = PromptServer.instance.routes
    routes.get("/pistachio/runs")(get_runs)
    routes.get("/pistachio/runs/{name}")(get_run)
    routes.get("/pistachio/thumbnail")(get_thumbnail)
    add_review_routes(routes)


async def get_runs(request: web.Request) -> web.Response:
    return await _answer(lambda: {"runs": [summary(run) for run in list_runs(runs_folder())]})


async def get_run(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    return await _answer(lambda: details(find_run(name)))


async def get_thumbnail(request: web.Request) -> web.Response:
    query = request.rel_url.query
    size_text = query.get("size", "256")
    if not size_text.isdecimal() or not 16 <= int(size_text) <= MAX_THUMBNAIL_PX:
        return web.json_response({"error": f"'{size_text}' is no size in pixels. Give 16 to {MAX_THUMBNAIL_PX}."}, status=400)
    try:
        find = functools.partial(reviewed_file, query["folder"]) if "folder" in query else allowed_file
        picture = await asyncio.to_thread(lambda: small_picture(find(query.get("file", "")), int(size_text)))
    except PistachioError as error:
        return web.json_response({"error": str(error)}, status=404)
    return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})


async def _answer(read) -> web.Response:
    try:
        return web.json_response(finite(await asyncio.to_thread(read)))
    except PistachioError as error:
        return web.json_response({"error": str(error)}, status=404)
    except (json.JSONDecodeError, OSError) as error:
        return web.json_response({"error": f"A file of the run can't be read: {error}"}, status=500)


def summary(run: Run) -> dict:
    folder = RunFolder(run.folder)
    report = folder.report() or {}
    return {
        "name": run.name,
        "status": folder.status(),
        "chosen_step": report.get("chosen_step"),
        "last_step": report.get("last_step"),
        "checkpoints": folder.checkpoint_steps(),
        "verdict": report.get("verdict"),
        "eval_delta_pct": report.get("eval_delta_pct"),
        "modified": (run.folder / "config.json").stat().st_mtime,
    }


def details(run: Run) -> dict:
    folder = RunFolder(run.folder)
    return summary(run) | {
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


def thumbnail(file: str, size_px: int) -> bytes:
    return small_picture(allowed_file(file), size_px)


def small_picture(file: Path, size_px: int) -> bytes:
    """JPEG."""
    status = file.stat()
    return _thumbnail(str(file), status.st_mtime_ns, status.st_size, size_px)


@functools.lru_cache(maxsize=KEPT_THUMBNAILS)
def _thumbnail(file: str, mtime_ns: int, size_bytes: int, size_px: int) -> bytes:
    image = ImageOps.contain(read_rgb(Path(file)), (size_px, size_px))
    data = BytesIO()
    image.save(data, format="JPEG", quality=85)
    return data.getvalue()
