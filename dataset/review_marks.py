"""Which pictures of a dataset are excluded and which are held out by hand: `.review.json` in its folder.

A JSON object with two lists of relative paths. Names whose picture is gone stay in it: the picture may come back.
Knows nothing about captions or about who shows the marks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..training.errors import PistachioError
from .files import atomic_write_text

FILE_NAME = ".review.json"
EXCLUDED, HELD_OUT = "excluded", "held_out"
MARKS = (EXCLUDED, HELD_OUT)
_writing = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class Marks:
    excluded: frozenset[str] = frozenset()  # relative paths, with forward slashes
    held_out: frozenset[str] = frozenset()

    def of(self, mark: str) -> frozenset[str]:
        return {EXCLUDED: self.excluded, HELD_OUT: self.held_out}[mark]


def read_marks(folder: Path) -> Marks:
    """Without a file nothing is marked. PistachioError for one that can't be read: an excluded picture would be trained on."""
    path = folder / FILE_NAME
    _check_place(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        lists = {mark: record.get(mark, []) for mark in MARKS}
        wrong = [mark for mark, names in lists.items() if not isinstance(names, list) or not all(isinstance(name, str) for name in names)]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is no list of names")
    except FileNotFoundError:
        return Marks()
    except (OSError, ValueError, AttributeError) as error:
        raise PistachioError(
            f"'{path}' can't be read ({error}). It says which pictures are excluded from training: correct it, or delete it to include every picture."
        ) from error
    return Marks(excluded=frozenset(lists[EXCLUDED]), held_out=frozenset(lists[HELD_OUT]))


def change_marks(folder: Path, mark: str, changes: Mapping[str, bool]) -> dict[str, bool]:
    """Set or clear a mark on pictures; returns those that had it the other way, with how it was."""
    with _writing:
        marks = read_marks(folder)
        names = set(marks.of(mark))
        before = {name: name in names for name, on in changes.items() if on != (name in names)}
        if before:
            names.symmetric_difference_update(before)
            record = {one: sorted(names if one == mark else marks.of(one)) for one in MARKS}
            atomic_write_text(folder / FILE_NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return before


def _check_place(path: Path) -> None:
    if path.is_symlink():
        raise PistachioError(f"'{path}' is a link. Remove it: the marks of the review are kept in the dataset's own folder.")
