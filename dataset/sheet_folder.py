"""Generated pictures on their way into a dataset folder: written once, never over anything, and a sheet that goes on where it stopped.

Owns the file names, the record of a character sheet beside the pictures and what counts as already there.
Knows nothing about how a picture was made.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..training.errors import PistachioError
from .captions import write_caption
from .character_sheet import Shot
from .files import atomic_write_bytes, atomic_write_text
from .folder import list_pictures
from .images import content_hash, read_rgb

RECORD = "character_sheet.jsonl"  # one line a picture that was made; it stays when the picture is thrown away
_KEY_IN_NAME = re.compile(r"sheet-\d+-([0-9a-f]{8})$")


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetOrder:
    """What one run is to make of a sheet, and where it goes."""

    folder: Path
    shots: tuple[Shot, ...]  # to be made now; empty: the sheet is complete
    total: int
    made: int  # of the whole sheet, before this run
    trigger_word: str = ""
    other_reference: bool = False  # the folder holds pictures of another sheet too

    @property
    def words(self) -> str:
        if not self.shots:
            return f"All {self.total} pictures of the sheet are made."
        last = self.made + len(self.shots)
        more = f" Run again for the other {self.total - last}." if last < self.total else ""
        return f"{self.made} of {self.total} pictures are made; this run makes {len(self.shots)}.{more}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    written: tuple[Path, ...]
    doubles: int  # pictures whose pixels were there already

    @property
    def words(self) -> str:
        there = f" {self.doubles} {'was' if self.doubles == 1 else 'were'} there already." if self.doubles else ""
        return f"{len(self.written)} saved.{there}"


def order_of(folder: Path, shots: tuple[Shot, ...], *, at_once: int = 0, trigger_word: str = "") -> SheetOrder:
    """The next `at_once` shots that were never made (0: all of them). One that was thrown away is not made again."""
    there = made_keys(folder)
    pending = tuple(shot for shot in shots if shot.key not in there)
    return SheetOrder(
        folder=folder, shots=pending[: at_once or None], total=len(shots), made=len(shots) - len(pending), trigger_word=trigger_word.strip(),
        other_reference=bool(there - {shot.key for shot in shots}),
    )


def made_keys(folder: Path) -> set[str]:
    """From the record, and from file names: a run may have been stopped between the two."""
    named = (_KEY_IN_NAME.search(path.stem) for path in folder.glob("sheet-*.png")) if folder.is_dir() else ()
    return {match.group(1) for match in named if match} | {line["key"] for line in _record(folder)}


def _record(folder: Path) -> list[dict]:
    path = folder / RECORD
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(isinstance(line, dict) and isinstance(line.get("key"), str) for line in lines):
            raise ValueError("a line has no key")
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise PistachioError(
            f"'{path}' can't be read ({error}). It says which pictures of the sheet were made: delete it to go by the files alone, or choose another folder."
        ) from error
    return lines


def save_sheet(order: SheetOrder, images: list[Image.Image]) -> Saved:
    """Each picture with its caption and its line in the record, one after the other."""
    if len(images) != len(order.shots):
        raise PistachioError(
            f"{len(images)} pictures arrived for {len(order.shots)} prompts of the sheet. Connect 'prompt' and 'seed' of Character Sheet to the nodes that make "
            "the pictures, with a batch size of 1, and the pictures to Save To Dataset."
        )
    written = []
    for shot, image in zip(order.shots, images):
        path = order.folder / f"{shot.stem}.png"
        if not path.exists():
            _write(path, image, shot.caption)
            written.append(path)
        line = {"key": shot.key, "file": path.name, "prompt": shot.instruction, "caption": shot.caption, "seed": shot.seed}
        lines = [*_record(order.folder), line]
        atomic_write_text(order.folder / RECORD, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines))
    return Saved(written=tuple(written), doubles=len(images) - len(written))


def save_pictures(folder: Path, images: list[Image.Image], captions: list[str], *, name: str = "picture") -> Saved:
    """`name-0001.png`, ... with their captions; pixels that the folder has already are passed over."""
    there = _hashes(folder) if images else set()
    written, number = [], 0
    for image, caption in zip(images, captions, strict=True):
        pixels = content_hash(image)
        if pixels in there:
            continue
        there.add(pixels)
        while True:
            number += 1
            path = folder / f"{name}-{number:04d}.png"
            if not path.exists() and not path.with_suffix(".txt").exists():
                break
        _write(path, image, caption)
        written.append(path)
    return Saved(written=tuple(written), doubles=len(images) - len(written))


def check_name(name: str) -> str:
    """Of the files: PistachioError for one that leads elsewhere or that no disk takes."""
    cleaned = name.strip()
    if not cleaned or cleaned.startswith(".") or re.search(r'[\\/:*?"<>|\x00-\x1f]', cleaned):
        raise PistachioError(f"'{name}' can't begin the names of pictures. Write letters and digits, such as 'picture', on Save To Dataset.")
    return cleaned


def _hashes(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    found = set()
    for path in list_pictures(folder, recursive=True):
        try:
            found.add(content_hash(read_rgb(path)))
        except PistachioError:
            continue  # a file that can't be read holds none of these pictures; loading the folder names it
    return found


def _write(path: Path, image: Image.Image, caption: str) -> None:
    """The caption first: a picture without one would stop the training."""
    sidecar = path.with_suffix(".txt")
    if caption.strip() and not sidecar.exists():
        write_caption(sidecar, caption)
    data = io.BytesIO()
    image.save(data, format="PNG")
    atomic_write_bytes(path, data.getvalue())
