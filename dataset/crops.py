"""Crops of what was found in the pictures, as further pictures of the set, and what a box says about framing.

Owns the geometry, the names of the files, and the words that a crop changes in its caption. Knows nothing about detectors:
boxes and masks come from outside.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..training.errors import PistachioError
from .caption_checks import BUST, CLOSE_UP, FRAMINGS, FULL_BODY
from .captions import write_caption
from .duplicates import is_crop, source_of
from .files import atomic_write_bytes
from .folder import load_folder, name_list, natural_key, plural
from .images import content_hash, read_rgb
from .types import Box, Dataset, Picture

FACE, SUBJECT = "face", "subject"
KINDS = (SUBJECT, FACE)
WHOLE_SHARE = 0.8  # of the picture's area: a crop that large adds a near-duplicate
MASK_THRESHOLD = 0.5
# A face, from brow to chin, is about a tenth of a standing person.
CLOSE_UP_FACE, BUST_FACE = 0.33, 0.115  # shares of the picture's height that a face takes at least
FULL_BODY_FACES, BUST_FACES = 7.0, 2.6  # heights of the face in that of the person, at least
FULL_BODY_RATIO = 2.0  # height to width of a person whose feet are in the picture
EDGE_SHARE = 0.02  # of the height: a box that ends this near the lower edge may be cut by it
WORDS = {CLOSE_UP: "close-up", BUST: "upper body shot", FULL_BODY: "full body shot"}
_FRAMING_WORDS = re.compile("|".join(rf"(?<!\w)(?:{words})(?!\w)(?: (?:shot|photo|photograph|picture|view|portrait)(?!\w))?" for _, words in FRAMINGS), re.IGNORECASE)


# ---- framing ------------------------------------------------------------------------------------------------------


def framing_of(boxes: tuple[Box, ...], width: int, height: int) -> str | None:
    """close-up, half body or full body, as the largest face and the largest subject tell; None where they can't."""
    face, subject = _largest(boxes, FACE), _largest(boxes, SUBJECT)
    if face is not None and subject is not None and subject.height > face.height:
        faces = subject.height / face.height
        return FULL_BODY if faces >= FULL_BODY_FACES else BUST if faces >= BUST_FACES else CLOSE_UP
    if face is not None:
        share = face.height / height
        return CLOSE_UP if share >= CLOSE_UP_FACE else BUST if share >= BUST_FACE else FULL_BODY
    if subject is not None and subject.height >= FULL_BODY_RATIO * subject.width and subject.top + subject.height < height * (1 - EDGE_SHARE):
        return FULL_BODY
    return None


def _largest(boxes: tuple[Box, ...], kind: str) -> Box | None:
    return max((box for box in boxes if box.kind == kind), key=lambda box: box.width * box.height, default=None)


def with_framing(caption: str, framing: str) -> str:
    """The caption with its words for framing replaced by those of the crop; added behind the first part where there are none."""
    words = WORDS[framing]
    text, changed = _FRAMING_WORDS.subn("\0", caption)
    if not changed:
        first, comma, rest = caption.partition(",")
        return f"{first}, {words},{rest}" if comma else f"{caption.rstrip(' .')}, {words}" if caption.strip() else words
    text = text.replace("\0", words, 1)
    text = re.sub(r",?\s*\0", "", text)
    article = "an " if words[0] == "u" else "a "
    text = re.sub(rf"\b(an?)\s+(?={words})", lambda match: article.capitalize() if match[1][0] == "A" else article, text, flags=re.IGNORECASE)
    text = text.strip(" ,")
    return text[:1].upper() + text[1:] if caption[:1].isupper() else text


# ---- boxes --------------------------------------------------------------------------------------------------------


def boxes_of(value, *, kind: str, scale: tuple[float, float] = (1.0, 1.0)) -> tuple[Box, ...]:
    """One picture's boxes from what ComfyUI's detectors give: a box, or a list of them, each x, y, width and height."""
    entries = [value] if isinstance(value, dict) else value
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, dict) for entry in entries):
        raise PistachioError(f"'{str(value)[:80]}' is no list of boxes. Connect the bboxes output of a detector to Crop Subjects.")
    boxes = []
    for entry in entries:
        try:
            left, top, width, height = (float(entry[name]) for name in ("x", "y", "width", "height"))
        except (KeyError, TypeError, ValueError) as error:
            raise PistachioError(f"'{str(entry)[:80]}' is no box with x, y, width and height ({error}). Connect the bboxes output of a detector to Crop Subjects.") from error
        label = str(entry.get("label") or kind).lower()
        boxes.append(Box(
            left=left * scale[0], top=top * scale[1], width=width * scale[0], height=height * scale[1],
            kind=FACE if "face" in label else SUBJECT, score=float(entry.get("score", 1.0)),
        ))
    return tuple(box for box in boxes if box.width > 0 and box.height > 0)


def box_of_mask(mask: np.ndarray, width: int, height: int, *, kind: str) -> tuple[Box, ...]:
    """The bounds of a mask [h, w] of any size, on a picture of width x height; none where nothing is marked."""
    rows, columns = (np.flatnonzero((mask > MASK_THRESHOLD).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return ()
    right, bottom = width / mask.shape[1], height / mask.shape[0]
    return (Box(
        left=columns[0] * right, top=rows[0] * bottom, width=(columns[-1] + 1 - columns[0]) * right, height=(rows[-1] + 1 - rows[0]) * bottom, kind=kind,
    ),)


def window(box: Box, width: int, height: int, margin: float) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the crop: the box with `margin` times its size on each side, inside the picture."""
    left, right = box.left - margin * box.width, box.left + (1 + margin) * box.width
    top, bottom = box.top - margin * box.height, box.top + (1 + margin) * box.height
    return max(0, round(left)), max(0, round(top)), min(width, round(right)), min(height, round(bottom))


# ---- files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class CropSettings:
    folder: str = "crops"  # in the dataset's own; empty: nothing is written
    margin: float = 0.4  # of the box, on each side
    minimum_size: int = 512  # pixels of the crop's shorter side
    per_picture: int = 1  # of each kind, the largest first

    def __post_init__(self) -> None:
        if self.folder != Path(self.folder).name or self.folder.startswith("."):
            raise PistachioError(f"'{self.folder}' is no plain folder name. Write one such as 'crops' on Crop Subjects, or nothing to write no files.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cropped:
    dataset: Dataset  # all pictures with their boxes, and the crops
    written: tuple[str, ...]  # relative paths
    notes: tuple[str, ...]  # sentences for the user


def stills(dataset: Dataset) -> tuple[Picture, ...]:
    """Everything but videos, in the dataset's order."""
    return tuple(picture for picture in dataset.pictures if picture.clip is None)


def originals(dataset: Dataset) -> tuple[Picture, ...]:
    """The pictures to look at: no videos, and no crops of before."""
    return tuple(picture for picture in stills(dataset) if not is_crop(picture.relative_path))


def crop_subjects(
    dataset: Dataset, found: dict[str, tuple[Box, ...]], settings: CropSettings, *,
    progress: Callable[[int, int], None] = lambda done, total: None, check_interrupted: Callable[[], None] = lambda: None,
) -> Cropped:
    """`found`: boxes by relative path. Originals are never written; a crop that is there already is kept as it is."""
    if dataset.split is not None:
        raise PistachioError("The dataset is split already, so the crops would belong to neither part. Connect Crop Subjects before Split Dataset.")
    pictures = originals(dataset)
    written, small, whole, kept, empty = [], [], [], [], []
    for done, picture in enumerate(pictures):
        check_interrupted()
        boxes = found.get(picture.relative_path, ())
        if not boxes:
            empty.append(picture.relative_path)
        for kind in KINDS if settings.folder else ():
            best = sorted((box for box in boxes if box.kind == kind), key=lambda box: -box.width * box.height)[: settings.per_picture]
            for number, box in enumerate(best, 1):
                left, top, right, bottom = window(box, picture.width, picture.height, settings.margin)
                if min(right - left, bottom - top) < settings.minimum_size:
                    small.append(picture.relative_path)
                elif (right - left) * (bottom - top) >= WHOLE_SHARE * picture.width * picture.height:
                    whole.append(picture.relative_path)
                else:
                    name = _write(dataset.folder, picture, boxes, (left, top, right, bottom), f"{kind}{number}", settings.folder, kept)
                    written += [name] if name else []
        progress(done + 1, len(pictures))
    with_boxes = tuple(replace(p, boxes=found.get(p.relative_path, p.boxes)) for p in dataset.pictures)
    crops = _crops_on_disk(dataset, settings.folder, {p.relative_path for p in dataset.pictures})
    everything = tuple(sorted((*with_boxes, *crops), key=lambda p: natural_key(p.relative_path)))
    notes = _notes(len(pictures), written, small, whole, kept, empty, settings)
    return Cropped(dataset=replace(dataset, pictures=everything), written=tuple(written), notes=notes)


def _write(
    folder: Path, picture: Picture, boxes: tuple[Box, ...], bounds: tuple[int, int, int, int], ending: str, name: str, kept: list[str]
) -> str | None:
    """The relative path of a new crop; None where one of that name is there."""
    left, top, right, bottom = bounds
    stem = Path(picture.relative_path).with_suffix("")
    relative_path = f"{name}/{stem.as_posix()}.{ending}.png"
    path = folder / relative_path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PistachioError(f"'{path.parent}' leads out of the dataset's folder by a link. Remove the link, or write another folder on Crop Subjects.")
    image = read_rgb(picture.path).crop(bounds)
    if path.exists():
        if content_hash(read_rgb(path)) != content_hash(image):
            kept.append(relative_path)
        return None
    inside = tuple(replace(box, left=box.left - left, top=box.top - top) for box in boxes)
    framing = framing_of(inside, right - left, bottom - top)
    if picture.caption and not path.with_suffix(".txt").exists():
        write_caption(path.with_suffix(".txt"), with_framing(picture.caption, framing) if framing else picture.caption)
    data = io.BytesIO()
    image.save(data, format="PNG")
    atomic_write_bytes(path, data.getvalue())
    return relative_path


def _crops_on_disk(dataset: Dataset, folder: str, known: set[str]) -> tuple[Picture, ...]:
    """Crops of these pictures that the dataset has not got yet."""
    path = dataset.folder / folder
    if not folder or not path.is_dir():
        return ()
    sources = {source_of(relative_path) for relative_path in known}
    found = (replace(p, relative_path=f"{folder}/{p.relative_path}") for p in load_folder(path).pictures)
    return tuple(p for p in found if p.relative_path not in known and source_of(p.relative_path) in sources)


def _notes(count: int, written: list[str], small: list[str], whole: list[str], kept: list[str], empty: list[str], settings: CropSettings) -> tuple[str, ...]:
    notes = [f"Something was found in {count - len(empty)} of {plural(count, 'picture')}."]
    if settings.folder:
        notes.append(f"{plural(len(written), 'crop')} written to '{settings.folder}' in the dataset's folder." if written else "No crop was written.")
    if empty and len(empty) < count:
        notes.append(f"Nothing was found in {name_list(empty)}.")
    if small:
        notes.append(f"Left out as smaller than {settings.minimum_size} pixels: {plural(len(small), 'crop')}, of {name_list(list(dict.fromkeys(small)))}.")
    if whole:
        notes.append(f"Left out as it would be nearly the whole picture: {plural(len(whole), 'crop')}, of {name_list(list(dict.fromkeys(whole)))}.")
    if kept:
        notes.append(f"{plural(len(kept), 'crop')} of an earlier run with other settings or boxes {'is' if len(kept) == 1 else 'are'} kept: {name_list(kept)}. Delete what should be cut anew.")
    return tuple(notes)
