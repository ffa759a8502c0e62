"""Selection rules on hand-made curves; every figure is worked out beside its case."""

import math

import pytest

from pistachio.training.config import EvaluationConfig
from pistachio.training.errors import PistachioError
from pistachio.training.selection import (
    EvaluationRecord,
    build_curve,
    critical_t,
    not_measured,
    override,
    quarters,
    select,
    should_stop,
)

NAN = math.nan
T = (0.2, 0.4, 0.6, 0.8)


def records(changes, *, interval=10, offsets=(-0.001, 0.001, -0.001, 0.001), base=1.0):
    """One picture per offset; picture i's error after step 0 is base + E + offset_i, so that E is exact and SE(0, c) is one constant."""
    made = []
    for index, change in enumerate([0.0, *changes]):
        shift = (lambda offset: 0.0) if index == 0 else (lambda offset: offset)
        made.append(
            EvaluationRecord(
                step=index * interval,
                errors={f"{i:02d}" * 32: (base + change + shift(o),) * 4 for i, o in enumerate(offsets)},
                seconds=1.0,
                t_values={f"{i:02d}" * 32: T for i, _ in enumerate(offsets)},
            )
        )
    return made


def from_table(table, t_values=T):
    """{step: {picture: errors}}"""
    return [
        EvaluationRecord(step=s, errors=errors, seconds=0.0, t_values={h: t_values for h in errors})
        for s, errors in table.items()
    ]


def test_critical_t_is_the_one_sided_80_percent_point():
    assert critical_t(4) == pytest.approx(0.97847, abs=1e-5)  # t(3), published tables: 0.978
    assert critical_t(2) == pytest.approx(1.37638, abs=1e-5)
    assert critical_t(1) == math.inf


def test_paired_standard_error_by_hand():
    # d = (-0.2, -0.4, 0.0): mean -0.2, sd sqrt((0 + .04 + .04) / 2) = 0.2, SE = 0.2 / sqrt(3)
    curve = build_curve(from_table({0: {"a": (1.0,), "b": (2.0,), "c": (6.0,)}, 5: {"a": (0.8,), "b": (1.6,), "c": (6.0,)}}, (0.5,)))
    assert curve.delta_C[1] == pytest.approx(-0.2)
    assert curve.se(0, 1) == pytest.approx(0.2 / math.sqrt(3))
    assert curve.base_loss == pytest.approx(3.0)
    # Pooling the pictures' own levels (1, 2, 6) instead of pairing would give more than 1.
    assert select(from_table({0: {"a": (1.0,), "b": (2.0,)}, 5: {"a": (0.9,), "b": (1.7,)}}, (0.5,))).eval_delta_pct == pytest.approx(
        100 * -0.2 / 1.5
    )


def test_a_picture_is_one_unit_however_many_draws_it_has():
    few = build_curve(from_table({0: {"a": (1.0,), "b": (1.0,)}, 1: {"a": (0.9,), "b": (0.7,)}}, (0.5,)))
    many = build_curve(from_table({0: {"a": (1.0,) * 9, "b": (1.0,) * 9}, 1: {"a": (0.9,) * 9, "b": (0.7,) * 9}}, (0.5,) * 9))
    assert few.se(0, 1) == pytest.approx(many.se(0, 1)) == pytest.approx(0.1)


VERDICTS = [
    # name, E per evaluation, state. SE(0, c) = 0.001 / sqrt(3) = 0.00058 throughout; SE between checkpoints is 0.
    ("tail far above zero", [-0.10, -0.05, 0.2, 0.3, 0.4], "diverged"),
    ("tail above half the gain", [-0.10, 0.05, 0.06, 0.06], "diverged"),  # .0567 > .05
    ("tail above zero but within half the gain", [-0.10, 0.04, 0.04, 0.04], "overfit"),
    ("never better than the base", [0.01, 0.02, 0.03], "diverged"),
    ("not finite at the end", [-0.10, -0.11, NAN], "diverged"),
    ("not finite in the middle", [-0.10, NAN, -0.12], "diverged"),
    ("gain below q SE", [-0.0002, -0.0005, -0.0003, -0.0004], "unclear"),  # .0005 < .978 * .00058 = .00056
    ("gain just above q SE", [-0.0002, -0.0006, -0.0006, -0.0006], "plateau"),
    ("nothing changed", [0.0, 0.0, 0.0], "unclear"),
    ("rise of 11 % of the gain", [-0.05, -0.100, -0.089, -0.089, -0.089], "overfit"),
    ("rise right after a late best", [-0.04, -0.08, -0.100, -0.05, -0.05], "overfit"),
    ("steep fall to the end, over few evaluations", [-0.03, -0.07, -0.10], "still improving"),
    ("worse at first, better at the end", [0.2, 0.1, -0.05], "still improving"),
    ("rise of 9 % of the gain", [-0.05, -0.100, -0.091, -0.091, -0.091], "plateau"),
    ("best is last and falling", [-0.02, -0.04, -0.06, -0.08], "still improving"),
    ("best is last but one and falling", [-0.02, -0.05, -0.09, -0.0895], "still improving"),
    ("best is last but one, the last 6 % worse", [-0.02, -0.06, -0.100, -0.094], "still improving"),
    ("a dip five evaluations after the best", [-0.05, -0.100, -0.098, -0.097, -0.095, -0.092, -0.0965], "plateau"),
    ("falling within 5 % of an early best", [-0.05, -0.100, -0.092, -0.095, -0.096], "still improving"),
    ("falling but 8 % from an early best", [-0.05, -0.100, -0.0905, -0.0910, -0.0920], "plateau"),
    ("early best, then level", [-0.05, -0.100, -0.099, -0.099, -0.099], "plateau"),
    ("best is last but one and the tail rises", [-0.096, -0.0990, -0.100, -0.0985], "plateau"),
]


@pytest.mark.parametrize("changes, state", [case[1:] for case in VERDICTS], ids=[case[0] for case in VERDICTS])
def test_verdict(changes, state):
    assert select(records(changes)).state == state


@pytest.mark.parametrize("gain, state", [(0.0013, "unclear"), (0.0015, "plateau")])
def test_unclear_uses_students_t(gain, state):
    # Two pictures: SE = .001, q = 1.376.
    assert select(records([-gain, -gain, -gain], offsets=(-0.001, 0.001))).state == state


def test_overfit_needs_a_measurable_rise():
    # The tail is 20 % of the gain above the best, but d = (.12, -.04, 0, 0): mean .02, sd .069, q SE .034.
    table = {0: dict.fromkeys("abcd", (1.0,)), 10: dict.fromkeys("abcd", (0.9,))}
    for step in (20, 30, 40):
        table[step] = {"a": (1.02,), "b": (0.86,), "c": (0.9,), "d": (0.9,)}
    noisy = select(from_table(table, (0.5,)))
    assert noisy.state == "plateau"
    for step in (20, 30, 40):  # the same mean rise, shared by all pictures
        table[step] = dict.fromkeys("abcd", (0.92,))
    assert select(from_table(table, (0.5,))).state == "overfit"


WORDS = {
    "diverged": ([-0.10, -0.05, 0.2, 0.3, 0.4],
                 "Training broke the model: it now does worse than before training. Lower the learning rate. We kept step 10."),
    "unclear": ([0.0, 0.0, 0.0], "We can't tell whether training helped; add images or train longer. Treat the pick as a guess."),
    "overfit": ([-0.05, -0.100, -0.05, -0.05, -0.05],
                "From about step 20 it began memorising your training pictures. We kept step 20."),
    "still improving": ([-0.02, -0.04, -0.06], "Not finished: results were still improving. Continue from here."),
    "plateau": ([-0.05, -0.100, -0.099, -0.099, -0.099], "Finished: more steps changed nothing measurable."),
}


@pytest.mark.parametrize("state", WORDS)
def test_verdict_in_words(state):
    changes, words = WORDS[state]
    selection = select(records(changes))
    assert (selection.state, selection.verdict) == (state, words)


def test_training_that_broke_between_evaluations_counts_as_diverged():
    healthy = records([-0.05, -0.08, -0.10])
    assert select(healthy).state == "still improving"
    broken = select(healthy, non_finite_training=True)
    assert (broken.state, broken.chosen_step) == ("diverged", 30)


@pytest.mark.parametrize(
    "changes, chosen",
    [
        ([-0.05, -0.0979, -0.100, -0.09], 30),  # 2.1 % short of the best
        ([-0.05, -0.0981, -0.100, -0.09], 20),  # 1.9 %: the earlier one
        ([-0.0985, -0.0981, -0.100, -0.09], 10),  # the earliest of several
        ([-0.05, -0.09, -0.100, -0.0995], 30),  # a later one near the best never wins
    ],
)
def test_two_percent_tie_break_takes_the_earliest(changes, chosen):
    selection = select(records(changes))
    assert (selection.chosen_step, selection.best_step) == (chosen, 30)


def test_argmin_is_not_smoothed():
    # A three-point mean would move the pick to step 50, in the middle of the broad dip.
    selection = select(records([-0.02, -0.100, -0.02, -0.085, -0.090, -0.085, -0.03]))
    assert selection.best_step == selection.chosen_step == 20


def test_step_zero_is_never_the_pick():
    assert select(records([0.02, 0.01, 0.03])).chosen_step == 20


def test_tied_set_by_hand():
    # Against step 10, d = (.00, .02) at step 20: mean .01, SE .01, q(N=2) = 1.376: tied. At step 30 d = (.03, .04): mean .035, SE .005: not.
    table = {
        0: {"a": (1.0,), "b": (1.0,)}, 10: {"a": (0.5,), "b": (0.5,)}, 20: {"a": (0.5,), "b": (0.52,)}, 30: {"a": (0.53,), "b": (0.54,)},
    }
    selection = select(from_table(table, (0.5,)))
    assert selection.tied_steps == (10, 20)
    assert "Steps 10 to 20 can't be told apart with 2 pictures; we chose 10." in selection.words
    assert "Only 2 pictures held out; the best step is uncertain (10 to 20)." in selection.words


def test_tied_steps_that_do_not_neighbour_are_listed():
    equal = {"a": (0.5,), "b": (0.5,)}
    worse = {"a": (0.6,), "b": (0.6,)}
    selection = select(from_table({0: {"a": (1.0,), "b": (1.0,)}, 10: equal, 20: equal, 30: worse, 40: equal}, (0.5,)))
    assert selection.words[1].startswith("Steps 10 to 20 and 40 can't be told apart")
    assert (selection.tied_lo, selection.tied_hi) == (10, 40)


@pytest.mark.parametrize(
    "count, tied_last, flag",
    [(3, 10, True), (4, 10, False), (4, 30, False), (4, 40, True), (8, 40, True)],  # 30 / 10 is not more than 3
)
def test_too_small_flag(count, tied_last, flag):
    changes = [-0.1 if step in (10, tied_last) else -0.05 for step in (10, 20, 30, 40)]
    selection = select(records(changes, offsets=(0.001, -0.001) * (count // 2) + (0.0,) * (count % 2)))
    assert selection.tied_steps == tuple(dict.fromkeys((10, tied_last)))
    assert selection.too_few is flag
    assert any(word.startswith("Only ") for word in selection.words) is flag


@pytest.mark.parametrize(
    "count, last_words",
    [(4, "4 pictures were held out: 4 pictures is the minimum we trust; 8 is clearly better."), (8, "8 pictures were held out."),
     (2, "4 pictures is the minimum we trust; 8 is clearly better.")],
)
def test_words_on_the_number_of_pictures(count, last_words):
    assert select(records([-0.05, -0.1, -0.05], offsets=(0.001, -0.001) * (count // 2))).words[-1] == last_words


def test_one_picture_can_prove_nothing():
    selection = select(records([-0.05, -0.10, -0.10], offsets=(0.0,)))
    assert (selection.state, selection.too_few, selection.eval_se) == ("unclear", True, math.inf)


def test_no_usable_checkpoint():
    assert select(records([NAN, NAN])).chosen_step == 0
    assert select(records([])).state == "unclear"


def test_the_order_of_records_does_not_matter():
    made = records([-0.05, -0.10, -0.08, -0.07])
    assert select(made[::-1]) == select(made)


def test_override_is_recorded_once():
    made = records([-0.05, -0.10, -0.08, -0.07])
    mine = override(override(select(made), made, 30), made, 40)
    assert (mine.chosen_step, mine.automatic_step, mine.overridden) == (40, 20, True)
    assert mine.eval_delta == pytest.approx(-0.07)
    assert [w for w in mine.words if "automatic" in w] == ["You chose step 40; the automatic choice was step 20."]
    with pytest.raises(PistachioError, match="Step 35 has no checkpoint"):
        override(mine, made, 35)


def test_without_held_out_pictures_nothing_is_claimed():
    selection = not_measured(400)
    assert (selection.chosen_step, selection.state) == (400, "not measured")
    assert "Nothing here can detect memorising." in selection.words


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: r[1:], "step 0 is missing"),
        (lambda r: [*r, r[-1]], "two evaluations of one step"),
        (lambda r: [*r, EvaluationRecord(step=99, errors={"x": (1.0,)}, seconds=0, t_values={"x": (0.5,)})], "other pictures or draws"),
        (lambda r: [], "no evaluation yet"),
    ],
)
def test_records_that_cannot_be_compared_are_refused(change, message):
    with pytest.raises(PistachioError, match=message):
        select(change(records([-0.1, -0.2])))


FALL = [-0.01 * c for c in range(1, 9)]  # eight evaluations, each better
STOPS = [
    ("fewer than eight evaluations", [-0.10, *[-0.09] * 6], None),  # 6 since best, 7 in all
    ("patience of five, eight in all", [-0.10, *[-0.09] * 7], "No better checkpoint in 7 evaluations since step 10."),
    ("four since the best", [*FALL, *[-0.07] * 4], None),
    ("five since the best", [*FALL, *[-0.07] * 5], "No better checkpoint in 5 evaluations since step 80."),
    ("still falling", FALL, None),
    ("above the base by one SE once", [-0.05, 0.01], None),
    ("above the base by one SE twice running", [-0.05, 0.01, 0.01], "above the base model's"),
    ("above the base twice, not running", [0.01, -0.05, 0.01], None),
    ("above the base within one SE", [0.0005, 0.0005, 0.0005], None),  # SE is .00058
    ("not finite", [-0.05, NAN], "not a finite number at step 20"),
]


@pytest.mark.parametrize("changes, reason", [case[1:] for case in STOPS], ids=[case[0] for case in STOPS])
def test_early_stop(changes, reason):
    found = should_stop(records(changes), EvaluationConfig(patience=5, min_evaluations=8))
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_early_stop_switched_off_still_stops_at_a_non_finite_loss():
    off = EvaluationConfig(early_stop=False)
    assert should_stop(records([-0.05, 0.1, 0.1, 0.1]), off) is None
    assert "not a finite number" in should_stop(records([-0.05, NAN]), off)


def test_patience_and_minimum_come_from_the_configuration():
    made = records([-0.10, -0.09, -0.09])
    assert should_stop(made, EvaluationConfig(patience=2, min_evaluations=3)) is not None
    assert should_stop(made, EvaluationConfig(patience=3, min_evaluations=3)) is None
    assert should_stop(made, EvaluationConfig(patience=2, min_evaluations=4)) is None


def test_quarters_by_hand():
    # Four timesteps, given unsorted: the quarter follows t, not the place.
    table = {0: {"a": (4.0, 1.0, 3.0, 2.0)}, 10: {"a": (2.0, 0.9, 3.3, 2.0)}, 20: {"a": (3.0, 0.5, 3.0, 1.0)}}
    found = quarters(from_table(table, (0.8, 0.2, 0.6, 0.4)))
    assert found.delta_pct[1] == pytest.approx((-10.0, 0.0, 10.0, -50.0))
    assert found.best_steps == (20, 20, 20, 10)
    assert (found.best_step_low_noise, found.best_step_high_noise) == (20, 10)  # high: 5.3 and 6.0 of 7


def test_quarters_without_draws_are_empty():
    found = quarters(from_table({0: {"a": (1.0, 1.0)}, 10: {"a": (0.9, 0.8)}}, (0.3, 0.7)))
    assert found.delta_pct[1] == (pytest.approx(-10.0), None, pytest.approx(-20.0), None)
    assert found.best_steps == (10, None, 10, None)
