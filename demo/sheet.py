"""The contact sheet: real pictures, base, chosen and last checkpoint, and the chosen one without its trigger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from PIL import Image, ImageDraw, ImageFont

CELL_PX, GAP_PX, LABEL_PX, HEAD_PX, COLUMNS = 144, 8, 236, 84, 8
PAPER, INK, QUIET, ACCENT = "#fbfaf7", "#24292f", "#6a737d", "#2f7d4f"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    title: str
    detail: str
    pictures: Sequence[Image.Image]
    accent: bool = False


def contact_sheet(title: str, subtitle: str, rows: Sequence[Row], captions: Sequence[str]) -> Image.Image:
    width = LABEL_PX + COLUMNS * (CELL_PX + GAP_PX) + 2 * GAP_PX
    height = HEAD_PX + len(rows) * (CELL_PX + GAP_PX) + 44
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((2 * GAP_PX, 16), title, INK, font(26))
    draw.text((2 * GAP_PX, 52), subtitle, QUIET, font(15))
    for index, row in enumerate(rows):
        top = HEAD_PX + index * (CELL_PX + GAP_PX)
        lines = [(row.title, 18, ACCENT if row.accent else INK)] + [(line, 14, QUIET) for line in row.detail.split("\n")]
        y = top + (CELL_PX - 22 * len(lines)) // 2
        for text, size, colour in lines:
            draw.text((2 * GAP_PX, y), text, colour, font(size))
            y += 22
        for column, picture in enumerate(row.pictures[:COLUMNS]):
            left = LABEL_PX + column * (CELL_PX + GAP_PX)
            sheet.paste(picture.convert("RGB").resize((CELL_PX, CELL_PX), Image.Resampling.BICUBIC), (left, top))
            if row.accent:
                draw.rectangle((left - 2, top - 2, left + CELL_PX + 1, top + CELL_PX + 1), outline=ACCENT, width=2)
    for column, caption in enumerate(captions[:COLUMNS]):
        left, top = LABEL_PX + column * (CELL_PX + GAP_PX), height - 40
        for line in wrap(caption, CELL_PX, font(11))[:2]:
            draw.text((left, top), line, QUIET, font(11))
            top += 15
    return sheet


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def wrap(text: str, width: int, typeface: ImageFont.FreeTypeFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if typeface.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
