"""Settings, schedules and timesteps: their numbers and their errors."""

import math

import pytest
import torch
from pistachio.training.config import (
    AdapterConfig, EvaluationConfig, LoggingConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, from_dict, to_dict,
)
from pistachio.training.errors import PistachioError
from pistachio.training.optimizers import clip_gradient
from pistachio.training.schedules import learning_rate_at
from pistachio.training.seeds import seed_from
from pistachio.training.timesteps import resolve, sample


def test_warm_up_rises_to_the_learning_rate_and_cosine_falls_to_zero():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=10, schedule="cosine")
    rates = [learning_rate_at(step, num_steps=110, config=config) for step in range(1, 111)]
    assert rates[:10] == pytest.approx([0.2 * i for i in range(1, 11)])
    assert rates[10] == 2.0 and rates[60] == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.001 and all(a >= b for a, b in zip(rates[10:], rates[11:]))


def test_constant_stays_and_warm_up_never_takes_more_than_half_a_run():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=100, schedule="constant")
    rates = [learning_rate_at(step, num_steps=20, config=config) for step in range(1, 21)]
    assert rates[9:] == [1.0] * 11


@pytest.mark.parametrize("distribution, cdf", [
    ("uniform", lambda t: t),
    ("logit-normal", lambda t: 0.5 * (1 + math.erf(math.log(t / (1 - t)) / math.sqrt(2)))),
])
def test_timesteps_are_the_inverse_of_their_cdf(distribution, cdf):
    for u in (0.01, 0.2, 0.5, 0.77, 0.99):
        assert cdf(float(sample(distribution, u))) == pytest.approx(u, abs=1e-5)
    assert ((sample(distribution, torch.tensor([0.0, 1.0])) - 0.5).abs() < 0.5).all()


def test_automatic_timesteps_follow_the_family():
    assert resolve("auto", is_flow=True) == "logit-normal" and resolve("auto", is_flow=False) == "uniform"
    assert resolve("uniform", is_flow=True) == "uniform"


@pytest.mark.parametrize("max_norm, expected", [(1.0, 1.0), (100.0, 50.0), (0.0, 50.0)])
def test_clipping_scales_only_what_is_too_long(max_norm, expected):
    gradient = torch.tensor([30.0, 40.0])
    assert clip_gradient(gradient, max_norm).item() == pytest.approx(50.0)
    assert gradient.norm().item() == pytest.approx(expected, rel=1e-5)


def test_settings_survive_json_and_unknown_ones_are_refused():
    config = TrainConfig(num_steps=7, adapter=AdapterConfig(rank=3), optimizer=OptimizerConfig(schedule="constant"))
    assert from_dict(TrainConfig, to_dict(config)) == config
    with pytest.raises(PistachioError, match="rnak"):
        from_dict(TrainConfig, {"adapter": {"rnak": 3}})


@pytest.mark.parametrize("make", [
    lambda: AdapterConfig(rank=0), lambda: AdapterConfig(targets="everything"), lambda: AdapterConfig(kind="loha?"),
    lambda: OptimizerConfig(learning_rate=0), lambda: OptimizerConfig(schedule="sine"), lambda: OptimizerConfig(ema_decay=1.0),
    lambda: ObjectiveConfig(prior_fraction=1.0), lambda: EvaluationConfig(timesteps_per_image=0),
    lambda: LoggingConfig(wandb="yes"), lambda: TrainConfig(batch_size=0), lambda: TrainConfig(precision="fp16"),
])
def test_a_bad_setting_names_its_value_or_choices(make):
    with pytest.raises(PistachioError) as raised:
        make()
    assert any(word in str(raised.value) for word in ("Set", "Choose"))


@pytest.mark.parametrize("pictures, batch, steps", [(16, 1, 1600), (16, 4, 400), (3, 1, 400), (500, 1, 4000)])
def test_the_automatic_number_of_steps(pictures, batch, steps):
    assert TrainConfig(batch_size=batch).resolve_num_steps(pictures).num_steps == steps
    assert TrainConfig(batch_size=batch, num_steps=9).resolve_num_steps(pictures).num_steps == 9


def test_the_average_remembers_a_twelfth_of_the_run():
    assert TrainConfig(num_steps=600).ema_decay == pytest.approx(0.98)
    assert TrainConfig(num_steps=600, optimizer=OptimizerConfig(ema_decay=0.5)).ema_decay == 0.5


def test_seeds_are_fixed_for_ever():
    assert seed_from("sample", 0, 1, 0) == seed_from("sample", 0, 1, 0) != seed_from("sample", 0, 1, 1)
    assert seed_from("a", "bc") != seed_from("ab", "c")
