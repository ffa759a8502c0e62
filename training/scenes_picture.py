"""The test sheet: every scene twice from the same noise, without the LoRA and with it, as one picture.

Owns the drawing alone (Pillow, no font file); what the pictures are is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .grid_picture import CHOSEN, INK, LINE, MARGIN, MUTED, PAPER, cell_size, cut, font_of, wrap

PAIRS_A_ROW = 3
BETWEEN, AROUND = 6, 26  # pixels inside a pair, and from pair to pair
HEADER, LABEL, LINE_HEIGHT, LINES = 70, 24, 18, 2
MAX_SIDE = 320  # longer side of a picture: six pairs then fill a screen


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    scene: str
    without: Image.Image
    with_lora: Image.Image


def draw_scenes(pairs: Sequence[Pair], *, title: str, subtitle: str) -> Image.Image:
    """RGB, the pairs in rows from left to right."""
    width, height = cell_size(pairs[0].without.size, longest=MAX_SIDE)
    across = min(PAIRS_A_ROW, len(pairs))
    down = -(-len(pairs) // across)
    pair_width, pair_height = 2 * width + BETWEEN, LABEL + height + LINES * LINE_HEIGHT + 8
    sheet = Image.new("RGB", (
        2 * MARGIN + across * pair_width + (across - 1) * AROUND, 2 * MARGIN + HEADER + down * pair_height + (down - 1) * AROUND,
    ), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), cut(title, font_of(24), sheet.width - 2 * MARGIN), fill=INK, font=font_of(24))
    draw.text((MARGIN, MARGIN + 34), cut(subtitle, font_of(14), sheet.width - 2 * MARGIN), fill=MUTED, font=font_of(14))
    for index, pair in enumerate(pairs):
        x = MARGIN + index % across * (pair_width + AROUND)
        y = MARGIN + HEADER + index // across * (pair_height + AROUND)
        for place, (label, picture, colour) in enumerate((("base", pair.without, MUTED), ("with the LoRA", pair.with_lora, CHOSEN))):
            left = x + place * (width + BETWEEN)
            draw.text((left + 2, y), cut(label, font_of(14), width), fill=colour, font=font_of(14))
            resample = Image.Resampling.NEAREST if picture.width < width // 4 else Image.Resampling.LANCZOS
            sheet.paste(picture.convert("RGB").resize((width, height), resample), (left, y + LABEL))
            draw.rectangle((left, y + LABEL, left + width - 1, y + LABEL + height - 1), outline=CHOSEN if place else LINE)
        for number, line in enumerate(wrap(pair.scene, font_of(13), pair_width)[:LINES]):
            draw.text((x + 2, y + LABEL + height + 6 + LINE_HEIGHT * number), line, fill=INK, font=font_of(13))
    return sheet
