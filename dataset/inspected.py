"""What was found out about picture files before, so that a restart does not decode 10,000 of them again.

One line of JSON a file, appended; a line that a kill cut short is passed over and written anew.
Knows a file by path, time and size, and nothing of what the record means.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from .files import write_error

log = logging.getLogger(__name__)

FLUSH_RECORDS = 200  # lost at most by a kill


class InspectedFiles:
    """Records by (path, mtime_ns, size_bytes); `close` writes what is new."""

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[tuple, list] = {}
        self._new: list[str] = []
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        except OSError as error:
            log.warning("'%s' can't be read (%s): the pictures are decoded again.", path, error)
            lines = []
        for line in lines:
            try:
                file, mtime_ns, size_bytes, *record = json.loads(line)
            except (ValueError, TypeError):
                continue  # cut short
            self._known[file, mtime_ns, size_bytes] = record

    def get(self, key: tuple[str, int, int]) -> list | None:
        return self._known.get(key)

    def put(self, key: tuple[str, int, int], record: list) -> None:
        self._known[key] = record
        self._new.append(json.dumps([*key, *record]))
        if len(self._new) >= FLUSH_RECORDS:
            self.close()

    def close(self) -> None:
        if not self._new:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab") as file:
                # a new line first: the last one may have been cut short
                file.write(("\n" + "\n".join(self._new) + "\n").encode("utf-8"))
        except OSError as error:
            raise write_error(self.path, error) from error
        self._new.clear()
