"""The list of captions that a person should look at: `.needs-review` in the dataset's folder.

A JSON object from a picture's relative path to why, and to the caption as it was then (null: none was saved). An entry
whose caption has been changed since counts as reviewed. Knows nothing of models.
"""

from __future__ import annotations

import json
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

from ..captions import read_caption
from ..files import atomic_write_text

log = logging.getLogger(__name__)

FILE_NAME = ".needs-review"
_writing = threading.Lock()  # two captioners in one process


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewEntry:
    reason: str
    caption: str | None  # as saved; None: the picture got none


def read_needs_review(folder: Path) -> dict[str, ReviewEntry]:
    """Relative path -> entry, for pictures whose caption is still as it was when it was marked."""
    return {name: entry for name, entry in _read(folder).items() if _caption_of(folder, name) == entry.caption}


def update_needs_review(folder: Path, changes: Mapping[str, ReviewEntry | None]) -> None:
    """Add or replace entries; None takes one out. The file goes when its last entry does."""
    if not changes:
        return
    with _writing:
        before = _read(folder)
        entries = {name: entry for name, entry in {**before, **changes}.items() if entry is not None}
        if entries == before:
            return
        if not entries:
            (folder / FILE_NAME).unlink(missing_ok=True)
            return
        record = {name: {"reason": entry.reason, "caption": entry.caption} for name, entry in sorted(entries.items())}
        atomic_write_text(folder / FILE_NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def _read(folder: Path) -> dict[str, ReviewEntry]:
    file = folder / FILE_NAME
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {name: ReviewEntry(reason=str(entry["reason"]), caption=entry["caption"]) for name, entry in record.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("'%s' can't be read (%s): it is written anew.", file, error)
        return {}


def _caption_of(folder: Path, relative_path: str) -> str | None:
    return read_caption((folder / relative_path).with_suffix(".txt")) or None
