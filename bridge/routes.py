"""HTTP: every route of the pack, and small previews of pictures.

GET /pistachio/thumbnail?file=...&size=..., with &folder=... for a picture of a reviewed folder. Files are read in a thread,
so that a large one never stalls the server.
"""

from __future__ import annotations

import asyncio
import functools
from io import BytesIO
from pathlib import Path

from aiohttp import web
from PIL import ImageOps
from server import PromptServer

from ..dataset.images import read_rgb
from ..training.errors import PistachioError
from .captioner_routes import add_captioner_routes
from .folder_routes import add_folder_routes
from .folders import allowed_file
from .history_routes import add_history_routes
from .kept_bytes import KeptBytes
from .review_routes import add_review_routes, reviewed_file
from .run_routes import add_run_routes
from .upload_routes import add_upload_routes

MAX_THUMBNAIL_PX = 1024
KEPT_BYTES = 128_000_000  # some 15,000 small ones, or 800 large ones: scrolling back decodes nothing

_kept = KeptBytes(KEPT_BYTES)


def add_routes() -> None:
    """Once, before the host builds its application."""
    routes = PromptServer.instance.routes
    routes.get("/pistachio/thumbnail")(get_thumbnail)
    add_run_routes(routes)
    add_history_routes(routes)
    add_review_routes(routes)
    add_folder_routes(routes)
    add_upload_routes(routes)
    add_captioner_routes(routes)


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
    return web.Response(body=picture, content_type="image/jpeg", headers={"Cache-Control": f"private, max-age={86_400 if 'v' in query else 60}"})


def thumbnail(file: str, size_px: int) -> bytes:
    return small_picture(allowed_file(file), size_px)


def small_picture(file: Path, size_px: int) -> bytes:
    """JPEG."""
    status = file.stat()
    return _kept.get((str(file), status.st_mtime_ns, status.st_size, size_px), lambda: _jpeg(file, size_px))


def _jpeg(file: Path, size_px: int) -> bytes:
    image = ImageOps.contain(read_rgb(file), (size_px, size_px))
    data = BytesIO()
    image.save(data, format="JPEG", quality=85)
    return data.getvalue()
