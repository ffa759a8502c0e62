"""The picture that LoRA managers show: a sample of the run as `<lora>.preview.png`, and small in the file's metadata.

Which picture: of the nearest step that has samples, the first with the trigger word; never one of the dataset, which are
photographs that nobody gave away with the file. Where a person has put a picture beside the LoRA, theirs stays the only one.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from ..dataset.files import atomic_write_bytes
from ..training.errors import PistachioError
from ..training.overview import sample_rows
from ..training.run import RunFolder

log = logging.getLogger("pistachio")

PREVIEW_SUFFIX = ".preview.png"  # read by ComfyUI itself, LoRA Manager, Custom Scripts and A1111
OTHER_SUFFIXES = tuple(f"{middle}{end}" for middle in ("", ".preview") for end in (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4", ".webm"))
OWN_MARK = "pistachio.preview"  # text in the PNG: the run that it was made of
THUMBNAIL_PX = 256  # ModelSpec's own; ComfyUI gives out a file's metadata up to 1 MiB
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what PIL raises for a broken file


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    step: int  # of the sample
    png: bytes
    thumbnail_jpeg: bytes

    def metadata(self) -> dict[str, str]:
        coded = base64.b64encode(self.thumbnail_jpeg).decode("ascii")
        return {"modelspec.thumbnail": f"data:image/jpeg;base64,{coded}", "ssmd_cover_images": f'["{coded}"]'}


def preview_of(folder: RunFolder, step: int, run_id: str) -> Preview | None:
    """None where the run has no samples; a sample that can't be read is logged, and the next one is taken."""
    for row in by_nearness(sample_rows(folder.path), step):
        for picture in sorted(row["pictures"], key=lambda picture: not picture["with_trigger"]):
            try:
                return _preview(folder.path / picture["file"], row["step"], run_id)
            except UNREADABLE as error:
                log.warning("The sample '%s' can't be a preview: %s", folder.path / picture["file"], error)
    return None


def by_nearness(rows: Sequence[dict], step: int) -> list[dict]:
    """Of two that are equally near the later; step 0 is the base model and shows nothing of the LoRA."""
    return sorted((row for row in rows if row["step"] > 0), key=lambda row: (abs(row["step"] - step), -row["step"]))


def _preview(file: Path, step: int, run_id: str) -> Preview:
    with Image.open(file) as opened:
        image, text = opened.convert("RGB"), PngInfo()
        for key in ("parameters", "pistachio"):  # prompt and settings, for people and managers
            if isinstance(opened.info.get(key), str):
                text.add_itxt(key, str(opened.info[key]))
    text.add_itxt(OWN_MARK, run_id)
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, format="PNG", pnginfo=text)
    ImageOps.contain(image, (THUMBNAIL_PX, THUMBNAIL_PX)).save(jpeg, format="JPEG", quality=85)
    return Preview(step=step, png=png.getvalue(), thumbnail_jpeg=jpeg.getvalue())


def write_preview(lora: Path, preview: Preview | None, run_id: str) -> Path | None:
    """Beside the LoRA file; gives the picture's place, None where it was left as it is."""
    target = lora.with_name(lora.stem + PREVIEW_SUFFIX)
    others = [path for suffix in OTHER_SUFFIXES if (path := lora.with_name(lora.stem + suffix)).exists() and path != target]
    if preview is None or others or (target.exists() and _run_of(target) != run_id):
        return None
    try:
        if not target.exists() or target.read_bytes() != preview.png:
            atomic_write_bytes(target, preview.png)
    except (OSError, PistachioError) as error:
        log.warning("The LoRA is installed, but its preview '%s' is not: %s", target, error)
        return None
    return target


def _run_of(picture: Path) -> str | None:
    """The run that a preview of ours was made of; None for a person's own picture."""
    try:
        with Image.open(picture) as opened:
            mark = opened.info.get(OWN_MARK)
    except UNREADABLE:
        return None
    return str(mark) if mark is not None else None
