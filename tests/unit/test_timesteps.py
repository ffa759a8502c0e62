"""Distributions against their densities, shifts against the published numbers, ranges, and strata over a batch."""

import math
from dataclasses import replace

import pytest
import torch
from pistachio.training.batches import BatchPlan, TrainItem
from pistachio.training.config import TIMESTEP_DISTRIBUTIONS, ObjectiveConfig
from pistachio.training.errors import PistachioError
from pistachio.training.evaluation import EvalItem, plan_draws
from pistachio.training.timesteps import Distribution, distribution_for, sample, shift_by_resolution, shifted, unshifted


class Flow:
    family, is_flow, patch_size = "flow", True, 2

    def __init__(self, shift=3.0):
        self.shift = shift

    def sigma_at(self, t_B):
        return shifted(t_B, self.shift)


class Eps(Flow):
    family, is_flow = "eps", False

    def sigma_at(self, t_B):
        return t_B


def drawn(config, model, shape=(1, 4, 64, 64), n=20_000):
    """Sigmas of a fine grid of u."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return model.sigma_at(sample(distribution_for(config, model), u, shape)).double()


def logit(x):
    return torch.log(x / (1 - x))


def test_logit_normal_and_sigmoid_have_their_mean_and_width():
    model = Flow(1.0)
    z = logit(drawn(ObjectiveConfig(timestep_distribution="logit-normal", logit_mean=0.7, logit_std=0.5), model))
    assert z.mean().item() == pytest.approx(0.7, abs=2e-3) and z.std().item() == pytest.approx(0.5, abs=2e-3)
    z = logit(drawn(ObjectiveConfig(timestep_distribution="sigmoid", sigmoid_scale=1.6, logit_mean=9.0, logit_std=9.0), model))
    assert z.mean().item() == pytest.approx(0.0, abs=2e-3) and z.std().item() == pytest.approx(1.6, abs=1e-2)


@pytest.mark.parametrize("scale", [1.29, 0.81, -0.5])
def test_mode_is_the_papers_transform(scale):
    """f(u) = 1 - u - s (cos^2(pi u / 2) - 1 + u) of uniform u: the same set of levels, and rising in our u."""
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    paper = 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
    ours = sample(Distribution(name="mode", mode_scale=scale), u).double()
    torch.testing.assert_close(ours, paper.flip(0), rtol=0, atol=1e-6)
    assert (ours.diff() > 0).all()


def test_auto_is_what_it_was():
    assert distribution_for(ObjectiveConfig(), Flow()).name == "logit-normal" and distribution_for(ObjectiveConfig(), Eps()).name == "uniform"
    u = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for model, name in ((Flow(), "logit-normal"), (Eps(), "uniform")):
        assert torch.equal(sample(distribution_for(ObjectiveConfig(), model), u, (1, 4, 8, 8)), sample(name, u))


@pytest.mark.parametrize("own", [1.0, 3.0, math.exp(1.15)])
def test_a_given_shift_takes_the_place_of_the_models(own):
    config = ObjectiveConfig(timestep_distribution="uniform", shift="given", shift_value=5.0)
    sigmas = drawn(config, Flow(own))
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    torch.testing.assert_close(sigmas, 5 * u / (1 + 4 * u), rtol=1e-3, atol=2e-5)
    kept = drawn(ObjectiveConfig(timestep_distribution="uniform"), Flow(own))
    torch.testing.assert_close(kept, shifted(u, own), rtol=1e-3, atol=2e-5)


def test_the_shift_by_resolution_is_fluxs():
    """Black Forest Labs' numbers: mu 0.5 at 256 tokens, 1.15 at 4096, linear between; 1024 pixels are 4096 tokens."""
    assert shift_by_resolution((1, 16, 32, 32)) == pytest.approx(math.exp(0.5))
    assert shift_by_resolution((1, 16, 128, 128)) == pytest.approx(math.exp(1.15))
    assert shift_by_resolution((1, 128, 64, 64), patch=1) == pytest.approx(math.exp(1.15))
    assert shift_by_resolution((1, 16, 9, 64, 64)) == pytest.approx(math.exp(0.5 + 0.65 * 768 / 3840))
    config = ObjectiveConfig(timestep_distribution="uniform", shift="resolution")
    small, large = (drawn(config, Flow(), (1, 16, side, side)).median().item() for side in (32, 128))
    assert small == pytest.approx(math.exp(0.5) / (1 + math.exp(0.5)), abs=1e-3)
    assert large == pytest.approx(math.exp(1.15) / (1 + math.exp(1.15)), abs=1e-3)


@pytest.mark.parametrize("model, config", [
    (Flow(3.0), ObjectiveConfig(min_timestep=0.875)),
    (Flow(3.0), ObjectiveConfig(timestep_distribution="uniform", max_timestep=0.4)),
    (Flow(1.5), ObjectiveConfig(timestep_distribution="mode", min_timestep=0.2, max_timestep=0.6, shift="given", shift_value=4.0)),
    (Eps(), ObjectiveConfig(min_timestep=0.1, max_timestep=0.9)),
])
def test_a_range_cuts_and_keeps_the_shape(model, config):
    """The levels are those of the whole distribution that lie inside."""
    cut = drawn(config, model)
    assert cut.min() >= config.min_timestep - 1e-4 and cut.max() <= config.max_timestep + 1e-4
    whole = drawn(replace(config, min_timestep=0.0, max_timestep=1.0), model)
    inside = whole[(whole > config.min_timestep) & (whole < config.max_timestep)]
    for q in (0.1, 0.5, 0.9):
        assert cut.quantile(q).item() == pytest.approx(inside.quantile(q).item(), abs=2e-3)


def test_shift_and_its_inverse():
    for level in (0.01, 0.3, 0.9):
        assert unshifted(shifted(level, 3.0), 3.0) == pytest.approx(level)


def items(n, side=4):
    return [
        TrainItem(content_hash=f"{i}", latents=torch.zeros(1, 2, side, side), condition=0, group="g", prior_condition=0, prior_group="g")
        for i in range(n)
    ]


def plan(objective, batch=8, n=8):
    return BatchPlan(items(n), batch=batch, seed=3, prior_fraction=0.0, distribution="uniform", objective=objective)


def test_strata_hold_one_draw_each_and_need_no_state():
    stratified = plan(ObjectiveConfig(stratified=True))
    places = set()
    for step in range(1, 30):
        t = torch.stack([s.t for s in stratified.samples(step)])
        assert sorted((t * 8).long().tolist()) == list(range(8))
        places.add(int(t[0] * 8))
    assert len(places) > 4  # no sample keeps its part
    again = plan(ObjectiveConfig(stratified=True)).samples(17)
    assert [s.t for s in again] == [s.t for s in stratified.samples(17)]
    loose = [sorted((torch.stack([s.t for s in plan(ObjectiveConfig()).samples(step)]) * 8).long().tolist()) for step in range(1, 10)]
    assert any(cells != list(range(8)) for cells in loose)


def test_strata_are_uniform_over_the_steps():
    drawn_ts = torch.stack([s.t for step in range(1, 150) for s in plan(ObjectiveConfig(stratified=True), batch=4, n=4).samples(step)])
    assert drawn_ts.mean().item() == pytest.approx(0.5, abs=0.01)
    assert ((drawn_ts * 32).long().bincount(minlength=32) > 0).all()


def test_noise_settings_leave_the_other_draws_alone():
    """The same pictures, levels and noise; what is added comes on top."""
    plain = plan(ObjectiveConfig()).samples(5)
    offset = plan(ObjectiveConfig(noise_offset=0.1)).samples(5)
    perturbed = plan(ObjectiveConfig(input_perturbation=0.2)).samples(5)
    for one, two, three in zip(plain, offset, perturbed):
        assert one.t == two.t == three.t and torch.equal(one.noise, three.noise) and one.perturbation is None
        added = (two.noise - one.noise) / 0.1
        assert added.flatten(2).std(2).max() < 1e-5 and added.abs().max() > 0.1  # one number a channel
        assert three.perturbation.std() > 0.5 and not torch.equal(three.perturbation, three.noise)


def test_the_offset_has_the_asked_size():
    means = [s.noise.mean((2, 3)) for step in range(1, 60) for s in plan(ObjectiveConfig(noise_offset=0.5), batch=4, n=4).samples(step)]
    # The mean of 16 normal numbers has a variance of 1/16; the offset adds 0.25.
    assert torch.cat(means).std().item() == pytest.approx(math.sqrt(1 / 16 + 0.25), rel=0.08)


def test_held_out_draws_follow_the_distribution_at_each_pictures_size():
    config = ObjectiveConfig(timestep_distribution="uniform", shift="resolution", max_timestep=0.9)
    model = Flow()
    pictures = [EvalItem(content_hash=f"{side}", latents=torch.zeros(1, 16, side, side), condition=0, group="g") for side in (32, 128)]
    draws = plan_draws(pictures, num_timesteps=8, distribution=distribution_for(config, model))
    for picture in pictures:
        shift = shift_by_resolution(picture.latents.shape)
        sigmas = [float(model.sigma_at(torch.tensor(d.t))) for d in draws if d.content_hash == picture.content_hash]
        top = unshifted(0.9, shift)
        assert sigmas == pytest.approx([shifted((j + 0.5) / 8 * top, shift) for j in range(8)], abs=1e-4)


@pytest.mark.parametrize("config", [ObjectiveConfig(shift="given"), ObjectiveConfig(shift="resolution")])
def test_a_model_without_a_shift_refuses_one(config):
    with pytest.raises(PistachioError, match="has no shift. Choose shift 'model'"):
        distribution_for(config, Eps())


def test_levels_that_follow_no_shift_are_refused():
    class Odd(Flow):
        def sigma_at(self, t_B):
            return t_B.square()

    with pytest.raises(PistachioError, match="follow no shift"):
        distribution_for(ObjectiveConfig(shift="given"), Odd())
    assert distribution_for(ObjectiveConfig(), Odd()).sample(torch.tensor(0.5)) == 0.5


@pytest.mark.parametrize("values, said", [
    ({"timestep_distribution": "logit_normal"}, "Did you mean 'logit-normal'"), ({"shift": "flux"}, "Choose one of"),
    ({"min_timestep": 0.5, "max_timestep": 0.5}, "below max_timestep"), ({"mode_scale": 2.0}, "between -1 and 1.75"),
    ({"logit_std": 0.0}, "above 0"), ({"shift_value": 0.0}, "above 0"), ({"sigmoid_scale": -1.0}, "above 0"),
])
def test_bad_settings_say_what_to_change(values, said):
    with pytest.raises(PistachioError, match=said):
        ObjectiveConfig(**values)


def test_every_offered_distribution_is_there():
    for name in TIMESTEP_DISTRIBUTIONS:
        for model in (Flow(), Eps()):
            t = distribution_for(ObjectiveConfig(timestep_distribution=name), model).sample(torch.tensor([0.1, 0.5, 0.9]))
            assert (t.diff() > 0).all() and 0 < t[0] and t[2] < 1
