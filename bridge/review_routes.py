"""HTTP for the review of a dataset: what there is to see, and each change of a caption or mark.

GET /pistachio/review?folder=..., /pistachio/review/caption?folder=...&name=..., /pistachio/review/findings?folder=...
POST /pistachio/review/caption, /mark, /undo, /redo: JSON from this server's own pages alone.
Owns who may ask and which folder is meant; what a change does is `dataset/review.py`'s matter.
"""

from __future__ import annotations

import asyncio
import functools
import json
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from ..dataset.review import CaptionConflict, Review, Reviewed
from ..training.errors import PistachioError
from .folders import allowed_roots, picture_folder
from .answers import answered, json_body, text_of
from .review_findings import FindingsAsked, findings

MAX_NAMES = 20_000  # in one change of marks


def add_review_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/review")(answered(get_review))
    routes.get("/pistachio/review/caption")(answered(get_caption))
    routes.get("/pistachio/review/findings")(answered(get_findings))
    routes.post("/pistachio/review/caption")(answered(post_caption))
    routes.post("/pistachio/review/mark")(answered(post_mark))
    routes.post("/pistachio/review/undo")(answered(functools.partial(post_turn, turn="undo")))
    routes.post("/pistachio/review/redo")(answered(functools.partial(post_turn, turn="redo")))


def reviewed_file(folder: str, name: str) -> Path:
    """A picture of a reviewed folder; a link that leads out of the allowed roots is none."""
    path = Review(picture_folder(folder)).path(name).resolve()
    if not any(path.is_relative_to(root) for root in allowed_roots()):
        raise PistachioError(f"'{name}' is a link that leads out of the folders that Pistachio may read.")
    return path


# ---- looking ------------------------------------------------------------------


def get_review(request: web.Request) -> dict:
    review = _review(request.rel_url.query)
    pictures, notes = review.look()
    undo, redo = review.steps()
    return {"folder": str(review.folder), "pictures": [shown(picture) for picture in pictures], "notes": notes, "undo": undo, "redo": redo}


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
    body = await json_body(request)
    name, text, seen = text_of(body, "name"), text_of(body, "text"), body.get("seen")
    if seen is not None and not isinstance(seen, str):
        raise PistachioError("'seen' is no text.")
    try:
        return await asyncio.to_thread(lambda: _changed(review := _review(body), review.save_caption(name, text, seen=seen)))
    except CaptionConflict as conflict:
        answer = json.dumps({"error": str(conflict), "now": conflict.now})
        raise web.HTTPConflict(text=answer, content_type="application/json") from conflict


async def post_mark(request: web.Request) -> dict:
    body = await json_body(request)
    names, mark, on = body.get("names"), text_of(body, "mark"), body.get("on")
    if not isinstance(names, list) or len(names) > MAX_NAMES or not all(isinstance(name, str) for name in names) or not isinstance(on, bool):
        raise PistachioError("A mark takes 'names', a list of pictures, and 'on', true or false.")
    return await asyncio.to_thread(lambda: _changed(review := _review(body), review.mark(names, mark, on)))


async def post_turn(request: web.Request, *, turn: str) -> dict:
    body = await json_body(request)

    def change() -> dict:
        review = _review(body)
        pictures, words = review.undo() if turn == "undo" else review.redo()
        return _changed(review, pictures) | {"words": words}

    return await asyncio.to_thread(change)


def _changed(review: Review, pictures: list[Reviewed]) -> dict:
    undo, redo = review.steps()
    return {"pictures": [shown(picture) for picture in pictures], "undo": undo, "redo": redo}


# ---- asking -------------------------------------------------------------------


def _review(values) -> Review:
    """From a query or a body: `folder`, and whether subfolders and videos are shown too."""
    return Review(
        picture_folder(text_of(dict(values), "folder")), recursive=_switch(values.get("recursive"), True), videos=_switch(values.get("videos"), False)
    )


def _switch(value, default: bool) -> bool:
    return default if value is None else value in (True, "1", "true")
