"""Losses and weightings against their published formulas, for eps, v and flow models; masks, weights of items, extra noise."""

import math
from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from pistachio.training.batches import Sample, TrainItem
from pistachio.training.config import LOSSES, WEIGHTINGS, AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.errors import PistachioError
from pistachio.training.evaluation import EvalItem, evaluate, plan_draws
from pistachio.training.loop import RunInfo, train
from pistachio.training.objective import Objective, squared_error
from pistachio.training.run import RunFolder
from pistachio.training.timestep_chart import draw_timestep_chart, objective_curves, sentences
from pistachio.training.step import sample_losses
from pistachio.training.trainer import Trainer
from pistachio.training.weighting import signal_to_noise, weights

SIGMAS = {"flow": torch.tensor([0.05, 0.3, 0.7, 0.95]), "eps": torch.tensor([0.1, 0.6, 2.0, 12.0]), "v": torch.tensor([0.1, 0.6, 2.0, 12.0])}


def view(sigma_B, like):
    return sigma_B.view(-1, *[1] * (like.ndim - 1))


class Model:
    """The formulas of ComfyUI's CONST, EPS and V_PREDICTION."""

    patch_size = 2

    def __init__(self, family):
        self.family, self.is_flow = family, family == "flow"

    def sigma_at(self, t_B):
        return t_B if self.is_flow else 0.03 * (15 / 0.03) ** t_B

    def add_noise(self, latents, noise, sigma_B):
        s = view(sigma_B, latents)
        return s * noise + (1 - s) * latents if self.is_flow else latents + s * noise

    def output_scale(self, sigma_B):
        return -sigma_B if self.family != "v" else -sigma_B / (sigma_B.square() + 1).sqrt()

    def skip_scale(self, sigma_B):
        return torch.ones_like(sigma_B) if self.family != "v" else 1 / (sigma_B.square() + 1)

    def denoised(self, x_t, output, sigma_B):
        return view(self.skip_scale(sigma_B), x_t) * x_t + view(self.output_scale(sigma_B), x_t) * output

    def right_output(self, x0, noise, sigma_B):
        """What the network is asked for."""
        s = view(sigma_B, x0)
        if self.family == "eps":
            return noise
        if self.family == "flow":
            return noise - x0
        return (noise - s * x0) / (s.square() + 1).sqrt()


def draw(seed, shape=(4, 3, 5, 6)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def losses(config, family, *, error=0.4, masks=(None,) * 4, seed=0):
    """Through x0_hat, as in training; and the network's own error."""
    model, sigma_B = Model(family), SIGMAS[family]
    x0, noise = draw(seed), draw(seed + 1)
    x_t = model.add_noise(x0, noise, sigma_B)
    wrong = error * draw(seed + 2)
    output = model.right_output(x0, noise, sigma_B) + wrong
    t_B = torch.tensor([0.1, 0.3, 0.6, 0.9])
    return Objective(config, model).losses(model.denoised(x_t, output, sigma_B), x0, sigma_B, t_B, masks), wrong, t_B


FAMILIES = ["flow", "eps", "v"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_error_in_the_networks_output(family):
    found, wrong, _ = losses(ObjectiveConfig(), family)
    torch.testing.assert_close(found, wrong.square().flatten(1).mean(1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss", ["huber", "smooth-l1"])
def test_pseudo_huber_is_its_formula(family, loss):
    delta = 0.2
    found, wrong, _ = losses(ObjectiveConfig(loss=loss, loss_delta=delta), family)
    expected = 2 * ((wrong.square() + delta**2).sqrt() - delta) * (delta if loss == "huber" else 1)
    torch.testing.assert_close(found, expected.flatten(1).mean(1), rtol=1e-3, atol=1e-5)


def test_huber_turns_from_squared_to_absolute():
    squared = losses(ObjectiveConfig(loss="huber", loss_delta=100.0), "flow")
    torch.testing.assert_close(squared[0], squared[1].square().flatten(1).mean(1), rtol=2e-2, atol=1e-3)
    absolute = losses(ObjectiveConfig(loss="smooth-l1", loss_delta=1e-4), "flow")
    torch.testing.assert_close(absolute[0], 2 * absolute[1].abs().flatten(1).mean(1), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_delta_follows_sd_scripts_schedules(family):
    model, sigma_B = Model(family), SIGMAS[family]
    t_B = torch.tensor([0.1, 0.3, 0.6, 0.9])
    found = Objective(ObjectiveConfig(loss="huber", delta_schedule="exponential", loss_delta=0.1), model).delta(sigma_B, t_B)
    # exp(-alpha t) with alpha = -log(delta) / 1000
    level = 1000 * (sigma_B if model.is_flow else t_B)
    torch.testing.assert_close(found, torch.exp(math.log(0.1) / 1000 * level))
    found = Objective(ObjectiveConfig(loss="huber", delta_schedule="snr", loss_delta=0.1), model).delta(sigma_B, t_B)
    noise = sigma_B / (1 - sigma_B) if model.is_flow else sigma_B
    torch.testing.assert_close(found, (1 - 0.1) / (1 + noise) ** 2 + 0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_signal_to_noise_ratio(family):
    s = SIGMAS[family]
    torch.testing.assert_close(signal_to_noise(Model(family), s), ((1 - s) / s).square() if family == "flow" else s.pow(-2))


@pytest.mark.parametrize("family", FAMILIES)
def test_min_snr_is_the_papers_in_every_output_space(family):
    """Hang et al.: eps min(snr, g) / snr, v min(snr, g) / (snr + 1); flow: the error in the picture is sigma times the error in velocity."""
    s, gamma = SIGMAS[family], 5.0
    snr = ((1 - s) / s).square() if family == "flow" else s.pow(-2)
    expected = {"eps": snr.clamp(max=gamma) / snr, "v": snr.clamp(max=gamma) / (snr + 1), "flow": snr.clamp(max=gamma) * s.square()}[family]
    torch.testing.assert_close(weights(Model(family), s, ObjectiveConfig(weighting="min-snr")), expected)
    found, wrong, _ = losses(ObjectiveConfig(weighting="min-snr"), family)
    torch.testing.assert_close(found, expected * wrong.square().flatten(1).mean(1), rtol=1e-3, atol=1e-5)


def test_debiased_is_the_papers():
    s = SIGMAS["eps"]
    torch.testing.assert_close(weights(Model("eps"), s, ObjectiveConfig(weighting="debiased")), s.pow(-2).clamp(max=1000).rsqrt())
    # The same share of the error in the picture for the others.
    for family in ("flow", "v"):
        s, model = SIGMAS[family], Model(family)
        snr = signal_to_noise(model, s)
        torch.testing.assert_close(weights(model, s, ObjectiveConfig(weighting="debiased")), snr.sqrt() * model.output_scale(s).square())


def test_sd3s_weightings():
    s = SIGMAS["flow"]
    torch.testing.assert_close(weights(Model("flow"), s, ObjectiveConfig(weighting="sigma-sqrt")), s**-2)
    torch.testing.assert_close(weights(Model("flow"), s, ObjectiveConfig(weighting="cosmap")), 2 / (math.pi * (1 - 2 * s + 2 * s**2)))
    assert weights(Model("flow"), torch.tensor([1e-5]), ObjectiveConfig(weighting="sigma-sqrt")).item() == pytest.approx(1e6)


@pytest.mark.parametrize("weighting", ["sigma-sqrt", "cosmap"])
def test_a_weighting_for_flow_models_is_refused_elsewhere(weighting):
    with pytest.raises(PistachioError, match="is for flow models.*Choose min-snr"):
        Objective(ObjectiveConfig(weighting=weighting), Model("eps"))


def test_notes_say_what_does_little():
    assert Objective(ObjectiveConfig(), Model("flow")).notes(1) == []
    assert "flow model" in Objective(ObjectiveConfig(noise_offset=0.1), Model("flow")).notes(4)[0]
    assert Objective(ObjectiveConfig(noise_offset=0.1), Model("eps")).notes(4) == []
    assert "batch 1" in Objective(ObjectiveConfig(stratified=True), Model("eps")).notes(1)[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_mask_weighs_places(loss):
    """Half black: the black half counts for nothing, and the white half as much as a whole picture of it."""
    mask = torch.zeros(1, 1, 5, 6)
    mask[..., :3] = 1
    plain, wrong, _ = losses(ObjectiveConfig(loss=loss), "flow")
    masked, _, _ = losses(ObjectiveConfig(loss=loss), "flow", masks=(mask, None, 2 * mask, None))
    torch.testing.assert_close(masked[[1, 3]], plain[[1, 3]], rtol=1e-5, atol=1e-6)
    for i in (0, 2):
        if loss == "mse":
            assert masked[i].item() == pytest.approx(wrong[i][..., :3].square().mean().item(), rel=1e-3)
        assert masked[i] != plain[i]


def test_a_mask_of_a_video_covers_every_frame():
    model, sigma_B = Model("flow"), torch.tensor([0.5])
    x0, wrong = draw(0, (1, 2, 3, 4, 4)), draw(1, (1, 2, 3, 4, 4))
    mask = torch.zeros(1, 1, 1, 4, 4)
    mask[..., 0, :] = 1
    found = Objective(ObjectiveConfig(), model).losses(x0 + 0.5 * wrong, x0, sigma_B, sigma_B, [mask])
    assert found.item() == pytest.approx(wrong[..., 0, :].square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_extra_noise_is_seen_and_not_asked_for(family):
    """A network that gives the output that was right without the extra noise has no error."""
    model, sigma_B = Model(family), SIGMAS[family]
    x0, noise, extra = draw(0), draw(1), draw(2)
    objective = Objective(ObjectiveConfig(input_perturbation=0.3), model)
    x_t, target = objective.perturbed(model.add_noise(x0, noise, sigma_B), x0, extra, sigma_B)
    torch.testing.assert_close(x_t, model.add_noise(x0, noise + 0.3 * extra, sigma_B), rtol=1e-5, atol=1e-5)
    x0_hat = model.denoised(x_t, model.right_output(x0, noise, sigma_B), sigma_B)
    assert squared_error(model, x0_hat, target, sigma_B).max() < 1e-8
    assert squared_error(model, x0_hat, x0, sigma_B).min() > 1e-4


# ---- in the step --------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(3, 3)

    def forward(self, x):
        return self.mix(x.movedim(1, -1)).movedim(-1, 1)


class Trainable(Model):
    key_prefix, device = "", torch.device("cpu")

    def __init__(self, family="flow"):
        super().__init__(family)
        torch.manual_seed(0)
        self.network = Net().requires_grad_(False)

    def predict(self, x_t, sigma_B, conditions):
        return self.denoised(x_t, self.network(x_t), sigma_B)

    def joined(self, conditions):
        return conditions

    def condition_group(self, condition):
        return "one"

    def blocks(self):
        return []

    def is_linear(self, module):
        return isinstance(module, torch.nn.Linear)

    def is_conv(self, module):
        return False

    def weight_for_backward(self, module, like):
        return nullcontext(module.weight)


def item(i, **changes):
    return TrainItem(content_hash=f"{i}", latents=draw(50 + i, (1, 3, 5, 6)), condition=0, group="g", prior_condition=0, prior_group="g", **changes)


def trainer(items, model=None, **objective):
    settings = {"prior_fraction": 0.0} | objective
    return Trainer(model or Trainable(), items, TrainConfig(
        num_steps=20, batch_size=2, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear"),
        optimizer=OptimizerConfig(learning_rate=1e-2), objective=ObjectiveConfig(**settings),
    ))


def first_loss(items, **objective):
    made = trainer(items, **objective)
    with made.network:
        return made.advance().loss


def test_an_items_weight_scales_its_loss():
    assert first_loss([item(i, loss_weight=0.5) for i in range(2)]) == pytest.approx(0.5 * first_loss([item(i) for i in range(2)]), rel=1e-5)


def test_a_white_mask_changes_nothing_and_a_half_one_does():
    plain = first_loss([item(0), item(1)])
    white, half = torch.ones(1, 1, 5, 6), torch.ones(1, 1, 5, 6)
    half[..., :3] = 0
    assert first_loss([item(i, mask=white) for i in range(2)]) == pytest.approx(plain, rel=1e-5)
    assert first_loss([item(i, mask=half) for i in range(2)]) != pytest.approx(plain, rel=1e-3)


def test_prior_samples_are_not_masked():
    """They hold the whole picture where the base has it."""
    made = trainer([item(0, mask=torch.zeros(1, 1, 5, 6))], prior_fraction=0.5)
    sample = Sample(item=made.plan.samples(1)[0].item, t=torch.tensor(0.5), noise=draw(9, (1, 3, 5, 6)), is_prior=True)
    with torch.no_grad():
        made.network.parameters.add_(0.3)
    with made.network:
        own_sample = Sample(item=sample.item, t=sample.t, noise=sample.noise, is_prior=False)
        prior, own = (sample_losses(made.model, made.network, made.objective, [each]) for each in (sample, own_sample))
    assert prior.item() > 0 and own.item() == 0


@pytest.mark.parametrize("objective", [
    {}, {"loss": "huber", "delta_schedule": "snr"}, {"weighting": "min-snr"}, {"noise_offset": 0.1, "input_perturbation": 0.1},
    {"stratified": True, "weighting": "debiased", "loss": "smooth-l1"},
])
@pytest.mark.parametrize("family", ["flow", "v"])
def test_each_setting_trains_and_gives_the_same_step_again(objective, family):
    found = []
    for _ in range(2):
        made = trainer([item(0), item(1)], Trainable(family), **objective)
        with made.network:
            results = [made.advance().loss for _ in range(6)]
        assert all(math.isfinite(loss) for loss in results)
        found.append((results, made.network.parameters.clone()))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])


def test_the_held_out_error_is_the_plain_one_whatever_is_trained():
    model = Trainable()
    pictures = [EvalItem(content_hash=f"{i}", latents=draw(70 + i, (1, 3, 5, 6)), condition=0, group="g") for i in range(3)]

    def measured(**objective):
        made = trainer([item(0)], model, **objective)
        draws = plan_draws(pictures, num_timesteps=4, distribution=made.distribution)
        with made.network:
            return evaluate(model, pictures, draws, batch_size=2)

    plain = measured()
    assert measured(loss="huber", weighting="min-snr", noise_offset=0.2, input_perturbation=0.2, stratified=True) == plain
    assert measured(min_timestep=0.5) != plain


def test_a_run_notes_what_its_objective_changes_little(tmp_path):
    """In its metrics, and so in the report."""
    settings = TrainConfig(
        num_steps=2, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear"),
        objective=ObjectiveConfig(noise_offset=0.1, stratified=True, prior_fraction=0.0),
    )
    folder = RunFolder(tmp_path / "run")
    folder.write_json("config.json", {})
    train(Trainable(), [item(0)], [], settings, folder, RunInfo(name="run"))
    notes = [row["text"] for row in folder.metrics() if row["kind"] == "note"]
    assert any("Noise offset is on for a flow model" in note for note in notes) and any("batch 1" in note for note in notes)


# ---- the plot -----------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_plots_curves_are_densities(family, weighting):
    config = ObjectiveConfig(weighting=weighting, timestep_distribution="logit-normal", min_timestep=0.1)
    if weighting in ("sigma-sqrt", "cosmap") and family != "flow":
        with pytest.raises(PistachioError):
            objective_curves(config, Model(family), (1, 4, 32, 32))
        return
    curves = objective_curves(config, Model(family), (1, 4, 32, 32))
    widths = [b - a for a, b in zip(curves.quantiles, curves.quantiles[1:])]
    assert sum(w * y for w, (_, y) in zip(widths, curves.density)) == pytest.approx(1.0)
    assert sum(w * y for w, (_, y) in zip(widths, curves.share)) == pytest.approx(1.0, rel=1e-4)
    assert curves.quantiles[0] >= 0.099 and all(0 < level < 1 for level in curves.held_out)


def test_the_density_is_the_formulas():
    """Logit-normal: exp(-z^2 / 2) / (sqrt(2 pi) x (1 - x)) with z = logit(x)."""
    curves = objective_curves(ObjectiveConfig(), Model("flow"), (1, 4, 32, 32))
    for x, y in curves.density[40:-40:40]:
        z = math.log(x / (1 - x))
        assert y == pytest.approx(math.exp(-z * z / 2) / (math.sqrt(2 * math.pi) * x * (1 - x)), rel=2e-2)


def test_the_picture_shows_the_curves():
    config = ObjectiveConfig(timestep_distribution="uniform", min_timestep=0.5)
    curves = objective_curves(config, Model("flow"), (1, 4, 32, 32))
    picture = draw_timestep_chart(config, curves)
    assert isinstance(picture, Image.Image) and picture.width == 900
    pixels = picture.load()
    empty, filled = pixels[250, 300], pixels[700, 300]  # left of the range, and in it
    assert empty == (255, 255, 255) and filled[1] > filled[0] and filled != empty
    assert curves.quantiles[100] == pytest.approx(0.625, abs=1e-3)
    assert "between 0.62 and" in sentences(curves, config)[0] and "0.53, 0.59" in sentences(curves, config)[1]


# ---- optimisers in the step ----------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit-kahan", "adafactor", "lion", "prodigy", "came", "schedule-free"])
def test_a_trainer_goes_on_bit_for_bit_with_every_optimiser(name, tmp_path):
    """Weights, average and losses of six steps, and of three, a file and three more."""
    def make():
        settings = {"prodigy": {"learning_rate": 1.0}, "schedule-free": {"schedule": "constant", "learning_rate": 1e-2}}.get(name, {"learning_rate": 1e-2})
        return Trainer(Trainable(), [item(i) for i in range(3)], TrainConfig(
            num_steps=30, batch_size=2, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear"),
            optimizer=OptimizerConfig(name=name, warmup_steps=2, **settings),
        ))

    whole, first, second = make(), make(), make()
    with whole.network:
        losses_whole = [whole.advance() for _ in range(6)]
    with first.network:
        for _ in range(3):
            first.advance()
    torch.save(first.state(), tmp_path / "state.pt")
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    with second.network:
        losses_second = [second.advance() for _ in range(3)]
    assert losses_second == losses_whole[3:]
    assert torch.equal(whole.network.parameters, second.network.parameters) and torch.equal(whole.average, second.average)
    assert not torch.equal(whole.average, whole.network.parameters)
    if name == "schedule-free":
        x = whole.optimizer.inner.averaged(whole.network.parameters, whole.optimizer.inner.param_groups[0])
        assert torch.equal(whole.average, x) and whole.config.ema_decay == 0
    if name == "prodigy":
        assert losses_whole[-1].learning_rate < 1e-2, "the rate that is shown is the one in force, lr times d"
