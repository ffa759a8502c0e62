"""HTTP for the review of a dataset: what there is to see, and each change of a caption or mark.

GET /pistachio/review?folder=..., /pistachio/review/caption?folder=...&name=..., /pistachio/review/findings?folder=...
POST /pistachio/review/caption, /mark, /undo, /redo: JSON from this server's own pages alone.
Owns who may ask and which folder is meant; what a change does is `dataset/review.py`'s matter.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from ..dataset.review import CaptionConflict, Review, Reviewed
from ..training.errors import PistachioError
from .folders import allowed_roots, picture_folder
from .review_findings import FindingsAsked, findings

MAX_NAMES = 20_000  # in one change of marks


def add_review_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/review")(_answer(get_review))
    routes.get("/pistachio/review/caption")(_answer(get_caption))
    routes.get("/pistachio/review/findings")(_answer(get_findings))
    routes.post("/pistachio/review/caption")(_answer(post_caption))
    routes.post("/pistachio/review/mark")(_answer(post_mark))
    routes.post("/pistachio/review/undo")(_answer(functools.partial(post_turn, turn="undo")))
    routes.post("/pistachio/review/redo")(_answer(functools.partial(post_turn, turn="redo")))


def reviewed_file(folder: str, name: str) -> Path:
    """A picture of a reviewed folder; a link that leads out of the allowed roots is none."""
    path = Review(picture_folder(folder)).path(name).resolve()
    if not any(path.is_relative_to(root) for root in allowed_roots()):
        raise PistachioError(f"'{name}' is a link that leads out of the folders that Pistachio may read.")
    return path


# ---- looking ------------------------------------------------------------------


def get_review(request: web.Request) -> dict:
    review = _review(request.rel_url.query)
    undo, redo = review.steps()
    return {
        "folder": str(review.folder), "pictures": [shown(picture) for picture in review.pictures()], "notes": review.notes(),
        "undo": undo, "redo": redo,
    }


def get_caption(request: web.Request) -> dict:
    query = request.rel_url.query
    return {"caption": _review(query).caption(query.get("name", ""))}


def get_findings(request: web.Request) -> dict:
    query = request.rel_url.query
    review = _review(query)
    resolution = query.get("resolution", "1024")
    if not resolution.isdecimal() or not 64 <= int(resolution) <= 4096:
        raise PistachioError(f"'{resolution}' is no training size. Give 64 to 4096.")
    asked = FindingsAsked(
        folder=review.folder, recursive=review.recursive, trigger_word=query.get("trigger_word", "").strip(), resolution=int(resolution)
    )
    return findings(asked, start=query.get("start") == "1")


def shown(picture: Reviewed) -> dict:
    return {name: value for name, value in asdict(picture).items() if value not in ("", False)}


# ---- changing -----------------------------------------------------------------


async def post_caption(request: web.Request) -> dict:
    body = await _body(request)
    name, text, seen = _text(body, "name"), _text(body, "text"), body.get("seen")
    if seen is not None and not isinstance(seen, str):
        raise PistachioError("'seen' is no text.")
    return await asyncio.to_thread(lambda: _changed(review := _review(body), review.save_caption(name, text, seen=seen)))


async def post_mark(request: web.Request) -> dict:
    body = await _body(request)
    names, mark, on = body.get("names"), _text(body, "mark"), body.get("on")
    if not isinstance(names, list) or len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names) or not isinstance(on, bool):
        raise PistachioError("A mark takes 'names', a list of pictures, and 'on', true or false.")
    return await asyncio.to_thread(lambda: _changed(review := _review(body), review.mark(names, mark, on)))


async def post_turn(request: web.Request, *, turn: str) -> dict:
    body = await _body(request)

    def change() -> dict:
        review = _review(body)
        pictures, words = review.undo() if turn == "undo" else review.redo()
        return _changed(review, pictures) | {"words": words}

    return await asyncio.to_thread(change)


def _changed(review: Review, pictures: list[Reviewed]) -> dict:
    undo, redo = review.steps()
    return {"pictures": [shown(picture) for picture in pictures], "undo": undo, "redo": redo}


# ---- asking -------------------------------------------------------------------


def _answer(handler: Callable[[web.Request], dict | Awaitable[dict]]) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The handler's dict as JSON, and what goes wrong as a sentence. Readers run in a thread."""

    async def answer(request: web.Request) -> web.Response:
        try:
            if request.method == "POST":
                _refuse_strangers(request)
                return web.json_response(await handler(request))
            return web.json_response(await asyncio.to_thread(handler, request))
        except CaptionConflict as conflict:
            return web.json_response({"error": str(conflict), "now": conflict.now}, status=409)
        except PistachioError as error:
            return web.json_response({"error": str(error)}, status=400)
        except OSError as error:
            return web.json_response({"error": f"The dataset's folder can't be used: {error}."}, status=500)

    return answer


def _refuse_strangers(request: web.Request) -> None:
    """A page of another site can send a form, but neither JSON nor our own address as its origin."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="Send JSON as application/json.")
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise web.HTTPForbidden(text="Changes are taken from ComfyUI's own pages alone.")
    origin = request.headers.get("Origin")
    # As ComfyUI itself does: behind a proxy the two may differ, on the user's own machine they don't.
    if origin is not None and _is_loopback(urlsplit(f"//{request.host}").hostname) and urlsplit(origin).netloc.lower() != request.host.lower():
        raise web.HTTPForbidden(text="Changes are taken from ComfyUI's own pages alone.")


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


async def _body(request: web.Request) -> dict:
    try:
        body = json.loads(await request.text())
    except (ValueError, LookupError) as error:
        raise PistachioError(f"The request is not JSON ({error}).") from error
    if not isinstance(body, dict):
        raise PistachioError("The request is no JSON object.")
    return body


def _text(body: dict, name: str) -> str:
    if not isinstance(body.get(name), str):
        raise PistachioError(f"'{name}' is missing, or is no text.")
    return body[name]


def _review(values) -> Review:
    """From a query or a body: `folder`, and whether subfolders and videos are shown too."""
    return Review(
        picture_folder(_text(dict(values), "folder")), recursive=_switch(values.get("recursive"), True), videos=_switch(values.get("videos"), False)
    )


def _switch(value, default: bool) -> bool:
    return default if value is None else value in (True, "1", "true")
