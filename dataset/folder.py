"""A folder on disk -> Dataset: which files are pictures, in which order, with which captions and masks.

Owns the scan and its errors. Whether the result is enough to train on is `checks.py`'s matter.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Callable

from ..training.errors import PistachioError
from ..training.messages import counted, message
from .captions import CAPTION_TABLE, more_caption_paths, read_caption, read_caption_table
from .images import EXTENSIONS, UNSUPPORTED_EXTENSIONS, colour_grid, content_hash, difference_hash, read_picture
from .inspected import InspectedFiles
from .review_marks import FILE_NAME as REVIEW_MARKS
from .review_marks import read_marks
from .types import Dataset, Picture, Skipped
from .video import VIDEO_EXTENSIONS, ClipSettings, is_video, read_clips

log = logging.getLogger(__name__)

MASK_ENDING, MASK_FOLDER = ".mask", "masks"
MASK_EXTENSIONS = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
SHOWN_NAMES = 5  # an error names this many files and counts the rest


def load_folder(
    folder: Path,
    *,
    recursive: bool = True,
    trigger_word: str = "",
    clips: ClipSettings | None = None,  # read videos too, as these clips; None: pictures alone
    roots: tuple[Path, ...] = (),  # links may not lead out of these; none: they may lead anywhere
    index: Path | None = None,  # where to remember what was read, so that a restart need not read it again
    progress: Callable[[int, int], None] = lambda done, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> Dataset:
    """Every readable picture of a folder with its sidecar caption, in natural order, without those excluded in the review.

    Unreadable pictures go to `Dataset.skipped` with the reason. PistachioError: no such folder,
    no picture in it, none readable, or a caption that is not UTF-8.
    """
    folder = Path(folder).absolute()
    if not folder.exists():
        raise PistachioError(f"The folder '{folder}' does not exist. Check the folder on Load Image Folder.")
    if not folder.is_dir():
        raise PistachioError(f"'{folder}' is a file, not a folder. Choose the folder that holds the pictures.")
    candidates = list_pictures(folder, recursive=recursive, videos=clips is not None)
    if not candidates:
        hint = "" if recursive else " Switch 'recursive' on if they are in subfolders."
        raise PistachioError(
            f"The folder '{folder}' has no pictures. Put at least five in it ({', '.join(sorted(e[1:] for e in EXTENSIONS))}).{hint}"
        )
    marks = read_marks(folder)
    excluded = [name for path in candidates if (name := path.relative_to(folder).as_posix()) in marks.excluded]
    candidates = [path for path in candidates if path.relative_to(folder).as_posix() not in marks.excluded]
    if not candidates:
        raise PistachioError(f"All {len(excluded)} pictures in '{folder}' are excluded in the review. Include some of them on Review Dataset.")
    pictures, skipped, notes = [], [], []
    sidecars: dict[Path, str] = {}
    stems: dict[Path, set[str]] = {}
    for path in candidates:
        stems.setdefault(path.parent, set()).add(path.stem)
    tables = {parent: _table(parent, roots) for parent in stems}
    superseded: list[str] = []
    inspected = InspectedFiles(index) if index is not None else None
    for done, path in enumerate(candidates):
        check_interrupted()
        relative_path = path.relative_to(folder).as_posix()
        try:
            _check_name_and_links(path, relative_path, stems[path.parent], roots)
            if clips is not None and is_video(path):
                found, picture_notes = read_clips(path, relative_path, clips)
            else:
                picture, picture_notes = _read(path, relative_path, inspected)
                found = [picture]
        except PistachioError as error:
            skipped.append(Skipped(relative_path=_utf8(relative_path), reason=str(error)))
            log.warning("Skipped %s: %s", _utf8(relative_path), error)
        else:
            found = [_with_texts(picture, tables[path.parent], stems[path.parent]) for picture in found]
            pictures.extend(found)
            if found[0].caption not in (None, *tables[path.parent].get(path.name, (found[0].caption,))):
                superseded.append(relative_path)
            notes.extend(picture_notes)
            caption_path = path.with_suffix(".txt")
            other = sidecars.setdefault(caption_path, relative_path)
            if other != relative_path:
                notes.append(message(
                    "folder.shared_caption", "'{picture}' and '{other}' share the caption file '{file}'. Rename one of them.",
                    picture=str(other), other=relative_path, file=caption_path.name,
                ))
        progress(done + 1, len(candidates))
    if inspected is not None:
        inspected.close()
    if not pictures:
        raise PistachioError(
            f"None of the {len(skipped)} pictures in '{folder}' can be read. " + " ".join(s.reason for s in skipped[:SHOWN_NAMES])
        )
    if clips is None:
        videos = [path for path in list_pictures(folder, recursive=recursive, videos=True) if path.suffix.lower() in VIDEO_EXTENSIONS - EXTENSIONS]
        if videos:
            names = name_list([path.relative_to(folder).as_posix() for path in videos])
            notes.append(counted(
                "folder.videos", len(videos), "{count} video passed over: {names}. Use Load Video Folder to train on videos.",
                "{count} videos passed over: {names}. Use Load Video Folder to train on videos.", names=names,
            ))
    if skipped:
        notes.append(counted(
            "folder.skipped", len(skipped), "{count} picture can't be read and is left out: {names}.",
            "{count} pictures can't be read and are left out: {names}.", names=name_list([s.relative_path for s in skipped]),
        ))
    if superseded:
        notes.append(counted(
            "folder.superseded", len(superseded),
            "{count} picture with another caption in {table} than in the .txt file, which is the one that counts here: {names}. "
            "diffusion-pipe reads {table} alone: Caption Rules can write it anew.",
            "{count} pictures with another caption in {table} than in the .txt file, which is the one that counts here: {names}. "
            "diffusion-pipe reads {table} alone: Caption Rules can write it anew.",
            table=CAPTION_TABLE, names=name_list(superseded),
        ))
    if excluded:
        notes.append(counted(
            "folder.excluded", len(excluded), "{count} picture excluded in the review and left out: {names}.",
            "{count} pictures excluded in the review and left out: {names}.", names=name_list(excluded),
        ))
    held_out = tuple(dict.fromkeys(p.relative_path for p in pictures if p.relative_path in marks.held_out))  # a video may have several clips
    if held_out:
        notes.append(counted(
            "folder.held_out", len(held_out), "{count} picture marked in the review to be held out: {names}.",
            "{count} pictures marked in the review to be held out: {names}.", names=name_list(list(held_out)),
        ))
    return Dataset(
        folder=folder, pictures=tuple(pictures), skipped=tuple(skipped), trigger_word=trigger_word.strip(), notes=tuple(notes),
        held_out_marks=held_out,
    )


def _check_name_and_links(path: Path, relative_path: str, stems: set[str], roots: tuple[Path, ...]) -> None:
    if _utf8(relative_path) != relative_path:  # it could be in no list, log or JSON
        raise PistachioError(f"'{_utf8(path.name)}': the file's name is not UTF-8. Rename it.")
    if roots:
        caption = path.with_suffix(".txt")
        mask = find_mask(path)
        for file in (path, caption, *more_caption_paths(caption, stems), *([mask] if mask else [])):
            _check_link(file, roots)


def _check_link(file: Path, roots: tuple[Path, ...]) -> None:
    if not file.is_symlink():
        return
    try:
        target = file.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise PistachioError(f"'{file.name}' is a link that can't be followed ({error}). Remove it.") from error
    if not any(target.is_relative_to(root) for root in roots):
        raise PistachioError(f"'{file.name}' is a link that leads out of the folders that Pistachio may read. Copy the file there instead.")


def _table(folder: Path, roots: tuple[Path, ...]) -> dict[str, tuple[str, ...]]:
    if roots:
        _check_link(folder / CAPTION_TABLE, roots)
    return read_caption_table(folder)


def _utf8(name: str) -> str:
    """A name whose bytes are not UTF-8, with those bytes spelled out."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def list_pictures(folder: Path, *, recursive: bool, videos: bool = False) -> list[Path]:
    """Files that look like pictures, natural order; hidden files and folders are passed over, linked folders not entered."""

    def refuse(error: OSError):
        raise PistachioError(f"The folder '{error.filename}' can't be listed: {error.strerror}. Allow reading it.") from error

    extensions = EXTENSIONS | UNSUPPORTED_EXTENSIONS | (VIDEO_EXTENSIONS if videos else frozenset())
    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in extensions:
                found.append(Path(root) / name)
    names = {(path.parent, path.stem) for path in found}
    pictures = [path for path in found if not _is_mask(path, names)]
    return sorted(pictures, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def _is_mask(path: Path, names: set[tuple[Path, str]]) -> bool:
    """'a.mask.png' beside 'a.jpg', or 'masks/a.png' below it."""
    if path.stem.endswith(MASK_ENDING) and (path.parent, path.stem.removesuffix(MASK_ENDING)) in names:
        return True
    return path.parent.name == MASK_FOLDER and (path.parent.parent, path.stem) in names


def find_mask(path: Path) -> Path | None:
    """The mask of the picture at `path`."""
    for extension in MASK_EXTENSIONS:
        for mask in (path.with_name(f"{path.stem}{MASK_ENDING}{extension}"), path.parent / MASK_FOLDER / f"{path.stem}{extension}"):
            if mask.is_file() and mask != path:
                return mask
    return None


def _with_texts(picture: Picture, table: dict[str, tuple[str, ...]], stems: set[str]) -> Picture:
    """Captions and mask. A sidecar counts before captions.json: it is what Caption Dataset and people edit."""
    caption, more = read_caption(picture.caption_path), ()
    if caption is None and picture.path.name in table:
        caption, *more = table[picture.path.name]
    more = [*more, *(read_caption(path) for path in more_caption_paths(picture.caption_path, stems))]
    return replace(picture, caption=caption, more_captions=tuple(text for text in more if text), mask_path=find_mask(picture.path))


def folder_fingerprint(folder: Path, *, recursive: bool = True, videos: bool = False) -> str:
    """Changes whenever a picture or caption is added, removed, renamed, saved or marked in the review; decodes nothing."""
    digest = hashlib.sha256()
    folder = Path(folder).absolute()
    if folder.is_dir():
        pictures = list_pictures(folder, recursive=recursive, videos=videos)
        files = [folder / REVIEW_MARKS, folder / CAPTION_TABLE, *(parent / CAPTION_TABLE for parent in sorted({path.parent for path in pictures} - {folder}))]
        for path in pictures:
            caption, mask = path.with_suffix(".txt"), find_mask(path)
            files += [path, caption, *more_caption_paths(caption, frozenset()), *([mask] if mask else [])]
        for file in files:
            if file.exists():
                status = file.stat()
                digest.update(f"{file.relative_to(folder).as_posix()}|{status.st_size}|{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def natural_key(text: str) -> tuple:
    """'a2' before 'a10', case-blind; the text itself last, so that the order is total."""
    parts = re.split(r"(\d+)", text.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts), text


def name_list(names: list[str]) -> str:
    """'a.png, b.png and 7 more'."""
    shown = ", ".join(map(shown_name, names[:SHOWN_NAMES]))
    return shown if len(names) <= SHOWN_NAMES else message("names.more", "{names} and {count} more", names=shown, count=len(names) - SHOWN_NAMES)


def shown_name(name: str) -> str:
    """A file's name on one line: a line break in it is spelled out."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) == "Cc" else c for c in name)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _read(path: Path, relative_path: str, inspected: InspectedFiles | None) -> tuple[Picture, tuple[str, ...]]:
    if path.suffix.lower() in UNSUPPORTED_EXTENSIONS:
        raise PistachioError(f"'{path.name}': {path.suffix[1:].upper()} files can't be read here. Save it as PNG or JPEG.")
    try:
        status = path.stat()
    except OSError as error:
        raise PistachioError(f"'{path.name}' can't be opened: {error.strerror}. Is it a broken link?") from error
    key = str(path), status.st_mtime_ns, status.st_size
    record = inspected.get(key) if inspected is not None else None
    if record is not None:
        width, height, pixels, difference, grid, notes = record[0], record[1], record[2], int(record[3], 16), bytes.fromhex(record[4]), tuple(record[5])
    else:
        width, height, pixels, difference, grid, notes = _inspect(*key)
        if inspected is not None:
            inspected.put(key, [width, height, pixels, f"{difference:x}", grid.hex(), notes])
    picture = Picture(
        path=path, relative_path=relative_path, width=width, height=height, content_hash=pixels,
        caption=None, difference_hash=difference, colour_grid=grid,
    )
    return picture, notes


# Queueing the same graph again decodes nothing: 20 photographs of 12 megapixels take several seconds.
@functools.lru_cache(maxsize=20_000)
def _inspect(path: str, mtime_ns: int, size_bytes: int) -> tuple[int, int, str, int, bytes, tuple[str, ...]]:
    image, notes = read_picture(Path(path))
    return image.width, image.height, content_hash(image), difference_hash(image), colour_grid(image), notes
