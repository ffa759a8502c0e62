"""What lies in a folder, for a person who chooses one: pictures, captions, videos and the first few names.

Counted from directory listings alone, with what was counted kept until a directory changes; decodes nothing. Knows nothing of
which folders may be looked into.
"""

from __future__ import annotations

import functools
import heapq
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ..training.errors import PistachioError
from .captions import CAPTION_TABLE, read_caption_table
from .folder import MASK_ENDING, MASK_FOLDER, natural_key
from .images import EXTENSIONS
from .video import VIDEO_EXTENSIONS

MOST_ENTRIES = 60_000  # looked at below one folder: more is told as "more than"
MOST_DIRECTORIES = 4_000
KEPT_DIRECTORIES = 20_000
SETTLED_NS = 2_000_000_000  # a directory that changed just now may change again within the same tick of its clock


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """Of a folder with all that is below it."""

    num_pictures: int
    num_captioned: int
    num_videos: int
    num_folders: int  # directly in it
    first: tuple[tuple[str, str], ...]  # (path below the folder, a version that changes with the file)
    is_cut: bool  # there is more than was counted


@dataclass(frozen=True, slots=True)
class _Directory:
    pictures: int
    captioned: int
    videos: int
    first: tuple[str, ...]
    folders: tuple[str, ...]
    entries: int


def contents(folder: Path, *, num_first: int = 4) -> Contents:
    """OSError where the folder itself can't be listed; what can't be below it is passed over."""
    pictures = captioned = videos = entries = directories = 0
    first: list[str] = []
    top = _directory(folder, num_first)
    waiting = [("", top)]
    is_cut = False
    while waiting:
        below, found = waiting.pop()
        directories += 1
        entries += found.entries
        pictures += found.pictures
        captioned += found.captioned
        videos += found.videos
        first += [below + name for name in found.first]
        for name in reversed(found.folders):
            if entries > MOST_ENTRIES or directories + len(waiting) >= MOST_DIRECTORIES:
                is_cut = True
                break
            if name == MASK_FOLDER and found.pictures:
                continue
            try:
                waiting.append((f"{below}{name}/", _directory(folder / below / name, num_first)))
            except OSError:
                continue
    shown = heapq.nsmallest(num_first, first, key=natural_key)
    return Contents(
        num_pictures=pictures, num_captioned=captioned, num_videos=videos, num_folders=len(top.folders),
        first=tuple((name, version(folder / name)) for name in shown), is_cut=is_cut,
    )


def subfolders(folder: Path, is_allowed: Callable[[Path], bool]) -> list[Path]:
    """Natural order, without hidden ones. A link is one where it leads to an allowed folder."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_dir():
                continue
            path = Path(entry.path)
            if not entry.is_symlink() or is_allowed(path.resolve()):
                found.append(path)
    return sorted(found, key=lambda path: natural_key(path.name))


def version(file: Path) -> str:
    try:
        status = file.stat()
    except OSError:
        return ""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def _directory(path: Path, num_first: int) -> _Directory:
    changed_ns = path.stat().st_mtime_ns
    if time.time_ns() - changed_ns < SETTLED_NS:
        return _list(path, num_first)
    return _kept(str(path), changed_ns, num_first)


@functools.lru_cache(maxsize=KEPT_DIRECTORIES)
def _kept(path: str, changed_ns: int, num_first: int) -> _Directory:
    return _list(Path(path), num_first)


def _list(path: Path, num_first: int) -> _Directory:
    pictures, videos, texts, folders, entries = [], [], set(), [], 0
    with os.scandir(path) as listing:
        for entry in listing:
            entries += 1
            name = entry.name
            if name.startswith("."):
                continue
            stem, suffix = os.path.splitext(name)
            suffix = suffix.lower()
            if suffix in EXTENSIONS:
                pictures.append(name)
            elif suffix in VIDEO_EXTENSIONS:
                videos.append(name)
            elif suffix == ".txt":
                texts.add(stem)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(name)
    stems = {os.path.splitext(name)[0] for name in (*pictures, *videos)}
    pictures = [name for name in pictures if not _is_mask(os.path.splitext(name)[0], stems)]
    named = _table_names(path) if entries else frozenset()
    captioned = sum(1 for name in (*pictures, *videos) if os.path.splitext(name)[0] in texts or name in named)
    first = heapq.nsmallest(num_first, pictures, key=natural_key)
    return _Directory(len(pictures), captioned, len(videos), tuple(first), tuple(sorted(folders, key=natural_key)), entries)


def _is_mask(stem: str, stems: set[str]) -> bool:
    return stem.endswith(MASK_ENDING) and stem.removesuffix(MASK_ENDING) in stems


def _table_names(path: Path) -> frozenset[str]:
    if not (path / CAPTION_TABLE).is_file():
        return frozenset()
    try:
        return frozenset(read_caption_table(path))
    except PistachioError:
        return frozenset()  # a damaged table captions nothing; Load Image Folder says what is wrong with it
