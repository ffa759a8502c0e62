"""What Pistachio wrote into a dataset's caption files, and the text that stood there before.

Owns `.pistachio/caption_history.jsonl` in the dataset's folder: appended before a file is changed,
never rewritten. From it follow whose text a file holds now, and how to go back. Knows nothing about rules or captioners.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..training.errors import PistachioError
from .captions import read_caption
from .files import atomic_write_text, write_error

log = logging.getLogger(__name__)

HISTORY_FOLDER, HISTORY_FILE = ".pistachio", "caption_history.jsonl"
REVIEW, UNDONE, REDONE, GOING_BACK = "Review", "Review, undone", "Review, redone", "going back"
RESTORING = (UNDONE, REDONE, GOING_BACK)  # these put a text back that somebody wrote before
_lock = threading.Lock()  # two nodes of one ComfyUI; two processes are kept apart by O_APPEND


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One file of one change."""

    number: int  # 1, 2, ...: all files written together share it
    file: str  # from the dataset's folder, with forward slashes
    by: str  # "Caption Rules", "Caption Dataset", "Review", ...
    before: str | None  # None: there was no file
    after: str | None  # None: the file was removed
    source: str | None  # what `after` was made from; None: from nothing but the picture
    time_s: float  # seconds since 1970


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a set of files."""

    number: int | None  # None: nothing had to be changed
    changed: tuple[str, ...]
    edited: tuple[str, ...]  # left alone, as a person wrote them
    differing: tuple[str, ...] = ()  # left alone, as they don't hold the text that the caller saw


class CaptionHistory:
    """Reads the whole file once when made; two of one folder may be open at once, each sees what the other had written before."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.path = self.folder / HISTORY_FOLDER / HISTORY_FILE
        self.changes: list[Change] = []
        self._of_file: dict[str, list[Change]] = {}
        self._read()

    # ---- whose text is it -----------------------------------------------------

    def is_edited(self, path: Path, text: str | None) -> bool:
        """We wrote this file once and something else stands there now, or it was written in the review: a person's text."""
        changes = self._of_file.get(self._name(path))
        if not changes or text is None:
            return False
        # `before` too: a kill between the line in the history and the file leaves the old text
        return text not in (changes[-1].after, changes[-1].before) or _is_persons(changes, text)

    def source(self, path: Path, text: str | None) -> str | None:
        """What rules start from: the text before our own rules where ours stands, else the text itself."""
        changes = self._of_file.get(self._name(path))
        return changes[-1].source if changes and changes[-1].after == text and changes[-1].source is not None else text

    # ---- writing -----------------------------------------------------------------

    def write(
        self,
        texts: Mapping[Path, str | None],
        *,
        by: str,
        sources: Mapping[Path, str | None] | None = None,  # what each text was made from
        seen: Mapping[Path, str | None] | None = None,  # what the caller believes each file to hold; another text is not replaced
        overwrite_edited: bool = False,
        check_interrupted: Callable[[], None] = lambda: None,
    ) -> Written:
        """Write each file, atomically, after its old text is safe in the history. None removes a file.

        A file that a person edited since we wrote it is left alone unless `overwrite_edited`; a file that already holds the text is not touched.
        """
        number = self.changes[-1].number + 1 if self.changes else 1
        changed, edited, differing = [], [], []
        for path, text in texts.items():
            check_interrupted()  # what is written so far stays, and can be gone back on
            text = None if text is None else text.strip()
            now = read_caption(path)  # not what was read when the graph began
            if now == text:
                continue
            name = self._name(path)
            if seen is not None and now != seen.get(path):
                differing.append(name)
                continue
            if not overwrite_edited and self.is_edited(path, now):
                edited.append(name)
                continue
            source = (sources or {}).get(path)
            change = Change(number=number, file=name, by=by, before=now, after=text, source=source, time_s=round(time.time(), 3))
            self._append(change)
            if text is None:
                _remove(path)
            else:
                atomic_write_text(path, text + "\n")
            changed.append(name)
        return Written(number=number if changed else None, changed=tuple(changed), edited=tuple(edited), differing=tuple(differing))

    def restore_before(self, number: int, *, overwrite_edited: bool = False) -> Written:
        """Every file as it was before change `number`. Going back is a change too, so it can be gone back on."""
        if not 1 <= number <= self.last_number:
            there = f"There are changes 1 to {self.last_number}" if self.changes else "No caption was changed yet"
            raise PistachioError(f"There is no change {number} of the captions in '{self.folder}'. {there}. Write one of them on Caption History, or 0 to change nothing.")
        first: dict[str, Change] = {}
        for change in self.changes:
            if change.number >= number:
                first.setdefault(change.file, change)
        texts = {self._path(change.file): change.before for change in first.values()}
        sources = {self._path(change.file): self.source_before(change) for change in first.values()}
        return self.write(texts, by=GOING_BACK, sources=sources, overwrite_edited=overwrite_edited)

    def source_before(self, change: Change) -> str | None:
        """What the restored text had been made from, so that rules start there again."""
        earlier = [c for c in self.changes if c.file == change.file and c.number < change.number and c.after == change.before]
        return earlier[-1].source if earlier else None

    @property
    def last_number(self) -> int:
        return self.changes[-1].number if self.changes else 0

    def by_number(self) -> dict[int, list[Change]]:
        found: dict[int, list[Change]] = {}
        for change in self.changes:
            found.setdefault(change.number, []).append(change)
        return found

    # ---- the file -----------------------------------------------------------------

    def _name(self, path: Path) -> str:
        return Path(path).relative_to(self.folder).as_posix()

    def _path(self, name: str) -> Path:
        path = self.folder / name
        # a history that somebody edited must not lead out of the dataset
        if Path(name).is_absolute() or ".." in Path(name).parts or not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise PistachioError(f"The caption history names '{name}', which is not in '{self.folder}'. Remove '{self.path}' to begin a new history.")
        return path

    def _check_place(self) -> None:
        if self.path.parent.is_symlink() or self.path.is_symlink():
            raise PistachioError(f"'{self.path}' is a link. Remove it: the history of captions is kept in the dataset's own folder.")

    def _read(self) -> None:
        self._check_place()
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise PistachioError(f"The caption history '{self.path}' can't be read: {error.strerror or error}. Check the file's permissions.") from error
        torn = 0
        for line in text.split("\n"):
            if line.strip():
                try:
                    self._add(Change(**json.loads(line)))
                except (ValueError, TypeError):
                    torn += 1  # a write that was killed halfway: its caption file was not touched yet
        if torn:
            log.warning("%d unreadable lines in '%s' were passed over.", torn, self.path)

    def _add(self, change: Change) -> None:
        self.changes.append(change)
        self._of_file.setdefault(change.file, []).append(change)

    def _append(self, change: Change) -> None:
        self._check_place()
        values = {name: getattr(change, name) for name in Change.__dataclass_fields__}
        # The line break before it ends a line that a kill may have torn.
        line = ("\n" + json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        try:
            with _lock:
                self.path.parent.mkdir(exist_ok=True)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
                try:
                    while line:
                        line = line[os.write(descriptor, line) :]
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._add(change)


def _is_persons(changes: list[Change], text: str) -> bool:
    """Did a person write `text`, in the review or outside? `changes` are all of one file."""
    for change in reversed(changes):
        if change.after == text and change.by not in RESTORING:
            return change.by == REVIEW
    # None of us wrote it. It is what stood there at first, or came between two changes.
    return any(change.before == text for change in changes[1:]) and changes[0].before != text


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def history_words(history: CaptionHistory, *, most: int = 20) -> Iterable[str]:
    """One sentence a change, the newest last."""
    for number, changes in list(history.by_number().items())[-most:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changes[0].time_s))
        files = f"{len(changes)} file" + ("" if len(changes) == 1 else "s")
        yield f"Change {number}, {when}, {changes[0].by}: {files}."
