"""The picture that compares checkpoints: one column each, one row a prompt and seed, every cell labelled.

Owns the drawing alone (Pillow, no font file). What is in a cell, and which checkpoints there are, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, MUTED, LINE, CHOSEN = (252, 251, 247), (35, 45, 32), (112, 116, 106), (222, 220, 210), (70, 130, 58)
MARGIN, GAP, SIDE_WIDTH = 22, 10, 190
MIN_CELL, MAX_CELL = 160, 384  # longer side of a cell, pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    step: int  # 0: the base without a LoRA
    roles: tuple[str, ...]  # "chosen", "first of the tie", ...
    note: str = ""  # the held-out change, in words

    @property
    def title(self) -> str:
        return f"Step {self.step}" if self.step else "Base model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    prompt: str
    seed: int
    pictures: tuple[Image.Image, ...]  # one a column


def draw_grid(columns: Sequence[Column], rows: Sequence[Row], *, title: str) -> Image.Image:
    """RGB. Pictures keep their proportions; small ones are enlarged, large ones reduced."""
    width, height = cell_size(rows[0].pictures[0].size)
    header = 124
    sheet = Image.new("RGB", (
        MARGIN * 2 + SIDE_WIDTH + len(columns) * (width + GAP), MARGIN * 2 + header + len(rows) * (height + GAP),
    ), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), cut(title, font_of(22), sheet.width - 2 * MARGIN), fill=INK, font=font_of(22))
    for index, column in enumerate(columns):
        x = MARGIN + SIDE_WIDTH + index * (width + GAP)
        is_chosen = "chosen" in column.roles
        if is_chosen:
            draw.rounded_rectangle((x - 5, MARGIN + 38, x + width + 5, sheet.height - MARGIN + 3), radius=6, outline=CHOSEN, width=3)
        draw.text((x + 4, MARGIN + 46), column.title, fill=CHOSEN if is_chosen else INK, font=font_of(18))
        draw.text((x + 4, MARGIN + 72), cut(", ".join(column.roles), font_of(14), width - 8), fill=INK, font=font_of(14))
        draw.text((x + 4, MARGIN + 94), cut(column.note, font_of(13), width - 8), fill=MUTED, font=font_of(13))
    for number, row in enumerate(rows):
        y = MARGIN + header + number * (height + GAP)
        if number:
            draw.line((MARGIN, y - GAP // 2, MARGIN + SIDE_WIDTH - 14, y - GAP // 2), fill=LINE)
        lines = wrap(row.prompt, font_of(13), SIDE_WIDTH - 18)
        room = max(1, (height - 24) // 18)
        if len(lines) > room:
            lines = [*lines[: room - 1], "..."]
        for place, line in enumerate(lines):
            draw.text((MARGIN, y + 2 + 18 * place), line, fill=INK, font=font_of(13))
        draw.text((MARGIN, y + 4 + 18 * len(lines)), f"seed {row.seed}", fill=MUTED, font=font_of(13))
        for index, picture in enumerate(row.pictures):
            resample = Image.Resampling.NEAREST if picture.width < MIN_CELL // 4 else Image.Resampling.LANCZOS
            sheet.paste(picture.convert("RGB").resize((width, height), resample), (MARGIN + SIDE_WIDTH + index * (width + GAP), y))
    return sheet


def cell_size(size: tuple[int, int], *, longest: int = MAX_CELL) -> tuple[int, int]:
    longer = max(size)
    scale = min(max(longer, MIN_CELL), longest) / longer
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def font_of(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}".strip()
        if line and font.getlength(candidate) > width:
            lines.append(line)
            candidate = word
        line = cut(candidate, font, width)
    return [*lines, line]
