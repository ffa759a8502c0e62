"""HTTP for a captioner's files: whether they are on this machine, and their download from the canvas.

GET /pistachio/captioner?model=...&local_folder=...; POST /pistachio/captioner/download {"model"}, /cancel {"model"}
"""

from __future__ import annotations

import asyncio
import functools
from dataclasses import asdict

from aiohttp import web

from ..dataset.files import free_bytes
from ..dataset.joycaption.background import HERE, Downloads
from ..training.errors import PistachioError
from .answers import answered, json_body, text_of
from .captioning import REPOSITORIES
from .folders import captioner_folder, captioners_folder

APPROXIMATE_BYTES = 17_000_000_000  # of either JoyCaption, until Hugging Face has said it
downloads = Downloads()


def add_captioner_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/captioner")(answered(get_captioner))
    routes.post("/pistachio/captioner/download")(answered(functools.partial(post_change, change=downloads.start)))
    routes.post("/pistachio/captioner/cancel")(answered(functools.partial(post_change, change=downloads.cancel)))


def get_captioner(request: web.Request) -> dict:
    query = request.rel_url.query
    own = query.get("local_folder", "").strip()
    if own:
        return {"state": HERE, "folder": str(captioner_folder(own)), "is_own": True}
    return told(_repository(query.get("model", "")))


async def post_change(request: web.Request, *, change) -> dict:
    repo = _repository(text_of(await json_body(request), "model"))
    await asyncio.to_thread(change, repo, captioners_folder())
    return await asyncio.to_thread(told, repo)


def told(repo: str) -> dict:
    state = downloads.state(repo, captioners_folder())
    return asdict(state) | {"repo": repo, "approximate_bytes": APPROXIMATE_BYTES, "free_bytes": free_bytes(captioners_folder())}


def _repository(model: str) -> str:
    if model not in REPOSITORIES:
        raise PistachioError(f"There is no captioner '{model}'. Choose one of {', '.join(REPOSITORIES)} on Load JoyCaption.")
    return REPOSITORIES[model]
