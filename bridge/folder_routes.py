"""HTTP for choosing a folder on the canvas.

GET /pistachio/folders: the places; ?at=... one level below a folder; ?beside=... the level that a folder lies on, with it chosen.
GET /pistachio/folder?folder=...: what is in one, and whether dropped pictures may go into it.
Owns what is told of a folder; what may be looked into is `folders.py`'s matter.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web
from comfy.cli_args import args

from ..dataset.browse import contents, subfolders
from ..training.errors import PistachioError
from .answers import answered
from .folders import allowed_roots, folder_name, picture_folder, upload_folder

NUM_FIRST = 4  # thumbnails of a folder in the list
NUM_SHOWN = 12  # and of the chosen one


def add_folder_routes(routes: web.RouteTableDef) -> None:
    routes.get("/pistachio/folders")(answered(get_folders))
    routes.get("/pistachio/folder")(answered(get_folder))


def get_folders(request: web.Request) -> dict:
    query = request.rel_url.query
    at, chosen = query.get("at", ""), ""
    if "beside" in query:
        at, chosen = _level_of(query["beside"])
    if not at:
        roots = list(dict.fromkeys(root for root in allowed_roots() if root.is_dir()))
        return {"at": "", "chosen": chosen, "trail": [], "itself": None, "folders": [told(root, folder_name(root)) for root in roots]}
    folder = picture_folder(at)
    below = subfolders(folder, _is_allowed)
    return {
        "at": folder_name(folder), "chosen": chosen, "trail": trail(folder), "itself": told(folder, folder.name),
        "folders": [told(path, path.name) for path in below],
    }


def get_folder(request: web.Request) -> dict:
    """A folder that can't be read is told with the reason, and where dropped files would go then."""
    text = request.rel_url.query.get("folder", "")
    try:
        upload_folder(text)
        takes_files = True
    except PistachioError:
        takes_files = False
    try:
        place = told(picture_folder(text), text, num_first=NUM_SHOWN) | {"exists": True}
    except PistachioError as error:
        place = {"folder": text, "exists": False, "problem": str(error)}
    return place | {"takes_files": takes_files, "max_bytes": round(args.max_upload_size * 1024 * 1024)}


def told(folder: Path, name: str, *, num_first: int = NUM_FIRST) -> dict:
    """JSON values. A folder that can't be listed is told as such among the others."""
    place = {"name": name, "folder": folder_name(folder.resolve())}
    try:
        found = contents(folder, num_first=num_first)
    except OSError as error:
        return place | {"problem": f"It can't be listed: {error.strerror}."}
    return place | {
        "num_pictures": found.num_pictures, "num_captioned": found.num_captioned, "num_videos": found.num_videos,
        "num_folders": found.num_folders, "first": [{"file": file, "v": v} for file, v in found.first], "is_cut": found.is_cut,
    }


def trail(folder: Path) -> list[dict]:
    """From the place that it lies in down to itself."""
    root = _root_of(folder)
    steps = [folder, *folder.parents]
    steps = steps[: steps.index(root) + 1]
    return [{"name": folder_name(step) if step == root else step.name, "at": folder_name(step)} for step in reversed(steps)]


def _level_of(text: str) -> tuple[str, str]:
    """(level to show, folder chosen on it) for what stands in a widget, which may lead nowhere."""
    try:
        folder = picture_folder(text)
    except PistachioError:
        return folder_name(allowed_roots()[0]), ""
    if folder in allowed_roots():
        return folder_name(folder), ""
    return folder_name(folder.parent), folder_name(folder)


def _root_of(folder: Path) -> Path:
    return max((root for root in allowed_roots() if folder.is_relative_to(root)), key=lambda root: len(root.parts))


def _is_allowed(path: Path) -> bool:
    return any(path.is_relative_to(root) for root in allowed_roots())
