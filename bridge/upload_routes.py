"""HTTP for files dropped on the canvas.

POST /pistachio/upload?folder=...&path=...: one file's bytes, as application/octet-stream from this server's own pages alone;
&videos=1 where the node takes videos, &exact=1 for a file that belongs to another of the same name.
Owns the stream and its limits; what is taken, and under which name, is `dataset/uploads.py`'s matter.
"""

from __future__ import annotations

import asyncio

from aiohttp import web
from comfy.cli_args import args

from ..dataset.uploads import Arrival, Taken
from ..training.errors import PistachioError
from ..training.messages import as_json
from .answers import BYTES, answered
from .folders import folder_name, upload_folder

BLOCK_BYTES = 1 << 20


def add_upload_routes(routes: web.RouteTableDef) -> None:
    routes.post("/pistachio/upload")(answered(post_upload, takes=BYTES))


async def post_upload(request: web.Request) -> dict:
    query = request.rel_url.query
    folder = await asyncio.to_thread(upload_folder, query.get("folder", ""))
    arrival = Arrival(
        folder, query.get("path", ""), videos=query.get("videos") == "1", exact=query.get("exact") == "1", size_bytes=request.content_length,
        max_bytes=round(args.max_upload_size * 1024 * 1024),  # what ComfyUI itself takes
    )
    taken = await _received(request, arrival)
    return {"state": taken.state, "name": taken.name, "words": taken.words, "words_message": as_json(taken.words), "folder": folder_name(folder)}


async def _received(request: web.Request, arrival: Arrival) -> Taken:
    await asyncio.to_thread(arrival.__enter__)
    try:
        waiting = bytearray()
        async for chunk in request.content.iter_any():
            waiting += chunk
            if len(waiting) >= BLOCK_BYTES:
                await asyncio.to_thread(arrival.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(arrival.write, bytes(waiting))
        return await asyncio.to_thread(arrival.finish)
    except (ConnectionError, web.PayloadAccessError, asyncio.IncompleteReadError) as error:
        raise PistachioError(f"'{arrival.name}' arrived cut short ({error}). Drop it again.") from error
    finally:
        # Also where the page is gone and the request with it.
        arrival.__exit__()
