"""Each schedule against its formula and, where torch has it, against its own."""

import math

import pytest
import torch
from pistachio.training.config import SCHEDULES, OptimizerConfig
from pistachio.training.errors import PistachioError
from pistachio.training.schedules import learning_rate_at
from torch.optim import lr_scheduler

STEPS, WARMUP, RATE = 60, 12, 3e-3


def rates(schedule, **settings):
    config = OptimizerConfig(learning_rate=RATE, schedule=schedule, warmup_steps=WARMUP, **settings)
    return [learning_rate_at(step, num_steps=STEPS, config=config) for step in range(1, STEPS + 1)]


@pytest.mark.parametrize("schedule, make, settings", [
    ("linear", lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, STEPS - WARMUP), {}),
    ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - WARMUP), {}),
    ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS - WARMUP, eta_min=0.1 * RATE), {"min_lr_ratio": 0.1}),
    ("constant", lambda o: lr_scheduler.ConstantLR(o, 1.0), {}),
    ("cosine-with-restarts", lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, (STEPS - WARMUP) // 4), {"num_cycles": 4}),
    ("polynomial", lambda o: lr_scheduler.PolynomialLR(o, STEPS - WARMUP, power=2.5), {"power": 2.5}),
])
def test_torch_gives_the_same_rates_after_the_warm_up(schedule, make, settings):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=RATE)
    scheduler = make(optimizer)
    theirs = []
    for _ in range(STEPS - WARMUP):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    ours = rates(schedule, **settings)
    assert ours[WARMUP:] == pytest.approx(theirs, abs=1e-12)
    assert ours[:WARMUP] == pytest.approx([RATE * i / WARMUP for i in range(1, WARMUP + 1)])


def test_rex_is_its_formula():
    progress = [i / (STEPS - WARMUP) for i in range(STEPS - WARMUP)]
    assert rates("rex")[WARMUP:] == pytest.approx([RATE * (1 - p) / (0.5 + 0.5 * (1 - p)) for p in progress])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_least_rate_scales_what_the_schedule_takes_away(schedule):
    full, floored = rates(schedule), rates(schedule, min_lr_ratio=0.25)
    assert floored[:WARMUP] == full[:WARMUP]
    assert floored[WARMUP:] == pytest.approx([0.25 * RATE + 0.75 * r for r in full[WARMUP:]])


def test_restarts_begin_at_the_top():
    found = rates("cosine-with-restarts", num_cycles=3)[WARMUP:]
    assert [i for i, r in enumerate(found) if math.isclose(r, RATE)] == [0, 16, 32]


def test_beyond_the_end_the_rate_stays_at_its_least():
    for schedule in SCHEDULES:
        config = OptimizerConfig(schedule=schedule, warmup_steps=0, min_lr_ratio=0.5, learning_rate=1.0)
        assert learning_rate_at(100, num_steps=10, config=config) == (1.0 if schedule == "constant" else 0.5)


@pytest.mark.parametrize("settings, said", [
    ({"schedule": "cosin"}, "Did you mean 'cosine'"), ({"num_cycles": 0}, "num_cycles is 0"), ({"power": 0}, "power is 0"),
    ({"min_lr_ratio": 1.5}, "between 0 and 1"),
])
def test_bad_settings_say_what_to_change(settings, said):
    with pytest.raises(PistachioError, match=said):
        OptimizerConfig(**settings)
