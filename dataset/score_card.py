"""A Report as a picture: the verdict, four small charts of the set, what to better with the pictures concerned.

Owns the drawing alone (Pillow, no font file). Everything is drawn SCALE times larger and reduced.
Knows nothing about how anything was found.
"""

from __future__ import annotations

from functools import cache

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..training.chart import GRID, INK, MAIN, MUTED, PAPER
from ..training.errors import PistachioError
from .findings import GOOD, NOTE, SEVERITIES, STOP, WARNING, Finding, Report
from .images import read_rgb
from .picture_quality import BLURRED_PX
from .types import Dataset

WIDTH, SCALE, EDGE = 900, 3, 28
PANEL_TOP, PANEL_HEIGHT, PANEL_GAP = 104, 150, 16
THUMBNAIL, MOST_THUMBNAILS = 54, 4
WHITE, RED, BLUE, AMBER = (255, 255, 255), (182, 52, 44), (62, 118, 176), (204, 128, 48)
COLOURS = {GOOD: MAIN, NOTE: BLUE, WARNING: AMBER, STOP: RED}
LABELS = {STOP: "stops training", WARNING: "improve this first", NOTE: "good to know"}
BINS = 9

Box = tuple[float, float, float, float]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)


class _Sheet:
    """A growing page: coordinates are pixels of the final picture."""

    def __init__(self, height: int):
        self.image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def write(self, x: float, y: float, words: str, size: int, colour: tuple, anchor: str = "la", *, bold: bool = False) -> None:
        stroke = SCALE // 3 if bold else 0
        self.draw.text((x * SCALE, y * SCALE), words, font=_font(size), fill=colour, anchor=anchor, stroke_width=stroke, stroke_fill=colour)

    def box(self, box: Box, colour: tuple, radius: float = 0, outline: tuple | None = None) -> None:
        self.draw.rounded_rectangle(tuple(v * SCALE for v in box), radius=radius * SCALE, fill=colour, outline=outline, width=SCALE if outline else 0)

    def line(self, points: list[tuple[float, float]], colour: tuple, width: float) -> None:
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], fill=colour, width=round(width * SCALE), joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: tuple) -> None:
        self.draw.ellipse(tuple(v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)), fill=colour)


def draw_score_card(report: Report, dataset: Dataset) -> Image.Image:
    """RGB, 900 wide and as high as the findings need."""
    bad = sorted((f for f in report.findings if f.severity != GOOD), key=lambda f: -SEVERITIES.index(f.severity))
    good = report.of(GOOD)
    blocks = [(finding, _lines(finding, dataset)) for finding in bad]
    rows = (len(good) + 1) // 2
    top = PANEL_TOP + PANEL_HEIGHT + 26
    height = round(top + sum(_block_height(finding, lines) for finding, lines in blocks) + (40 + rows * 44 if good else 0) + 16)
    sheet = _Sheet(height)
    _draw_header(sheet, report)
    _draw_panels(sheet, report)
    y = top
    for finding, lines in blocks:
        _draw_finding(sheet, finding, lines, dataset, y)
        y += _block_height(finding, lines)
    if good:
        _draw_good(sheet, good, y + 8)
    return sheet.image.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _draw_header(sheet: _Sheet, report: Report) -> None:
    facts = report.facts
    sheet.box((EDGE, 22, EDGE + 7, 84), COLOURS[report.worst if report.worst != NOTE else GOOD], 3)
    sheet.write(EDGE + 22, 20, report.verdict, 27, INK)
    trigger = f"trigger word '{facts['trigger_word']}'" if facts["trigger_word"] else "no trigger word"
    line = f"{facts['folder']}: {facts['train']} pictures to train on, {facts['held_out']} held out, {facts['steps']} steps at {facts['resolution']} pixels, {trigger}"
    sheet.write(EDGE + 22, 60, _fitted(line, 15, WIDTH - 2 * EDGE - 22), 15, MUTED)


# ---- charts ---------------------------------------------------------------------------


def _draw_panels(sheet: _Sheet, report: Report) -> None:
    facts, width = report.facts, (WIDTH - 2 * EDGE - 3 * PANEL_GAP) / 4
    boxes = [(EDGE + i * (width + PANEL_GAP), PANEL_TOP, EDGE + i * (width + PANEL_GAP) + width, PANEL_TOP + PANEL_HEIGHT) for i in range(4)]
    for box, title in zip(boxes, ("Shapes", "Framing, by the captions", "Words a caption", "Blur of the sharpest edges")):
        sheet.box(box, WHITE, 6, GRID)
        sheet.write(box[0] + 12, box[1] + 9, title, 14, INK)
    _bars(sheet, boxes[0], facts["shapes"])
    _bars(sheet, boxes[1], facts["framing"])
    _histogram(sheet, boxes[2], [float(n) for n in facts["caption_words"]], unit="", whole=True)
    _histogram(sheet, boxes[3], [b for b in facts["blur_px"] if b is not None], unit=" px", limit=BLURRED_PX)


def _bars(sheet: _Sheet, box: Box, counts: dict[str, int]) -> None:
    most = max([1, *counts.values()])
    step = (PANEL_HEIGHT - 46) / len(counts)
    for i, (name, count) in enumerate(counts.items()):
        y = box[1] + 38 + i * step
        sheet.write(box[0] + 12, y + step / 2, name, 13, MUTED, "lm")
        left, right = box[0] + 82, box[2] - 36
        if count:
            sheet.box((left, y + step / 2 - 6, left + max(3, (right - left) * count / most), y + step / 2 + 6), GRID if name == "unknown" else MAIN, 2)
        sheet.write(box[2] - 12, y + step / 2, str(count), 13, INK if count else MUTED, "rm")


def _histogram(sheet: _Sheet, box: Box, values: list[float], *, unit: str, limit: float | None = None, whole: bool = False) -> None:
    left, right, base = box[0] + 14, box[2] - 14, box[3] - 28
    if not values:
        sheet.write((left + right) / 2, (box[1] + box[3]) / 2, "nothing to measure", 13, MUTED, "mm")
        return
    low = min(values) if limit is None else 0.0
    high = max(values) if limit is None else max(1.25 * limit, 1.05 * max(values))
    if whole and high - low < BINS:  # whole numbers a bar, in the middle
        low -= (BINS - 1 - (high - low)) // 2
        high = low + BINS
    low, span = max(low, 0.0), max(high - low, 1e-6)
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int((value - low) / span * BINS))] += 1
    step = (right - left) / BINS
    for i, count in enumerate(bins):
        if count:
            beyond = limit is not None and low + (i + 0.5) * span / BINS >= limit
            height = (base - box[1] - 44) * count / max(bins)
            sheet.box((left + i * step + 1, base - max(2, height), left + (i + 1) * step - 1, base), AMBER if beyond else MAIN, 2)
    sheet.line([(left, base), (right, base)], MUTED, 1)
    if limit is not None:
        x = left + (right - left) * (limit - low) / span
        sheet.line([(x, box[1] + 36), (x, base)], AMBER, 1.2)
        to_left = x > (left + right) / 2 + 20
        sheet.write(x - 4 if to_left else x + 4, box[1] + 34, "blurred from here", 11, AMBER, "ra" if to_left else "la")
    digits = 0 if whole else 1
    sheet.write(left, base + 6, f"{low:.{digits}f}{unit}", 12, MUTED)
    sheet.write(right, base + 6, f"{low + span:.{digits}f}{unit}", 12, MUTED, "ra")


# ---- findings -------------------------------------------------------------------------


def _lines(finding: Finding, dataset: Dataset) -> list[tuple[str, tuple]]:
    shown = _num_thumbnails(finding)
    width = WIDTH - 2 * EDGE - 46 - (shown * (THUMBNAIL + 6) + 14 if shown else 0)
    told = [(line, INK) for line in _wrapped(finding.words, 15, width)]
    return told + [(line, MUTED) for line in (_wrapped(finding.advice, 15, width) if finding.advice else [])]


def _num_thumbnails(finding: Finding) -> int:
    return min(len(finding.pictures), MOST_THUMBNAILS)


def _block_height(finding: Finding, lines: list) -> float:
    return max(40 + 21 * len(lines), 40 + THUMBNAIL if finding.pictures else 0) + 10


def _draw_finding(sheet: _Sheet, finding: Finding, lines: list, dataset: Dataset, y: float) -> None:
    colour, height = COLOURS[finding.severity], _block_height(finding, lines) - 10
    sheet.box((EDGE, y, WIDTH - EDGE, y + height), WHITE, 6, GRID)
    sheet.box((EDGE, y + 6, EDGE + 5, y + height - 6), colour, 2)
    _draw_mark(sheet, EDGE + 24, y + 21, finding.severity)
    sheet.write(EDGE + 42, y + 12, finding.topic, 16, INK, bold=True)
    sheet.write(EDGE + 42 + _font(16).getlength(finding.topic) / SCALE + 12, y + 14, LABELS[finding.severity], 13, colour)
    for i, (line, ink) in enumerate(lines):
        sheet.write(EDGE + 42, y + 36 + 21 * i, line, 15, ink)
    x = WIDTH - EDGE - 12 - _num_thumbnails(finding) * (THUMBNAIL + 6) + 6
    paths = {picture.relative_path: picture for picture in dataset.pictures}
    for name in finding.pictures[:MOST_THUMBNAILS]:
        _draw_thumbnail(sheet, paths.get(name), x, y + 14)
        x += THUMBNAIL + 6
    if len(finding.pictures) > MOST_THUMBNAILS:
        sheet.write(WIDTH - EDGE - 12, y + 16 + THUMBNAIL, f"and {len(finding.pictures) - MOST_THUMBNAILS} more", 12, MUTED, "ra")


def _draw_thumbnail(sheet: _Sheet, picture, x: float, y: float) -> None:
    size = THUMBNAIL * SCALE
    tile = None
    if picture is not None and picture.clip is None:
        try:
            tile = ImageOps.fit(read_rgb(picture.path), (size, size), Image.Resampling.LANCZOS)
        except PistachioError:
            pass  # the finding says what is wrong with it
    if tile is None:
        sheet.box((x, y, x + THUMBNAIL, y + THUMBNAIL), GRID, 4)
        sheet.write(x + THUMBNAIL / 2, y + THUMBNAIL / 2, "?", 20, MUTED, "mm")
        return
    mask = Image.new("L", (size, size), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size - 1, size - 1), radius=4 * SCALE, fill=255)
    sheet.image.paste(tile, (round(x * SCALE), round(y * SCALE)), mask)


def _draw_mark(sheet: _Sheet, x: float, y: float, severity: str) -> None:
    """A tick, an i, an exclamation mark or a cross on a disc."""
    sheet.disc(x, y, 10, COLOURS[severity])
    if severity == GOOD:
        sheet.line([(x - 4.5, y + 0.5), (x - 1.2, y + 4), (x + 5, y - 4)], WHITE, 2)
    elif severity == STOP:
        sheet.line([(x - 4, y - 4), (x + 4, y + 4)], WHITE, 2.2)
        sheet.line([(x - 4, y + 4), (x + 4, y - 4)], WHITE, 2.2)
    else:
        up = severity == NOTE
        sheet.line([(x, y - 5 + (4 if up else 0)), (x, y + 2 + (4 if up else 0))], WHITE, 2.4)
        sheet.disc(x, y - 4.6 if up else y + 5.4, 1.5, WHITE)


def _draw_good(sheet: _Sheet, good: tuple[Finding, ...], y: float) -> None:
    sheet.write(EDGE, y, "Good as it is", 16, MUTED)
    column = (WIDTH - 2 * EDGE) / 2
    for i, finding in enumerate(good):
        left, top = EDGE + (i % 2) * column, y + 30 + (i // 2) * 44
        _draw_mark(sheet, left + 10, top + 12, GOOD)
        sheet.write(left + 30, top, finding.topic, 14, INK, bold=True)
        sheet.write(left + 30, top + 19, _fitted(finding.words, 13, column - 44), 13, MUTED)


def _wrapped(sentence: str, size: int, width: float) -> list[str]:
    lines, line = [], ""
    for word in (part for whole in sentence.split() for part in _pieces(whole, size, width)):
        candidate = f"{line} {word}".strip()
        if line and _font(size).getlength(candidate) > width * SCALE:
            lines.append(line)
            candidate = word
        line = candidate
    return [*lines, line]


def _pieces(word: str, size: int, width: float) -> list[str]:
    """A file name longer than the line is cut."""
    pieces = []
    while _font(size).getlength(word) > width * SCALE:
        keep = max(1, int(len(word) * width * SCALE / _font(size).getlength(word)) - 1)
        pieces.append(word[:keep])
        word = word[keep:]
    return [*pieces, word]


def _fitted(words: str, size: int, width: float) -> str:
    if _font(size).getlength(words) <= width * SCALE:
        return words
    while words and _font(size).getlength(words + " …") > width * SCALE:
        words = words[:-1]
    return words.rstrip() + " …"
