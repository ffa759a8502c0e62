"""The pack's scripts are asked for anew when a page is opened.

The host says so of `.js` files and not of `.mjs`, which a browser would then keep for days: after an update of the pack,
old and new scripts would meet on one page.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from aiohttp import web
from server import PromptServer

from .templates import name_of_pack


async def _say_so(request: web.Request, response: web.StreamResponse) -> None:
    # A file of the host's own folders is no business of this pack's.
    if request.path.endswith(".mjs") and PurePosixPath(request.path).is_relative_to(f"/extensions/{name_of_pack()}"):
        response.headers.setdefault("Cache-Control", "no-cache")


def keep_scripts_fresh() -> None:
    """Before the server starts, which is when nodes are loaded; a second call adds nothing."""
    signal = PromptServer.instance.app.on_response_prepare
    if _say_so not in signal:
        signal.append(_say_so)
