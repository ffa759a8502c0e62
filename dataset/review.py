"""A person's review of a dataset's pictures and captions: what there is to see, and every change that can be made.

Writes captions (through the history), `.review.json`, `.needs-review` and its own log, all in the dataset's folder, and
never a picture. Knows nothing about HTTP or nodes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..training.errors import PistachioError
from ..training.messages import counted, message
from .caption_history import CaptionHistory
from .caption_rewrite import reread_captions
from .captions import read_caption, read_caption_table
from .folder import list_pictures, name_list, plural
from .images import EXTENSIONS, UNSUPPORTED_EXTENSIONS
from .joycaption.needs_review import ReviewEntry, read_needs_review, update_needs_review
from .review_marks import EXCLUDED, HELD_OUT, MARKS, change_marks, read_marks
from .review_steps import ACCEPTED, BY, CAPTION, DO, REDO, UNDO, MarkLog, Step, stacks
from .types import Dataset
from .video import VIDEO_EXTENSIONS

MOST_LETTERS = 4_000  # of a caption in the list; the whole text is asked for when it is edited
MOST_CAPTION_BYTES = 1_000_000
REVIEWED_EXTENSIONS = EXTENSIONS | UNSUPPORTED_EXTENSIONS | VIDEO_EXTENSIONS
_changing = threading.RLock()  # one change at a time, whichever folder: each takes milliseconds


class CaptionConflict(PistachioError):
    """The caption file holds another text than the person saw."""

    def __init__(self, message: str, now: str | None):
        super().__init__(message)
        self.now = now


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewed:
    """One picture as the review shows it."""

    name: str  # relative path
    caption: str | None
    is_cut: bool = False  # the caption goes on
    is_from_table: bool = False  # the caption is in captions.json, not in a file of its own
    is_edited: bool = False
    is_excluded: bool = False
    is_held_out: bool = False
    reason: str = ""  # why a person should look at the caption; empty: there is none
    problem: str = ""  # why the caption can't be shown or changed
    version: str = ""  # another one when the picture's file changes


class Review:
    """Of one folder; cheap to make. Everything is read from the disk each time."""

    def __init__(self, folder: Path, *, recursive: bool = True, videos: bool = False):
        self.folder = Path(folder)
        self.recursive, self.videos = recursive, videos

    # ---- looking -----------------------------------------------------------------

    def pictures(self) -> list[Reviewed]:
        """All of them, the excluded ones too, in natural order; none is decoded."""
        return self.look()[0]

    def look(self) -> tuple[list[Reviewed], list[str]]:
        """The pictures, and sentences on what is not shown."""
        paths = list_pictures(self.folder, recursive=self.recursive, videos=self.videos)
        readable = [path for path in paths if _is_text(str(path))]
        count = len(paths) - len(readable)
        return self._shown(readable), [f"{plural(count, 'picture')} whose file names are not UTF-8 can't be shown. Rename them."] if count else []

    def caption(self, name: str) -> str | None:
        """The whole text."""
        path = self.path(name)
        text = self._sidecar(path)
        return text if text is not None else next(iter(read_caption_table(path.parent).get(path.name, ())), None)

    def path(self, name: str) -> Path:
        """The picture of this name; PistachioError for anything that is not a picture in the folder itself."""
        parts = name.split("/")
        path = self.folder / name
        if not name or "\0" in name or not _is_text(name) or any(part in ("", ".", "..") for part in parts):
            raise PistachioError(f"'{name[:200]}' is not the name of a picture in '{self.folder}'.")
        try:
            inside = path.parent.resolve().is_relative_to(self.folder.resolve())
            if inside and path.suffix.lower() in REVIEWED_EXTENSIONS and not path.name.startswith(".") and path.is_file():
                return path
        except OSError as error:  # a name that is too long
            raise PistachioError(f"'{name[:200]}' is not a usable name ({error.strerror}).") from error
        raise PistachioError(f"There is no picture '{name[:200]}' in '{self.folder}' any more. Reload the review.")

    def steps(self) -> tuple[str, str]:
        """In words: what Undo and Redo would do; empty for nothing."""
        done, undone = self._stacks(CaptionHistory(self.folder))
        return (_words(done[-1]) if done else ""), (_words(undone[-1]) if undone else "")

    # ---- changing ------------------------------------------------------------------

    def save_caption(self, name: str, text: str, *, seen: str | None) -> list[Reviewed]:
        """`seen`: what the person saw in the caption's own file, None for no file. Gives all pictures that share the caption.

        CaptionConflict when something else stands there by now: nothing is written then.
        """
        path = self.path(name)
        if "\0" in text or not _is_text(text):
            raise PistachioError("The caption holds signs that can't be saved as UTF-8 text. Take them out.")
        if len(text.encode("utf-8")) > MOST_CAPTION_BYTES:
            raise PistachioError(f"The caption of '{name}' has more than {MOST_CAPTION_BYTES // 1000} kB. Shorten it.")
        text = text.replace("\r\n", "\n").strip()
        with _changing:
            now = self._sidecar(path)
            if not (now is None and not text):  # an empty text is no reason to make a file
                self._write(path, text, seen=seen, turn=DO)
        return self._sharing(path)

    def mark(self, names: Iterable[str], mark: str, on: bool) -> list[Reviewed]:
        """Exclude, hold out, or accept the captions of these pictures (`accepted` can't be set off: undo it)."""
        paths = {name: self.path(name) for name in names}
        with _changing:
            if mark == ACCEPTED:
                entries = read_needs_review(self.folder)
                before = {name: asdict(entries[name]) for name in paths if name in entries}
                after: dict[str, object] = dict.fromkeys(before)
            elif mark in MARKS:
                marked = read_marks(self.folder).of(mark)
                before = {name: name in marked for name in paths if on != (name in marked)}
                after = dict.fromkeys(before, on)
            else:
                raise PistachioError(f"There is no mark '{mark}'. Use {', '.join((*MARKS, ACCEPTED))}.")
            if before:
                self._apply_marks(Step(kind=mark, turn=DO, time_s=_now(), before=before, after=after))
        return self._shown(paths.values())

    def undo(self) -> tuple[list[Reviewed], str]:
        """The pictures changed back and what was done, in words; nothing to undo gives none."""
        return self._turn(UNDO)

    def redo(self) -> tuple[list[Reviewed], str]:
        return self._turn(REDO)

    # ---- the steps -----------------------------------------------------------------

    def _turn(self, turn: str) -> tuple[list[Reviewed], str]:
        with _changing:
            history = CaptionHistory(self.folder)
            done, undone = self._stacks(history)
            stack = done if turn == UNDO else undone
            if not stack:
                return [], ""
            step = stack[-1]
            start, end = (step.after, step.before) if turn == UNDO else (step.before, step.after)
            if step.kind == CAPTION:
                (file,) = step.names
                path = self._caption_file(file)
                source = history.source_before(step.change) if turn == UNDO else None
                history.write({path: end[file]}, by=BY[turn], seen={path: start[file]}, sources={path: source}, overwrite_edited=True)
                return self._sharing(path), _words(step)
            self._apply_marks(Step(kind=step.kind, turn=turn, time_s=_now(), before=start, after=end))
            return self._shown(self.folder / name for name in step.names if (self.folder / name).is_file()), _words(step)

    def _stacks(self, history: CaptionHistory) -> tuple[list[Step], list[Step]]:
        """Without the steps at the top that something else has overtaken since."""
        done, undone = stacks(history, MarkLog(self.folder))
        while done and not self._holds(done[-1], done[-1].after):
            done.pop()
        while undone and not self._holds(undone[-1], undone[-1].before):
            undone.pop()
        return done, undone

    def _holds(self, step: Step, values) -> bool:
        if step.kind == CAPTION:
            (file,) = step.names
            try:
                return self._sidecar(self._caption_file(file)) == values[file]
            except PistachioError:
                return False  # not text any more
        if step.kind == ACCEPTED:
            entries = read_needs_review(self.folder)
            return all((name in entries) == (value is not None) for name, value in values.items())
        marked = read_marks(self.folder).of(step.kind)
        return all((name in marked) == value for name, value in values.items())

    def _apply_marks(self, step: Step) -> None:
        if step.kind == ACCEPTED:
            update_needs_review(self.folder, {name: entry and ReviewEntry(**entry) for name, entry in step.after.items()})
        else:
            change_marks(self.folder, step.kind, step.after)
        MarkLog(self.folder).append(step)

    # ---- captions ------------------------------------------------------------------

    def _caption_file(self, file: str) -> Path:
        path = self.folder / file
        if Path(file).is_absolute() or ".." in Path(file).parts or not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise PistachioError(f"The caption history names '{file}', which is not in '{self.folder}'.")
        return path

    def _write(self, picture: Path, text: str, *, seen: str | None, turn: str) -> None:
        path = picture.with_suffix(".txt")
        written = CaptionHistory(self.folder).write({path: text}, by=BY[turn], seen={path: seen}, overwrite_edited=True)
        if written.differing:
            raise CaptionConflict(f"The caption of '{picture.name}' was changed by something else meanwhile. Nothing was overwritten.", read_caption(path))

    def _sidecar(self, path: Path) -> str | None:
        """The text of the caption file; never of one that a link leads to outside the folder."""
        path = path.with_suffix(".txt")
        if os.path.islink(path) and not path.resolve().is_relative_to(self.folder.resolve()):
            raise PistachioError(f"'{path.name}' is a link that leads out of the dataset's folder. Put a file of its own there.")
        return read_caption(path)

    def _sharing(self, caption_or_picture: Path) -> list[Reviewed]:
        """The pictures of one stem: they have one caption file."""
        stem = caption_or_picture.stem
        return self._shown(
            path for path in sorted(caption_or_picture.parent.iterdir())
            if path.stem == stem and path.suffix.lower() in REVIEWED_EXTENSIONS and path.is_file()
        )

    # ---- what is shown -------------------------------------------------------------

    def _shown(self, paths: Iterable[Path]) -> list[Reviewed]:
        marks, history, to_look_at = read_marks(self.folder), CaptionHistory(self.folder), read_needs_review(self.folder)
        tables: dict[Path, dict | str] = {}
        shown = []
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            try:
                status = path.stat()
            except OSError:
                continue  # taken away meanwhile, or a broken link
            caption, problem, is_from_table = None, "", False
            try:
                caption = self._sidecar(path)
                if caption is None:
                    if path.parent not in tables:
                        tables[path.parent] = read_caption_table(path.parent)
                    caption = next(iter(tables[path.parent].get(path.name, ())), None)
                    is_from_table = caption is not None
            except PistachioError as error:
                problem = str(error)
            entry = to_look_at.get(name)
            shown.append(Reviewed(
                name=name, caption=caption if caption is None else caption[:MOST_LETTERS], is_cut=len(caption or "") > MOST_LETTERS,
                is_from_table=is_from_table, is_edited=bool(history.changes) and not is_from_table and history.is_edited(path.with_suffix(".txt"), caption),
                is_excluded=name in marks.excluded, is_held_out=name in marks.held_out, reason=entry.reason if entry else "",
                problem=problem, version=f"{status.st_mtime_ns:x}-{status.st_size:x}",
            ))
        return shown


def apply_review(dataset: Dataset) -> Dataset:
    """The dataset without the excluded pictures, with the held-out marks and with the captions that are on the disk now."""
    marks = read_marks(dataset.folder)
    kept = tuple(picture for picture in dataset.pictures if picture.relative_path not in marks.excluded)
    if not kept:
        raise PistachioError(f"All {len(dataset.pictures)} pictures are excluded in the review. Include some of them on Review Dataset.")
    notes = []
    dropped = [picture.relative_path for picture in dataset.pictures if picture.relative_path in marks.excluded]
    if dropped:
        notes.append(counted(
            "review.excluded", len(dropped), "{count} picture excluded and left out: {names}.", "{count} pictures excluded and left out: {names}.", names=name_list(dropped),
        ))
    held_out = tuple(dict.fromkeys(picture.relative_path for picture in kept if picture.relative_path in marks.held_out))
    if held_out:
        notes.append(counted(
            "review.held_out", len(held_out), "{count} picture marked to be held out: {names}.", "{count} pictures marked to be held out: {names}.",
            names=name_list(list(held_out)),
        ))
    current = reread_captions(replace(dataset, pictures=kept))
    changed = sum(1 for before, after in zip(kept, current.pictures) if before.caption != after.caption)
    if changed:
        notes.append(counted(
            "review.changed", changed, "{count} caption taken as it is on the disk now.", "{count} captions taken as they are on the disk now.",
        ))
    split = dataset.split
    if split is not None:
        there = {picture.content_hash for picture in kept}
        split = replace(split, train=tuple(h for h in split.train if h in there), held_out=tuple(h for h in split.held_out if h in there))
        if held_out:
            notes.append(message(
                "review.split_before", "The set is split already, so the held-out marks change nothing here. Connect Review Dataset before Split Dataset.",
            ))
    return replace(current, split=split, held_out_marks=held_out, notes=(*dataset.notes, *notes))


def to_look_at(dataset: Dataset) -> int:
    """How many captions wait for a person."""
    names = {picture.relative_path for picture in dataset.pictures}
    return sum(1 for name in read_needs_review(dataset.folder) if name in names)


_NOUNS = {CAPTION: "the caption of", ACCEPTED: "accepting", EXCLUDED: "excluding", HELD_OUT: "holding out"}
_OPPOSITES = {EXCLUDED: "including", HELD_OUT: "not holding out"}


def _words(step: Step) -> str:
    """'excluding a.png', 'the caption of b.txt'."""
    noun = _NOUNS[step.kind] if step.kind not in _OPPOSITES or all(step.after.values()) else _OPPOSITES[step.kind]
    return f"{noun} {name_list(list(step.names))}"


def _is_text(text: str) -> bool:
    """No half signs: a name that is not UTF-8 on the disk, or a half emoji."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _now() -> float:
    return round(time.time(), 3)
