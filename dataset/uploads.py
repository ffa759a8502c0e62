"""Files that a person drops on the canvas, taken into a dataset's folder: whole or not at all, and never over another file.

Owns which names and kinds are taken, the check of what arrived, and the name that it gets. A sidecar (caption, mask) follows its
picture's name, so it is written under exactly that name or left out. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
import time
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..training.errors import PistachioError
from ..training.messages import message
from .captions import CAPTION_TABLE, read_caption, read_caption_table
from .files import STALE_SECONDS, free_bytes, free_words, write_error
from .images import EXTENSIONS, UNSUPPORTED_EXTENSIONS, read_picture
from .video import VIDEO_EXTENSIONS, check_video

PICTURE, VIDEO, CAPTION, TABLE = "picture", "video", "caption", "table"
ADDED, SAME, RENAMED, KEPT = "added", "same", "renamed", "kept"

MAX_CAPTION_BYTES, MAX_TABLE_BYTES = 1_000_000, 50_000_000
RESERVE_BYTES = 500_000_000  # left free on the disk
MAX_NAME_BYTES, MAX_DEPTH = 200, 16
MOST_NUMBERED = 1000
BLOCK_BYTES = 1 << 20
TEMPORARY_PREFIX = ".pistachio-upload-"
ARCHIVES = frozenset({".zip", ".rar", ".7z", ".tar", ".gz", ".tgz"})
NOT_IN_NAMES = str.maketrans(dict.fromkeys('<>:"|?*\\', "_"))  # Windows takes none of these, and a folder is copied between machines

_naming = threading.Lock()
_swept: set[Path] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """What became of a file. KEPT: another file of that name is there, and nothing was written."""

    state: str
    name: str  # below the folder
    words: str = ""


def checked_path(text: str) -> PurePosixPath:
    """A relative path below the folder, with signs replaced that some systems can't have in a name. PistachioError for any way out."""
    if "\0" in text or text.startswith("/") or not text:
        raise PistachioError(f"'{text[:200]!r}' is no name of a file. Rename it.")
    parts = unicodedata.normalize("NFC", text).split("/")
    if len(parts) > MAX_DEPTH:
        raise PistachioError(f"'{text[:200]}' lies {len(parts)} folders deep. Move it up.")
    made = []
    for part in parts:
        if part in ("", ".", ".."):
            raise PistachioError(f"'{text[:200]}' is no path below a folder. Drop the files themselves.")
        if part.startswith("."):
            raise PistachioError(f"'{text[:200]}' is hidden: Load Image Folder passes such files over.")
        clean = "".join("_" if unicodedata.category(sign) in ("Cc", "Cs") else sign for sign in part.translate(NOT_IN_NAMES)).rstrip(". ")
        if not clean or len(clean.encode()) > MAX_NAME_BYTES:
            raise PistachioError(f"'{part[:80]}' is too long or empty as a name. Give the file a name of at most {MAX_NAME_BYTES} bytes.")
        made.append(clean)
    return PurePosixPath(*made)


def kind_of(name: str, *, videos: bool) -> str:
    """By its ending; PistachioError with the reason where a dataset can't use it."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in EXTENSIONS:  # a moving GIF among them: it can be read either way
        return PICTURE
    if suffix in VIDEO_EXTENSIONS:
        if not videos:
            raise PistachioError(f"'{name}' is a video. Drop it on Load Video Folder.")
        return VIDEO
    if name.lower() == CAPTION_TABLE:
        return TABLE
    if suffix == ".txt":
        return CAPTION
    if suffix in UNSUPPORTED_EXTENSIONS:
        raise PistachioError(f"'{name}': {suffix[1:].upper()} files can't be read here. Save it as PNG or JPEG.")
    if suffix in ARCHIVES:
        raise PistachioError(f"'{name}' is an archive. Unpack it, and drop the folder.")
    raise PistachioError(f"'{name}' is neither a picture nor a caption. It was left out.")


class Arrival:
    """One file on its way: `with Arrival(...) as arrival:` write its bytes, then `finish`. Leaving without it leaves nothing behind."""

    def __init__(self, folder: Path, path: str, *, videos: bool = False, exact: bool = False, size_bytes: int | None = None, max_bytes: int | None = None):
        self.folder, self.relative = Path(folder), checked_path(path)
        self.name = self.relative.name
        self.kind = kind_of(self.name, videos=videos)
        self.exact = exact or self.kind in (CAPTION, TABLE)
        self.size_bytes = size_bytes  # as announced; None: not announced
        self.max_bytes = {CAPTION: MAX_CAPTION_BYTES, TABLE: MAX_TABLE_BYTES}.get(self.kind, max_bytes)
        self.received_bytes = 0
        self._digest = hashlib.sha256()
        self._made: list[Path] = []
        self._check_size(size_bytes or 0)

    def __enter__(self) -> Arrival:
        if (need := self.size_bytes or 0) and free_bytes(self.folder) < need + RESERVE_BYTES:
            raise PistachioError(f"The disk of '{self.folder}' is nearly full ({free_words(self.folder)}). Free some space, then drop '{self.name}' again.")
        self.temporary = self.folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}"
        try:
            self._make(self.folder)
            _sweep(self.folder)
            self.temporary.mkdir()
            # Under its own name, which is what the readers' sentences say.
            self._file = open(self.temporary / self.name, "wb")
        except OSError as error:
            self._leave()
            raise write_error(self.folder / self.name, error) from error
        return self

    def write(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._check_size(self.received_bytes)
        self._digest.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.folder / self.name, error) from error

    def finish(self) -> Taken:
        """Checks the file and gives it its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise write_error(self.folder / self.name, error) from error
        if self.size_bytes is not None and self.received_bytes != self.size_bytes:
            raise PistachioError(f"'{self.name}' arrived cut short: {self.received_bytes} of {self.size_bytes} bytes. Drop it again.")
        arrived = self.temporary / self.name
        self._check(arrived)
        parent = self._parent()
        with _naming:
            taken = self._name(parent)
            if taken.state in (ADDED, RENAMED):
                try:
                    self._make(parent)
                    os.replace(arrived, self.folder / taken.name)
                except OSError as error:
                    raise write_error(self.folder / taken.name, error) from error
                self._made.clear()  # no longer empty
        return taken

    def __exit__(self, *exception) -> None:
        self._file.close()
        self._leave()

    def _leave(self) -> None:
        shutil.rmtree(self.temporary, ignore_errors=True)
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:
                break  # something else was put into it meanwhile

    def _make(self, folder: Path) -> None:
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for made in reversed(missing):
            made.mkdir(exist_ok=True)
            self._made.append(made)

    def _check_size(self, size_bytes: int) -> None:
        if self.max_bytes is not None and size_bytes > self.max_bytes:
            hint = "" if self.kind in (CAPTION, TABLE) else " Start ComfyUI with a larger --max-upload-size, or copy the file into the folder yourself."
            raise PistachioError(f"'{self.name}' is larger than the {self.max_bytes / 1e6:.0f} MB that are taken.{hint}")

    def _check(self, file: Path) -> None:
        if self.kind == PICTURE:
            read_picture(file)
        elif self.kind == VIDEO:
            check_video(file)
        elif self.kind == CAPTION:
            read_caption(file)
        else:
            read_caption_table(file.parent)

    def _parent(self) -> Path:
        parent = self.folder / self.relative.parent
        if not parent.resolve().is_relative_to(self.folder.resolve()):  # a linked folder
            raise PistachioError(f"'{self.relative.parent}' is a link that leads out of the folder. Drop the file elsewhere.")
        return parent

    def _name(self, parent: Path) -> Taken:
        stem, suffix = PurePosixPath(self.name).stem, PurePosixPath(self.name).suffix
        if self.exact:
            return self._exact_name(parent, stem)
        for number in range(1, MOST_NUMBERED):
            numbered = stem if number == 1 else f"{stem}-{number}"
            file = parent / f"{numbered}{suffix}"
            relative = file.relative_to(self.folder).as_posix()
            if self._is_same(file):
                return Taken(state=SAME, name=relative)
            if not has_picture(parent, numbered):
                return Taken(state=ADDED if number == 1 else RENAMED, name=relative)
        raise PistachioError(f"'{self.name}' is in the folder {MOST_NUMBERED} times already, each another picture. Rename it.")

    def _exact_name(self, parent: Path, stem: str) -> Taken:
        file = parent / self.name
        relative = file.relative_to(self.folder).as_posix()
        if self._is_same(file):
            return Taken(state=SAME, name=relative)
        if file.exists():
            words = message("upload.kept", "'{file}' is there already with another content, which was kept.", file=relative)
            return Taken(state=KEPT, name=relative, words=words)
        if self.kind == CAPTION and not any(has_picture(parent, each) for each in (stem, stem.rpartition(".")[0]) if each):
            raise PistachioError(f"'{relative}' has no picture of that name beside it. Drop them together.")
        return Taken(state=ADDED, name=relative)

    def _is_same(self, file: Path) -> bool:
        try:
            if file.stat().st_size != self.received_bytes:
                return False
            return _digest_of(file) == self._digest.digest()
        except (FileNotFoundError, IsADirectoryError):
            return False


def has_picture(folder: Path, stem: str) -> bool:
    """Is there a picture or video of this name, whatever its ending? They would share one caption file."""
    return any((folder / f"{stem}{spelled}").exists() for suffix in EXTENSIONS | VIDEO_EXTENSIONS for spelled in (suffix, suffix.upper()))


def _digest_of(file: Path) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def _sweep(folder: Path) -> None:
    """Removes what killed uploads left, at the first upload into a folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
