"""The picture of a run: held-out change over steps, the chosen checkpoint, the verdict below it.

Owns the drawing alone (Pillow, no font file, no display). It reads metrics rows and a `Selection`
and computes nothing that would choose. Coordinates are pixels of the final picture; everything is drawn
SCALE times larger and reduced, which also spaces small text evenly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from .selection import Selection

WIDTH, PLOT_HEIGHT = 900, 540
SCALE = 3
LEFT, RIGHT, TOP, BOTTOM = 84, 752, 78, 482  # the axes' box
MAX_TRAIN_POINTS = 700

PAPER, INK, MUTED, GRID = (252, 251, 247), (35, 45, 32), (112, 116, 106), (230, 228, 219)
PROBE = (150, 120, 60)
MAIN, TIE, TRAIN = (70, 130, 58), (240, 197, 92), (200, 196, 185)
QUARTERS = ((62, 118, 176), (64, 162, 166), (204, 128, 48), (164, 74, 128))  # low noise to high noise
QUARTER_NAMES = ("low noise", "mid-low", "mid-high", "high noise")
STATE_COLOURS = {
    "plateau": MAIN, "still improving": (48, 108, 168), "overfit": (196, 110, 24),
    "unclear": (112, 116, 106), "diverged": (182, 52, 44), "not measured": (112, 116, 106),
}
TRAIN_CAPTION = "training loss, own scale: noisy; not used to choose"

Point = tuple[float, float]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)


class _Pen:
    """Text at final coordinates and sizes on the enlarged picture."""

    def __init__(self, picture: Image.Image):
        self._draw = ImageDraw.Draw(picture)

    def write(
        self, x: float, y: float, words: str, size: int, colour: tuple[int, ...], anchor: str = "la", *, halo: bool = False
    ) -> None:
        self._draw.text(
            (x * SCALE, y * SCALE), words, font=_font(size), fill=colour, anchor=anchor,
            stroke_width=3 * SCALE if halo else 0, stroke_fill=(255, 255, 255),
        )

    def bar(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        self._draw.rounded_rectangle(tuple(v * SCALE for v in (left, top, right, bottom)), radius=3 * SCALE, fill=colour)


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    last_step: int
    low: float  # %
    high: float
    ticks: tuple[float, ...]

    def x(self, step: float) -> float:
        return LEFT + (RIGHT - LEFT) * step / self.last_step

    def y(self, percent: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (percent - self.low) / (self.high - self.low)


def draw_loss_chart(rows: Sequence[dict], selection: Selection) -> Image.Image:
    """RGB picture, 900 wide: 540 of chart and the words below. `rows`: the run's metrics in any order."""
    evaluations = sorted({r["step"]: r for r in rows if r.get("kind") == "eval"}.values(), key=lambda r: r["step"])
    training = sorted((r for r in rows if r.get("kind") == "train"), key=lambda r: r["step"])
    last_step = max([1, selection.last_step, *(r["step"] for r in (*evaluations, *training))])
    axes = _axes(evaluations, selection, last_step)

    lines = _wrapped_words(selection)
    height = PLOT_HEIGHT + 46 + sum(height for *_, height in lines)
    picture = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    probes = train_curve(rows)
    picture.paste(_plot(axes, evaluations, training, selection, probes))
    pen = _Pen(picture)
    _draw_labels(pen, axes, evaluations, training, selection, probes)
    _draw_words(pen, lines, selection, height)
    return picture.resize((WIDTH, height), Image.Resampling.LANCZOS)


def train_curve(rows: Sequence[dict]) -> list[tuple[int, float]]:
    """(step, change in %) of the loss on training pictures at fixed draws, from the run's probes."""
    probes = sorted({r["step"]: r["train_loss"] for r in rows if r.get("kind") == "probe" and r["train_loss"] is not None}.items())
    if not probes or probes[0][0] != 0 or not probes[0][1]:
        return []
    return [(step, 100 * (loss / probes[0][1] - 1)) for step, loss in probes]


def _axes(evaluations: list[dict], selection: Selection, last_step: int) -> Axes:
    main = [p for p in (r["loss_delta_pct"] for r in evaluations) if p is not None]
    low, high = min([0.0, *main]), max([0.0, *main])
    for row in evaluations:
        error = _error_pct(row, selection)
        if row["loss_delta_pct"] is not None and error is not None:
            low, high = min(low, row["loss_delta_pct"] - error), max(high, row["loss_delta_pct"] + error)
        for percent in row["t_q"]:
            if percent is not None:
                low, high = min(low, percent), max(high, percent)
    # A run that broke goes up without end: keep the useful dip readable and let the curve leave the chart.
    if low < 0:
        high = min(high, max(1.2 * -low, 1.0))
        low = max(low, 2.5 * min([-0.4, *main]))
    else:
        high = min(high, 100.0)
    if high - low < 0.01:
        low, high = low - 0.5, high + 0.5
    span = high - low
    ticks = _ticks(low - 0.06 * span, high + 0.16 * span)
    return Axes(last_step=last_step, low=low - 0.06 * span, high=high + 0.16 * span, ticks=ticks)


def _ticks(low: float, high: float, wanted: int = 6) -> tuple[float, ...]:
    rough = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= rough)
    return tuple(i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _error_pct(row: dict, selection: Selection) -> float | None:
    if row["se"] is None or not selection.base_loss:
        return None
    return 100 * row["se"] / selection.base_loss


def _plot(axes: Axes, evaluations: list[dict], training: list[dict], selection: Selection, probes: list[tuple[int, float]]) -> Image.Image:
    canvas = Image.new("RGBA", (WIDTH * SCALE, PLOT_HEIGHT * SCALE), (*PAPER, 255))
    box = tuple(v * SCALE for v in (LEFT, TOP, RIGHT, BOTTOM))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle(box, fill=(255, 255, 255, 255))
    for tick in axes.ticks if evaluations else ():
        _line(draw, [(LEFT, axes.y(tick)), (RIGHT, axes.y(tick))], GRID, 1)
    for step in _step_ticks(axes.last_step):
        _line(draw, [(axes.x(step), TOP), (axes.x(step), BOTTOM)], GRID, 0.7)

    def layer(paint: Callable[[ImageDraw.ImageDraw], None]) -> None:
        """Composite one translucent layer, cut to the axes' box."""
        sheet = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
        paint(ImageDraw.Draw(sheet))
        canvas.alpha_composite(sheet.crop(box), dest=box[:2])

    layer(lambda sheet: _paint_background(sheet, axes, evaluations, selection))
    layer(lambda sheet: _line(sheet, _training_points(axes, training), TRAIN, 0.8, 130))
    layer(lambda sheet: _paint_band(sheet, axes, evaluations, selection))
    layer(lambda sheet: _paint_dashes(sheet, [(axes.x(step), axes.y(percent)) for step, percent in probes]))
    layer(lambda sheet: _paint_lines(sheet, axes, evaluations))
    _line(draw, [(LEFT, BOTTOM), (RIGHT, BOTTOM)], MUTED, 1)
    chosen = _chosen_row(evaluations, selection)
    if chosen is not None:
        x, y = axes.x(chosen["step"]), axes.y(chosen["loss_delta_pct"])
        for top in range(TOP, BOTTOM, 9):
            _line(draw, [(x, top), (x, min(top + 5, BOTTOM))], (80, 88, 76), 1.3)
        for radius, colour in ((10, INK), (8.2, (255, 255, 255)), (5.6, MAIN)):
            _disc(draw, x, y, radius, (*colour, 255))
    return canvas.convert("RGB")


def _paint_background(sheet: ImageDraw.ImageDraw, axes: Axes, evaluations: list[dict], selection: Selection) -> None:
    for left, right in _tied_columns(axes, evaluations, selection):
        sheet.rectangle((left * SCALE, TOP * SCALE, right * SCALE, BOTTOM * SCALE), fill=(*TIE, 64))
    if evaluations:
        _line(sheet, [(LEFT, axes.y(0)), (RIGHT, axes.y(0))], MUTED, 1.4)


def _paint_band(sheet: ImageDraw.ImageDraw, axes: Axes, evaluations: list[dict], selection: Selection) -> None:
    for run in _finite_runs([(r["step"], r["loss_delta_pct"], _error_pct(r, selection)) for r in evaluations]):
        upper = [(axes.x(s) * SCALE, axes.y(p + e) * SCALE) for s, p, e in run]
        lower = [(axes.x(s) * SCALE, axes.y(p - e) * SCALE) for s, p, e in run]
        if len(run) > 1:
            sheet.polygon(upper + lower[::-1], fill=(*MAIN, 46))


def _paint_lines(sheet: ImageDraw.ImageDraw, axes: Axes, evaluations: list[dict]) -> None:
    for quarter, colour in enumerate(QUARTERS):
        for run in _finite_runs([(r["step"], r["t_q"][quarter]) for r in evaluations]):
            _line(sheet, [(axes.x(s), axes.y(p)) for s, p in run], colour, 1.2, 215)
    for run in _finite_runs([(r["step"], r["loss_delta_pct"]) for r in evaluations]):
        points = [(axes.x(s), axes.y(p)) for s, p in run]
        _line(sheet, points, MAIN, 3.2)
        for x, y in points:
            _disc(sheet, x, y, 3.6, (*MAIN, 255))


def _paint_dashes(sheet: ImageDraw.ImageDraw, points: list[Point]) -> None:
    """What the training pictures themselves do: the gap to the held-out line is what was memorised."""
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        length = max(1e-6, math.hypot(x1 - x0, y1 - y0))
        for start in range(0, math.ceil(length), 10):
            near, far = start / length, min(1.0, (start + 6) / length)
            _line(sheet, [(x0 + (x1 - x0) * at, y0 + (y1 - y0) * at) for at in (near, far)], PROBE, 1.8)


def _line(sheet: ImageDraw.ImageDraw, points: list[Point], colour: tuple[int, int, int], width: float, alpha: int = 255) -> None:
    sheet.line([(x * SCALE, y * SCALE) for x, y in points], fill=(*colour, alpha), width=round(width * SCALE), joint="curve")


def _chosen_row(evaluations: list[dict], selection: Selection) -> dict | None:
    rows = [r for r in evaluations if r["step"] == selection.chosen_step and r["loss_delta_pct"] is not None]
    return rows[0] if rows and selection.chosen_step else None


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: tuple[int, ...]) -> None:
    draw.ellipse(tuple(v * SCALE for v in (x - radius, y - radius, x + radius, y + radius)), fill=fill)


def _finite_runs(values: list[tuple]) -> list[list[tuple]]:
    """Cut a series where a value is missing, so that a gap is drawn as a gap."""
    runs: list[list[tuple]] = [[]]
    for value in values:
        if None in value:
            runs.append([])
        else:
            runs[-1].append(value)
    return [run for run in runs if run]


def _training_points(axes: Axes, training: list[dict]) -> list[Point]:
    """The raw loss between 12 % and 88 % of the box: its own scale, cut at the 1st and 99th percentile."""
    finite = [(r["step"], r["loss"]) for r in training if r["loss"] is not None and math.isfinite(r["loss"])]
    if len(finite) < 2:
        return []
    finite = finite[:: math.ceil(len(finite) / MAX_TRAIN_POINTS)]
    ordered = sorted(loss for _, loss in finite)
    low, high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
    height = BOTTOM - TOP
    return [
        (axes.x(step), BOTTOM - height * (0.12 + 0.76 * (min(max(loss, low), high) - low) / max(high - low, 1e-12)))
        for step, loss in finite
    ]


def _step_ticks(last_step: int) -> tuple[int, ...]:
    return tuple(int(t) for t in _ticks(0, last_step, wanted=7) if t == int(t))


def _percent(value: float, step: float = 0.1) -> str:
    digits = 0 if step >= 1 else min(3, math.ceil(-math.log10(step)))
    return f"{value:+.{digits}f} %" if round(value, digits) else "0 %"


def _tied_columns(axes: Axes, evaluations: list[dict], selection: Selection) -> list[tuple[float, float]]:
    """x from and to of each stretch of tied steps, each step with its half of the way to its neighbours."""
    if len(selection.tied_steps) < 2:
        return []
    xs = [axes.x(row["step"]) for row in evaluations]
    columns: list[tuple[float, float]] = []
    for i, row in enumerate(evaluations):
        if row["step"] in selection.tied_steps:
            left = (xs[i - 1] + xs[i]) / 2 if i else xs[i]
            right = (xs[i] + xs[i + 1]) / 2 if i + 1 < len(xs) else xs[i]
            if columns and columns[-1][1] == left:
                left = columns.pop()[0]
            columns.append((left, right))
    return columns


def _draw_labels(
    pen: _Pen, axes: Axes, evaluations: list[dict], training: list[dict], selection: Selection, probes: list[tuple[int, float]]
) -> None:
    pen.write(28, 18, "Loss on the held-out pictures" if evaluations else "Loss on the training pictures", 23, INK)
    if selection.n_images:
        noun = "picture" if selection.n_images == 1 else "pictures"
        subtitle = f"change from before training, mean of {selection.n_images} {noun} with one standard error; lower is better"
    else:
        subtitle = "no pictures were held out, so nothing here says which step is best"
    pen.write(28, 49, subtitle, 14, MUTED)
    tick_step = axes.ticks[1] - axes.ticks[0] if len(axes.ticks) > 1 else 1.0
    chosen = _chosen_row(evaluations, selection)
    x = axes.x(selection.chosen_step)
    to_right = x < RIGHT - 190  # which side of its line the chosen step's label has room on
    if evaluations:
        for tick in axes.ticks:
            pen.write(LEFT - 10, axes.y(tick), _percent(tick, tick_step), 14, MUTED, "rm")
        side, anchor = (RIGHT - 8, "rs") if to_right else (LEFT + 8, "ls")
        pen.write(side, axes.y(0) - 5, "before training", 13, MUTED, anchor, halo=True)
    for step in _step_ticks(axes.last_step):
        pen.write(axes.x(step), BOTTOM + 9, str(step), 14, MUTED, "ma")
    pen.write((LEFT + RIGHT) / 2, BOTTOM + 31, "step", 14, MUTED, "ma")
    if training:
        pen.write(RIGHT, BOTTOM + 33, TRAIN_CAPTION, 12, (150, 146, 136), "ra")
    _draw_end_labels(pen, axes, evaluations, probes)
    left, right = max(_tied_columns(axes, evaluations, selection), key=lambda c: c[1] - c[0], default=(0.0, 0.0))
    if right - left > 130:
        pen.write((left + right) / 2, BOTTOM - 10, "can't be told apart", 13, (140, 104, 20), "ms", halo=True)
    if chosen is not None:
        x, anchor = (x + 9, "la") if to_right else (x - 9, "ra")
        verb = "your choice" if selection.overridden else "chosen"
        pen.write(x, TOP + 7, f"step {selection.chosen_step} {verb}", 17, INK, anchor, halo=True)
        pen.write(x, TOP + 29, _percent(chosen["loss_delta_pct"]), 15, INK, anchor, halo=True)


def _draw_end_labels(pen: _Pen, axes: Axes, evaluations: list[dict], probes: list[tuple[int, float]]) -> None:
    """Names at the right end of the lines, pushed apart where they would touch."""
    series = [("all held-out", 15, MAIN, [r["loss_delta_pct"] for r in evaluations])]
    for quarter, name in enumerate(QUARTER_NAMES):
        series.append((name, 13, QUARTERS[quarter], [r["t_q"][quarter] for r in evaluations]))
    if len(probes) > 1:
        series.append(("training pictures", 13, PROBE, [percent for _, percent in probes]))
    labels = []
    for name, size, colour, values in series:
        finite = [v for v in values if v is not None]
        if finite:
            shown = min(max(finite[-1], axes.low), axes.high)
            beyond = f" {_percent(finite[-1], 1)}" if shown != finite[-1] else ""
            labels.append([axes.y(shown), name + beyond, size, colour])
    labels.sort(key=lambda label: label[0])
    gap = 19
    for i, label in enumerate(labels):
        label[0] = max(label[0], TOP + 6, labels[i - 1][0] + gap if i else 0)
    for i in reversed(range(len(labels))):
        labels[i][0] = min(labels[i][0], BOTTOM - 6, labels[i + 1][0] - gap if i + 1 < len(labels) else BOTTOM)
    for y, name, size, colour in labels:
        pen.write(RIGHT + 14, y, name, size, colour, "lm")


def _wrapped_words(selection: Selection) -> list[tuple[str, int, tuple[int, int, int], int]]:
    """(line, font size, colour, height) for the words: the verdict larger than what follows."""
    lines = []
    for i, sentence in enumerate(selection.words):
        size, colour, height = (20, INK, 28) if i == 0 else (15, MUTED, 22)
        for j, line in enumerate(_wrap(sentence, _font(size), (WIDTH - 80) * SCALE)):
            lines.append((line, size, colour, height + (6 if i == 1 and j == 0 else 0)))
    return lines


def _wrap(sentence: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines, line = [], ""
    for word in sentence.split():
        candidate = f"{line} {word}".strip()
        if line and font.getlength(candidate) > width:
            lines.append(line)
            candidate = word
        line = candidate
    return [*lines, line]


def _draw_words(pen: _Pen, lines: list[tuple], selection: Selection, height: int) -> None:
    y = PLOT_HEIGHT + 12
    pen.bar(28, y, 34, height - 22, STATE_COLOURS[selection.state])
    for line, size, colour, line_height in lines:
        y += line_height
        pen.write(52, y - 7, line, size, colour, "ls")
