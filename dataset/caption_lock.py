"""One job at a time writes the captions of a dataset's folder, across nodes and processes; a second one is told who is at it.

The lock is the operating system's: it goes with the process that holds it, however that ends. Edits in the review take
milliseconds and need none. Knows nothing about captions.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..training.errors import PistachioError
from .caption_history import HISTORY_FOLDER
from .files import atomic_write_text, write_error

log = logging.getLogger(__name__)

LOCK_FILE, OWNER_FILE = "captions.lock", "captions.owner.json"


@contextmanager
def writing_captions(folder: Path, *, by: str) -> Iterator[None]:
    """PistachioError when another job is writing captions there. `by`: the node's name."""
    place = Path(folder) / HISTORY_FOLDER
    lock = FileLock(str(place / LOCK_FILE))
    is_locked = True
    try:
        place.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PistachioError(
            f"The captions in '{folder}' are being written by {_owner(place)}. Wait until it has ended, or cancel it, and queue again: "
            "what has a caption by then is kept."
        ) from error
    except NotImplementedError as error:  # some network disks
        log.warning("'%s' can't be locked on this disk (%s): don't start a second captioner there.", folder, error)
        is_locked = False
    except OSError as error:
        raise write_error(place / LOCK_FILE, error) from error
    try:
        if (place / OWNER_FILE).exists():
            log.info("%s did not end properly: its lock on the captions in '%s' was taken over.", _owner(place), folder)
        record = {"by": by, "process": os.getpid(), "computer": platform.node(), "since_s": round(time.time())}
        atomic_write_text(place / OWNER_FILE, json.dumps(record))
        yield
    finally:
        _forget(place / OWNER_FILE)
        if is_locked:
            lock.release()


def _owner(place: Path) -> str:
    try:
        record = json.loads((place / OWNER_FILE).read_text(encoding="utf-8"))
        since = time.strftime("%H:%M", time.localtime(record["since_s"]))
        return f"{record['by']} (process {record['process']} on {record['computer']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):  # it has only just begun
        return "another process"


def _forget(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:  # the folder went away meanwhile
        log.info("'%s' could not be removed: %s", file, error)
