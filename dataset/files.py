"""Writing files so that a kill, a full disk or a read-only folder never leaves half of one.

Owns the temporary-file, fsync, rename sequence and the sentences for its failures.
Knows nothing about what is written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from pathlib import Path

from ..training.errors import PistachioError

TEMPORARY_SUFFIX = ".pistachio-tmp"
STALE_SECONDS = 24 * 3600  # an older temporary file belongs to a process that was killed


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` with `data`, or leave it as it was and raise PistachioError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:
            pass  # the folder went away or is read-only: nothing is left there to remove


def atomic_write_text(path: Path, text: str) -> None:
    """As `atomic_write_bytes`: UTF-8, line ends as given."""
    atomic_write_bytes(path, text.encode("utf-8"))


def write_error(path: Path, error: OSError) -> PistachioError:
    """The sentence for a failed write: what, where, and what to change."""
    folder = path.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PistachioError(f"The disk is full: '{path}' could not be written ({free_words(folder)}). Free some space and queue again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PistachioError(f"'{folder}' can't be written to ({error.strerror}). Allow writing there, or choose another folder.")
    return PistachioError(f"'{path}' could not be written: {error.strerror or error}. Check the folder and queue again.")


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds `folder`, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def free_words(folder: Path) -> str:
    try:
        return f"{free_bytes(folder) / 1e9:.1f} GB free"
    except OSError as error:
        return f"free space unknown: {error.strerror}"


def remove_stale_temporaries(folder: Path) -> int:
    """Delete what killed writers left below `folder`; returns how many files."""
    removed = 0
    for path in folder.rglob(f"*{TEMPORARY_SUFFIX}"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # another process removed it first
        except OSError as error:
            raise write_error(path, error) from error
    return removed
