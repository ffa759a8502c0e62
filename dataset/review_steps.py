"""What was done in the review of a folder, and what of it can be undone and redone, across restarts.

Captions are in the caption history; marks are appended to `.pistachio/review_history.jsonl`. Both are replayed in the
order of their times. Knows nothing about how a step is applied.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..training.errors import PistachioError
from .caption_history import HISTORY_FOLDER, REDONE, REVIEW, UNDONE, CaptionHistory, Change
from .files import write_error

log = logging.getLogger(__name__)

FILE_NAME = "review_history.jsonl"
DO, UNDO, REDO = "do", "undo", "redo"
CAPTION, ACCEPTED = "caption", "accepted"
CAPTION_TURNS = {REVIEW: DO, UNDONE: UNDO, REDONE: REDO}
BY = {turn: by for by, turn in CAPTION_TURNS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    kind: str  # CAPTION, ACCEPTED or one of review_marks.MARKS
    turn: str  # DO, UNDO or REDO
    time_s: float  # seconds since 1970
    before: Mapping[str, object]  # by file: the text, whether it was marked, or the entry of the list to look at
    after: Mapping[str, object]
    change: Change | None = None  # of a caption

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.after)


class MarkLog:
    """Reads the whole file when made."""

    def __init__(self, folder: Path):
        self.path = Path(folder) / HISTORY_FOLDER / FILE_NAME
        self.steps: list[Step] = []
        self._check_place()
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise PistachioError(f"'{self.path}' can't be read: {error.strerror or error}. Check the file's permissions.") from error
        for line in text.split("\n"):
            if line.strip():
                try:
                    self.steps.append(Step(**json.loads(line)))
                except (ValueError, TypeError):
                    log.warning("An unreadable line in '%s' was passed over.", self.path)  # a write that was killed halfway

    def append(self, step: Step) -> None:
        self._check_place()
        values = {name: getattr(step, name) for name in ("kind", "turn", "time_s", "before", "after")}
        line = ("\n" + json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8")
        try:
            self.path.parent.mkdir(exist_ok=True)
            with open(self.path, "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error
        self.steps.append(step)

    def _check_place(self) -> None:
        if self.path.parent.is_symlink() or self.path.is_symlink():
            raise PistachioError(f"'{self.path}' is a link. Remove it: the history of the review is kept in the dataset's own folder.")


def stacks(history: CaptionHistory, marks: MarkLog) -> tuple[list[Step], list[Step]]:
    """What can be undone and what can be redone, the next one last."""
    captions = [
        Step(
            kind=CAPTION, turn=CAPTION_TURNS[change.by], time_s=change.time_s, before={change.file: change.before},
            after={change.file: change.after}, change=change,
        )
        for change in history.changes if change.by in CAPTION_TURNS
    ]
    done: list[Step] = []
    undone: list[Step] = []
    for step in sorted([*captions, *marks.steps], key=lambda step: step.time_s):
        if step.turn == DO:
            done.append(step)
            undone.clear()
        elif step.turn == UNDO and done:
            undone.append(done.pop())
        elif step.turn == REDO and undone:
            done.append(undone.pop())
    return done, undone
