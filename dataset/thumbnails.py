"""Small previews of a dataset for the canvas, with the held-out pictures marked.

Knows nothing about nodes: it gives PIL images.
"""

from __future__ import annotations

import math

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .split import is_held_out
from .types import Dataset
from .versions import first_frame

HELD_OUT_COLOUR = (147, 197, 114)  # pistachio green
BACKGROUND = (32, 34, 37)
GAP_PX = 8
MAX_SHOWN = 100  # a sheet of more would be unreadable and slow


def thumbnails(dataset: Dataset, size: int = 128) -> list[Image.Image]:
    """One size x size RGB image a picture, letterboxed, in dataset order; held-out ones have a green frame and label."""
    return [_thumbnail(first_frame(picture), size, is_held_out(dataset, picture)) for picture in dataset.pictures]


def contact_sheet(dataset: Dataset, size: int = 160) -> Image.Image:
    """All thumbnails (the first 100) in a grid about as wide as high, with a line that counts them."""
    shown = Dataset(folder=dataset.folder, pictures=dataset.pictures[:MAX_SHOWN], split=dataset.split)
    tiles = thumbnails(shown, size)
    columns = max(1, math.ceil(math.sqrt(len(tiles) * 1.3)))
    rows = math.ceil(len(tiles) / columns)
    header_px = max(20, size // 6)
    sheet = Image.new("RGB", (columns * (size + GAP_PX) + GAP_PX, rows * (size + GAP_PX) + GAP_PX + header_px), BACKGROUND)
    ImageDraw.Draw(sheet).text((GAP_PX, GAP_PX), _summary(dataset), fill=(225, 225, 225), font=ImageFont.load_default(header_px * 0.6))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (GAP_PX + column * (size + GAP_PX), header_px + GAP_PX + row * (size + GAP_PX)))
    return sheet


def _summary(dataset: Dataset) -> str:
    count = len(dataset.pictures)
    words = f"{count} picture" if count == 1 else f"{count} pictures"
    if dataset.split is not None:
        words += f", {sum(is_held_out(dataset, p) for p in dataset.pictures)} held out"
    if count > MAX_SHOWN:
        words += f" (the first {MAX_SHOWN} are shown)"
    return words


def _thumbnail(image: Image.Image, size: int, held_out: bool) -> Image.Image:
    tile = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color=BACKGROUND)
    if held_out:
        frame_px = max(2, size // 32)
        draw = ImageDraw.Draw(tile)
        draw.rectangle((0, 0, size - 1, size - 1), outline=HELD_OUT_COLOUR, width=frame_px)
        font = ImageFont.load_default(max(8, size / 11))
        left, top, right, bottom = draw.textbbox((0, 0), "held out", font=font)
        pad = frame_px
        draw.rectangle((0, 0, right + 3 * pad, bottom + 3 * pad), fill=HELD_OUT_COLOUR)
        draw.text((1.5 * pad, 1.5 * pad), "held out", fill=(20, 30, 15), font=font)
    return tile
