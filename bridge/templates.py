"""The order of the pack's workflows in the host's template browser.

The host lists a pack's files as the disk happens to give them, and shows them in that order. This puts the pack's own
list in the order of its names, and touches no other pack's.
"""

from __future__ import annotations

import json
from pathlib import Path

from aiohttp import web
from server import PromptServer

PACK = Path(__file__).resolve().parents[1]
PATHS = ("/workflow_templates", "/api/workflow_templates")


def sorted_answer(answer: dict, pack: str) -> dict:
    return answer | {pack: sorted(answer[pack])} if pack in answer else answer


def name_of_pack() -> str:
    """What the host calls the pack: its folder below custom_nodes, which a link may name otherwise than the folder itself is."""
    import folder_paths

    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if path.resolve() == PACK:
                return path.name
    return PACK.name


@web.middleware
async def _middleware(request: web.Request, handler):
    response = await handler(request)
    if request.path in PATHS and isinstance(response, web.Response) and response.status == 200 and response.text:
        return web.json_response(sorted_answer(json.loads(response.text), name_of_pack()))
    return response


def sort_templates() -> None:
    """Before the server starts, which is when nodes are loaded; a second call adds nothing."""
    app = PromptServer.instance.app
    if _middleware not in app.middlewares:
        app.middlewares.append(_middleware)
