"""The picture of a run: held-out change over steps, the chosen checkpoint, the verdict below it.

Owns the drawing alone (Pillow, no font file, no display). It reads metrics rows and a `Selection`
and computes nothing that would choose. Coordinates are pixels of the final picture; shapes are drawn
SCALE times larger and reduced, text is drawn at its final size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .selection import Selection

WIDTH, PLOT_HEIGHT = 900, 540
SCALE = 3
LEFT, RIGHT, TOP, BOTTOM = 84, 752, 78, 482  # the axes' box
MAX_TRAIN_POINTS = 700

PAPER, INK, MUTED, GRID = (252, 251, 247), (35, 45, 32), (112, 116, 106), (230, 228, 219)
MAIN, TIE, TRAIN = (70, 130, 58), (240, 197, 92), (200, 196, 185)
QUARTERS = ((62, 118, 176), (64, 162, 166), (204, 128, 48), (164, 74, 128))  # low noise to high noise
QUARTER_NAMES = ("low noise", "mid-low", "mid-high", "high noise")
STATE_COLOURS = {
    "plateau": MAIN, "still improving": (48, 108, 168), "overfit": (196, 110, 24),
    "unclear": (112, 116, 106), "diverged": (182, 52, 44), "not measured": (112, 116, 106),
}
TRAIN_CAPTION = "training loss, own scale: noisy; not used to choose"

Point = tuple[float, float]


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


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
    picture = Image.new("RGB", (WIDTH, PLOT_HEIGHT + 46 + sum(height for *_, height in lines)), PAPER)
    picture.paste(_plot(axes, evaluations, training, selection))
    text = ImageDraw.Draw(picture)
    text.fontmode = "L"
    _draw_labels(text, axes, evaluations, training, selection)
    _draw_words(picture, lines, selection)
    return picture


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
    span = max(high - low, 0.5)
    ticks = _ticks(low - 0.06 * span, high + 0.10 * span)
    return Axes(last_step=last_step, low=low - 0.06 * span, high=high + 0.10 * span, ticks=ticks)


def _ticks(low: float, high: float, wanted: int = 6) -> tuple[float, ...]:
    rough = (high - low) / wanted
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough)
    return tuple(i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def _error_pct(row: dict, selection: Selection) -> float | None:
    if row["se"] is None or not selection.base_loss:
        return None
    return 100 * row["se"] / selection.base_loss


def _plot(axes: Axes, evaluations: list[dict], training: list[dict], selection: Selection) -> Image.Image:
    size = (WIDTH * SCALE, PLOT_HEIGHT * SCALE)
    canvas = Image.new("RGBA", size, (*PAPER, 255))
    box = tuple(v * SCALE for v in (LEFT, TOP, RIGHT, BOTTOM))

    def layer(paint: Callable[[ImageDraw.ImageDraw], None]) -> None:
        """Composite one translucent layer, cut to the axes' box."""
        sheet = Image.new("RGBA", size, (0, 0, 0, 0))
        paint(ImageDraw.Draw(sheet))
        canvas.alpha_composite(sheet.crop(box), dest=box[:2])

    def line(points: list[Point], colour: tuple[int, int, int], width: float, alpha: int = 255) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        layer(lambda d: d.line(scaled, fill=(*colour, alpha), width=round(width * SCALE), joint="curve"))

    draw = ImageDraw.Draw(canvas)
    draw.rectangle(box, fill=(255, 255, 255, 255))
    for tick in axes.ticks:
        line([(LEFT, axes.y(tick)), (RIGHT, axes.y(tick))], GRID, 1)
    for step in _step_ticks(axes.last_step):
        line([(axes.x(step), TOP), (axes.x(step), BOTTOM)], GRID, 1, 150)
    if len(selection.tied_steps) > 1:
        left, right = axes.x(selection.tied_lo) * SCALE, axes.x(selection.tied_hi) * SCALE
        layer(lambda d: d.rectangle((left, box[1], right, box[3]), fill=(*TIE, 64)))
    line(_training_points(axes, training), TRAIN, 1, 190)
    line([(LEFT, axes.y(0)), (RIGHT, axes.y(0))], MUTED, 1.4)

    for quarter, colour in enumerate(QUARTERS):
        for run in _finite_runs([(r["step"], r["t_q"][quarter]) for r in evaluations]):
            line([(axes.x(s), axes.y(p)) for s, p in run], colour, 1.3, 205)
    for run in _finite_runs([(r["step"], r["loss_delta_pct"], _error_pct(r, selection)) for r in evaluations]):
        upper = [(axes.x(s) * SCALE, axes.y(p + e) * SCALE) for s, p, e in run]
        lower = [(axes.x(s) * SCALE, axes.y(p - e) * SCALE) for s, p, e in run]
        if len(run) > 1:
            layer(lambda d: d.polygon(upper + lower[::-1], fill=(*MAIN, 46)))
    for run in _finite_runs([(r["step"], r["loss_delta_pct"]) for r in evaluations]):
        points = [(axes.x(s), axes.y(p)) for s, p in run]
        line(points, MAIN, 3.2)
        for x, y in points:
            layer(lambda d, x=x, y=y: _disc(d, x, y, 3.6, (*MAIN, 255)))
    chosen = next((r for r in evaluations if r["step"] == selection.chosen_step and r["loss_delta_pct"] is not None), None)
    if chosen is not None:
        x, y = axes.x(chosen["step"]), axes.y(chosen["loss_delta_pct"])
        for top in range(TOP, BOTTOM, 9):
            line([(x, top), (x, min(top + 5, BOTTOM))], INK, 1.3, 170)
        for radius, colour in ((10, INK), (8.2, (255, 255, 255)), (5.6, MAIN)):
            _disc(draw, x, y, radius, (*colour, 255))
    draw.line([(box[0], box[3]), (box[2], box[3])], fill=(*MUTED, 255), width=SCALE)
    return canvas.convert("RGB").resize((WIDTH, PLOT_HEIGHT), Image.Resampling.LANCZOS)


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


def _draw_labels(
    text: ImageDraw.ImageDraw, axes: Axes, evaluations: list[dict], training: list[dict], selection: Selection
) -> None:
    halo = {"stroke_width": 3, "stroke_fill": (255, 255, 255)}
    text.text((28, 18), "Loss on the held-out pictures", font=_font(23), fill=INK)
    if selection.n_images:
        noun = "picture" if selection.n_images == 1 else "pictures"
        subtitle = f"change from before training, mean of {selection.n_images} {noun} with one standard error; lower is better"
    else:
        subtitle = "no pictures were held out, so nothing here says which step is best"
    text.text((28, 48), subtitle, font=_font(14), fill=MUTED)
    tick_step = axes.ticks[1] - axes.ticks[0] if len(axes.ticks) > 1 else 1.0
    if evaluations:
        for tick in axes.ticks:
            text.text((LEFT - 10, axes.y(tick)), _percent(tick, tick_step), font=_font(14), fill=MUTED, anchor="rm")
        text.text((LEFT + 8, axes.y(0) - 4), "before training", font=_font(13), fill=MUTED, anchor="ls", **halo)
    for step in _step_ticks(axes.last_step):
        text.text((axes.x(step), BOTTOM + 9), str(step), font=_font(14), fill=MUTED, anchor="ma")
    text.text(((LEFT + RIGHT) / 2, BOTTOM + 30), "step", font=_font(14), fill=MUTED, anchor="ma")
    if training:
        text.text((RIGHT, BOTTOM + 32), TRAIN_CAPTION, font=_font(12), fill=(150, 146, 136), anchor="ra")
    _draw_end_labels(text, axes, evaluations)
    if len(selection.tied_steps) > 1 and axes.x(selection.tied_hi) - axes.x(selection.tied_lo) > 130:
        middle = (axes.x(selection.tied_lo) + axes.x(selection.tied_hi)) / 2
        text.text((middle, BOTTOM - 10), "can't be told apart", font=_font(13), fill=(140, 104, 20), anchor="ms", **halo)
    chosen = next((r for r in evaluations if r["step"] == selection.chosen_step and r["loss_delta_pct"] is not None), None)
    if chosen is not None and selection.chosen_step:
        x, right = axes.x(selection.chosen_step), axes.x(selection.chosen_step) < RIGHT - 190
        label = f"step {selection.chosen_step} {'your choice' if selection.overridden else 'chosen'}"
        for y, line, size in ((TOP + 8, label, 17), (TOP + 30, _percent(chosen["loss_delta_pct"]), 15)):
            text.text((x + (9 if right else -9), y), line, font=_font(size), fill=INK, anchor="la" if right else "ra", **halo)


def _draw_end_labels(text: ImageDraw.ImageDraw, axes: Axes, evaluations: list[dict]) -> None:
    """Names at the right end of the lines, pushed apart where they would touch."""
    series = [("all held-out", 15, MAIN, [r["loss_delta_pct"] for r in evaluations])]
    for quarter, name in enumerate(QUARTER_NAMES):
        series.append((name, 13, QUARTERS[quarter], [r["t_q"][quarter] for r in evaluations]))
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
        text.text((RIGHT + 10, y), name, font=_font(size), fill=colour, anchor="lm")


def _wrapped_words(selection: Selection) -> list[tuple[str, int, tuple[int, int, int], int]]:
    """(line, font size, colour, height) for the words: the verdict larger than what follows."""
    lines = []
    for i, sentence in enumerate(selection.words):
        size, colour, height = (20, INK, 28) if i == 0 else (15, MUTED, 22)
        for j, line in enumerate(_wrap(sentence, _font(size), WIDTH - 84)):
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


def _draw_words(picture: Image.Image, lines: list[tuple], selection: Selection) -> None:
    draw = ImageDraw.Draw(picture)
    colour = STATE_COLOURS[selection.state]
    top = PLOT_HEIGHT + 12
    draw.rounded_rectangle((28, top, 34, picture.height - 22), radius=3, fill=colour)
    y = top
    for line, size, fill, height in lines:
        y += height
        draw.text((52, y - 7), line, font=_font(size), fill=fill, anchor="ls")
