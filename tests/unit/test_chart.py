"""The chart is drawn for every verdict and shows what it should, by the colours where they should be."""

import math
import random

import numpy as np
import pytest

from pistachio.training import chart
from pistachio.training.chart import BOTTOM, LEFT, MAIN, RIGHT, STATE_COLOURS, TOP, draw_loss_chart
from pistachio.training.report import eval_rows
from pistachio.training.selection import NOT_MEASURED, STATES, EvaluationRecord, not_measured, override, select

CURVES = {
    "plateau": [-0.06, -0.10, -0.12, -0.119, -0.1195, -0.119, -0.1185, -0.119],
    "overfit": [-0.06, -0.10, -0.12, -0.10, -0.07, -0.05, -0.03, -0.02],
    "still improving": [-0.01 * c for c in range(1, 9)],
    "unclear": [0.0] * 8,
    "diverged": [-0.06, -0.10, -0.05, 0.5, 3.0, 9.0, 40.0, math.nan],
}


def make_records(changes, count=4):
    rng = random.Random(1)
    sizes = [1 + 0.3 * rng.random() for _ in range(count)]
    t = [(j + 0.5) / 8 for j in range(8)]
    return [
        EvaluationRecord(
            step=60 * c, seconds=1.0, t_values={f"{i}" * 64: tuple(t) for i in range(count)},
            errors={f"{i}" * 64: tuple(0.5 * (0.5 + tj) * (1 + e * size * (0.6 + 0.8 * tj)) for tj in t) for i, size in enumerate(sizes)},
        )
        for c, e in enumerate([0.0, *changes])
    ]


def training_rows(last_step, broken=False):
    rng = random.Random(0)
    rows = [{"kind": "train", "step": s, "loss": 0.5 + 0.2 * rng.gauss(0, 1), "loss_ema": 0.5, "lr": 1e-4} for s in range(1, last_step + 1)]
    if broken:
        rows[-1]["loss"] = None
    return rows


def near(pixel, colour, tolerance=40):
    return max(abs(a - b) for a, b in zip(pixel, colour)) <= tolerance


def count_near(image, box, colour, tolerance=40):
    pixels = np.asarray(image.crop(box), dtype=int)
    return int((np.abs(pixels - np.array(colour)).max(axis=-1) <= tolerance).sum())


@pytest.mark.parametrize("state", STATES)
def test_every_verdict_is_drawn(state):
    records = make_records(CURVES[state])
    selection = select(records)
    assert selection.state == state
    image = draw_loss_chart([*eval_rows(records), *training_rows(480, state == "diverged")], selection)
    assert image.mode == "RGB" and image.width == 900 and image.height > chart.PLOT_HEIGHT + 60
    # The bar beside the words has the verdict's colour.
    assert near(image.getpixel((31, image.height - 40)), STATE_COLOURS[state], 8)
    # The main line is there, and stays within its box even where the run broke.
    assert count_near(image, (LEFT, TOP, RIGHT, BOTTOM), MAIN) > 400
    assert count_near(image, (LEFT, TOP - 12, RIGHT, TOP - 2), MAIN) == 0


def test_the_chosen_step_is_marked_where_it_is():
    records = make_records(CURVES["overfit"])
    selection = select(records)
    plain = override(selection, records, 420)

    def column(picked):
        image = draw_loss_chart(eval_rows(records), picked)
        x = round(LEFT + (RIGHT - LEFT) * picked.chosen_step / 480)
        return sum(sum(image.getpixel((x, y))) < 400 for y in range(TOP + 60, BOTTOM - 8)), image

    dashed, image = column(selection)
    assert selection.chosen_step == 180 and dashed > 150
    x_other = round(LEFT + (RIGHT - LEFT) * 420 / 480)
    assert sum(sum(image.getpixel((x_other, y))) < 400 for y in range(TOP + 60, BOTTOM - 8)) < 40
    assert column(plain)[0] > 150


def test_tied_steps_are_shaded_and_others_are_not():
    records = make_records([-0.02, -0.10, -0.10, -0.10, -0.02, -0.02, -0.02, -0.02])
    selection = select(records)
    assert selection.tied_steps == (120, 180, 240)
    image = draw_loss_chart(eval_rows(records), selection)

    def background(step):
        return image.getpixel((round(LEFT + (RIGHT - LEFT) * step / 480), BOTTOM - 30))

    assert [background(step)[2] < 235 for step in (70, 110, 190, 250, 290, 350)] == [False, True, True, True, False, False]


def test_raw_training_loss_is_faint():
    records = make_records(CURVES["plateau"])
    selection = select(records)
    with_training = draw_loss_chart([*eval_rows(records), *training_rows(480)], selection)
    without = draw_loss_chart(eval_rows(records), selection)
    box = (LEFT + 2, TOP + 2, RIGHT, BOTTOM - 2)
    darker = (np.asarray(without.crop(box), dtype=int) - np.asarray(with_training.crop(box), dtype=int)).sum(axis=-1)
    assert (darker != 0).sum() > 3000
    assert darker.max() < 160  # of 765: never a dark line


def test_it_is_drawn_without_held_out_pictures_and_without_anything():
    image = draw_loss_chart(training_rows(400), not_measured(400))
    assert near(image.getpixel((31, image.height - 40)), STATE_COLOURS[NOT_MEASURED], 8)
    assert draw_loss_chart([], not_measured(400)).width == 900


@pytest.mark.parametrize("changes, count", [([math.nan], 4), ([-0.1], 4), ([], 4), ([-0.1, -0.2], 1), ([1e-9], 4)])
def test_short_and_broken_runs_are_drawn(changes, count):
    records = make_records(changes, count)
    assert draw_loss_chart(eval_rows(records), select(records)).width == 900


def test_many_evaluations_and_large_steps():
    records = make_records([-0.1 * (1 - 0.9**c) for c in range(1, 60)])
    assert draw_loss_chart(eval_rows(records), select(records)).width == 900


@pytest.mark.parametrize("low, high, ticks", [(-15.7, 2.3, (-15, -10, -5, 0)), (-0.5, 0.5, (-0.4, -0.2, 0, 0.2, 0.4)), (0, 1600, (0, 500, 1000, 1500))])
def test_ticks(low, high, ticks):
    assert chart._ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize("value, step, words", [(-12.34, 5, "-12 %"), (-12.34, 0.1, "-12.3 %"), (0.25, 0.05, "+0.25 %"), (0.0, 1, "0 %"), (-0.001, 0.1, "0 %")])
def test_percent(value, step, words):
    assert chart._percent(value, step) == words


def test_words_wrap_within_the_picture():
    font = chart._font(15)
    sentence = "Steps 60 to 960 can't be told apart with 4 pictures; " * 4
    lines = chart._wrap(sentence, font, 2000)
    assert len(lines) > 1 and " ".join(lines) == " ".join(sentence.split())
    assert max(font.getlength(line) for line in lines) <= 2000


def test_the_training_pictures_have_a_line_of_their_own_and_a_gap():
    from pistachio.training.chart import PROBE, train_curve
    from pistachio.training.report import gap_rows

    records = make_records(CURVES["overfit"])
    rows, selection = eval_rows(records), select(records)
    steps = [record.step for record in records]
    probes = [{"kind": "probe", "step": step, "train_loss": 1.0 - 0.0003 * step} for step in (0, *steps[2::2])]
    assert train_curve(rows + probes)[-1] == (probes[-1]["step"], pytest.approx(-0.03 * probes[-1]["step"]))
    last = gap_rows(rows + probes)[-1]
    held_out = next(row["loss_delta_pct"] for row in rows if row["step"] == last["step"])
    assert last["gap_pct"] == pytest.approx(held_out - last["train_delta_pct"])

    box = (LEFT, TOP, RIGHT, BOTTOM)
    with_probes, without = (count_near(draw_loss_chart(r, selection), box, PROBE, 14) for r in (rows + probes, rows))
    assert with_probes > without + 100
