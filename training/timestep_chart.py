"""The picture of an objective: how often each noise level is drawn, and how much it counts.

Owns the drawing alone. The curves are those that training itself uses: the distribution's quantiles and the
weighting's factors, for the model and the size that are asked about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch
from PIL import Image, ImageDraw

from .chart import GRID, INK, LEFT, MAIN, MUTED, PAPER, SCALE, WIDTH, _font, _line, _Pen, _ticks, _wrap
from .config import ObjectiveConfig
from .model import TrainableModel
from .objective import Objective
from .timesteps import distribution_for
from .weighting import weights

RIGHT = 868
DENSITY_BOX, WEIGHT_BOX = (84, 344), (414, 584)  # top and bottom of the two panels
SHARE, DRAW = (196, 110, 24), (62, 118, 176)
QUANTILES = 400
NUM_HELD_OUT = 8  # the protocol's timesteps a picture
CEILING = 4.0  # of a density in the picture: a spike at an edge must not flatten the rest

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Over the noise level in the model's own count, 0 clean to 1 pure noise."""

    is_flow: bool
    quantiles: tuple[float, ...]  # ascending
    density: tuple[Point, ...]
    weight: tuple[Point, ...]  # of mean 1 over the draws
    share: tuple[Point, ...]  # density times weight
    held_out: tuple[float, ...]
    shift: float | None


def objective_curves(config: ObjectiveConfig, model: TrainableModel, latent_shape: Sequence[int]) -> Curves:
    """Raises PistachioError where training would."""
    Objective(config, model)
    distribution = distribution_for(config, model)

    def levels(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t = distribution.sample(u, latent_shape)
        sigma = model.sigma_at(t)
        return (sigma.cpu() if model.is_flow else t).double(), sigma

    edges, _ = levels(torch.linspace(0, 1, QUANTILES + 1, dtype=torch.float64).float())
    middles, sigma = levels(((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES).float())
    density = 1 / (QUANTILES * edges.diff().clamp(min=1e-9))
    weight = weights(model, sigma, config).double().cpu()
    weight = weight / weight.mean()
    held_out, _ = levels(((torch.arange(NUM_HELD_OUT, dtype=torch.float64) + 0.5) / NUM_HELD_OUT).float())
    x = middles.tolist()
    return Curves(
        is_flow=model.is_flow, quantiles=tuple(edges.tolist()), density=tuple(zip(x, density.tolist())), weight=tuple(zip(x, weight.tolist())),
        share=tuple(zip(x, (density * weight).tolist())), held_out=tuple(held_out.tolist()),
        shift=distribution.shift_for(latent_shape) if model.is_flow else None,
    )


def sentences(curves: Curves, config: ObjectiveConfig) -> tuple[str, ...]:
    low, middle, high = (curves.quantiles[QUANTILES * q // 4] for q in (1, 2, 3))
    name = "sigma" if curves.is_flow else "timestep / 1000"
    first = f"Half of the draws lie between {low:.2f} and {high:.2f}, the middle one at {middle:.2f} ({name})."
    shift = f"The shift in force is {curves.shift:.2f}. " if curves.shift is not None else ""
    held = ", ".join(f"{level:.2f}" for level in curves.held_out)
    weighting = "Every level counts alike." if config.weighting == "none" else f"Weighted by {config.weighting}; the weights are drawn with a mean of 1."
    return first, f"{shift}{weighting} Held-out pictures are measured at {held}, always without weights."


def draw_timestep_chart(config: ObjectiveConfig, curves: Curves) -> Image.Image:
    """RGB picture, 900 wide."""
    lines = [(line, 20 if i == 0 else 15) for i, sentence in enumerate(sentences(curves, config)) for line in _wrap(sentence, _font(20 if i == 0 else 15), (WIDTH - 80) * SCALE)]
    height = 660 + 26 * len(lines)
    picture = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    pen = _Pen(picture)
    weighted = config.weighting != "none"
    shown = [*(y for _, y in curves.density), *(y for _, y in curves.share if weighted)]
    _panel(
        picture, pen, DENSITY_BOX, "How often a noise level is drawn", _top(shown),
        [(curves.density, MAIN, True), *([(curves.share, SHARE, False)] if weighted else [])], marks=curves.held_out,
    )
    _panel(picture, pen, WEIGHT_BOX, "How much its error counts", _top([y for _, y in curves.weight]), [(curves.weight, SHARE, False)])
    x = RIGHT
    if weighted:
        x = _legend(pen, x, "draws times weight", SHARE)
    x = _legend(pen, x, "held-out draws", DRAW)
    _legend(pen, x, "draws", MAIN)
    name = "sigma" if curves.is_flow else "timestep / 1000"
    pen.write(LEFT, WEIGHT_BOX[1] + 30, "0: clean", 14, MUTED)
    pen.write((LEFT + RIGHT) / 2, WEIGHT_BOX[1] + 30, name, 14, MUTED, "ma")
    pen.write(RIGHT, WEIGHT_BOX[1] + 30, "1: pure noise", 14, MUTED, "ra")
    y = 646
    pen.bar(28, y - 6, 34, height - 18, MAIN)
    for line, size in lines:
        y += 26
        pen.write(52, y - 7, line, size, INK if size == 20 else MUTED, "ls")
    return picture.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _top(values: Sequence[float]) -> float:
    """The panel's upper end: the highest value, unless only an edge reaches it."""
    ordered = sorted(values)
    return 1.12 * max(min(ordered[-1], CEILING * ordered[len(ordered) // 2]), 1e-9)


def _x(level: float) -> float:
    return LEFT + (RIGHT - LEFT) * level


def _panel(picture: Image.Image, pen: _Pen, box: tuple[int, int], title: str, top: float, series: list, *, marks: Sequence[float] = ()) -> None:
    upper, lower = box

    def y(value: float) -> float:
        return lower - (lower - upper) * value / top

    sheet = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle([v * SCALE for v in (LEFT, upper, RIGHT, lower)], fill=(255, 255, 255, 255))
    ticks = _ticks(0, top, wanted=4)
    for tick in ticks:
        _line(draw, [(LEFT, y(tick)), (RIGHT, y(tick))], GRID, 1)
    for i in range(11):
        _line(draw, [(_x(i / 10), upper), (_x(i / 10), lower)], GRID, 0.7)
    curves = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pencil = ImageDraw.Draw(curves)
    for points, colour, filled in series:
        line = [(_x(level), y(value)) for level, value in points]
        if filled:
            area = [(line[0][0], lower), *line, (line[-1][0], lower)]
            pencil.polygon([(px * SCALE, py * SCALE) for px, py in area], fill=(*colour, 46))
        _line(pencil, line, colour, 2.6)
    for level in marks:
        _line(pencil, [(_x(level), lower - 12), (_x(level), lower)], DRAW, 2)
    # A spike is cut at the panel's edge.
    cut = tuple(v * SCALE for v in (LEFT, upper, RIGHT + 1, lower))
    sheet.alpha_composite(curves.crop(cut), dest=cut[:2])
    _line(draw, [(LEFT, lower), (RIGHT, lower)], MUTED, 1)
    picture.paste(sheet, mask=sheet)
    pen.write(28, upper - 50 if upper == DENSITY_BOX[0] else upper - 40, title, 20, INK)
    digits = 0 if ticks[1] >= 1 else min(3, math.ceil(-math.log10(ticks[1])))
    for tick in ticks:
        pen.write(LEFT - 10, y(tick), f"{tick:.{digits}f}", 14, MUTED, "rm")
    for i in range(0, 11, 2):
        pen.write(_x(i / 10), lower + 8, f"{i / 10:.1f}", 14, MUTED, "ma")


def _legend(pen: _Pen, right: float, words: str, colour: tuple[int, int, int]) -> float:
    """Right-aligned at the top; where the next one ends."""
    left = right - _font(14).getlength(words) / SCALE
    pen.write(left, 42, words, 14, MUTED)
    pen.bar(left - 22, 48, left - 6, 53, colour)
    return left - 44
