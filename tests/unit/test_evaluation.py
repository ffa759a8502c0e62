"""Held-out measurement on a small real network that implements TrainableModel."""

import contextlib
import logging
import math
from dataclasses import replace

import pytest
import torch

from pistachio.training import evaluation
from pistachio.training.errors import Interrupted, PistachioError
from pistachio.training.evaluation import (
    EvalItem,
    evaluate,
    evaluation_steps,
    noise_for,
    noise_seed,
    plan_draws,
    plan_schedule,
    resume_note,
    self_test,
    t_values,
)
from pistachio.training.timesteps import sample


class TinyFlow:
    """Rectified flow over a convolution that sees sigma and a condition vector; shift 3 as SD3."""

    family, key_prefix, is_flow, device = "tiny", "diffusion_model.", True, torch.device("cpu")

    def __init__(self, *, dropout=0.0, draws_noise=False):
        torch.manual_seed(3)
        self.network = torch.nn.Sequential(torch.nn.Conv2d(6, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Dropout(dropout),
                                           torch.nn.Conv2d(16, 4, 3, padding=1))
        self.draws_noise = draws_noise
        self.batch_sizes = []

    def sigma_at(self, t_B):
        return 3 * t_B / (1 + 2 * t_B)

    def add_noise(self, latents, noise, sigma_B):
        s = sigma_B.view(-1, 1, 1, 1)
        return s * noise + (1 - s) * latents

    def velocity(self, x_t, sigma_B, conditions):
        plane = torch.ones_like(x_t[:, :1])
        condition = torch.tensor(conditions).view(-1, 1, 1, 1) * plane
        out = self.network(torch.cat([x_t, sigma_B.view(-1, 1, 1, 1) * plane, condition], dim=1))
        return out + 0.1 * torch.randn_like(out) if self.draws_noise else out

    def predict(self, x_t, sigma_B, conditions):
        self.batch_sizes.append(len(x_t))
        return x_t - sigma_B.view(-1, 1, 1, 1) * self.velocity(x_t, sigma_B, conditions)

    def output_scale(self, sigma_B):
        return -sigma_B

    def condition_group(self, condition):
        return "one"

    def training(self):
        return contextlib.nullcontext()


def make_items(count=4, *, wide=0):
    generator = torch.Generator().manual_seed(0)
    return [
        EvalItem(content_hash=f"{17 * i + 5:064x}", latents=torch.randn(1, 4, 4, 8 if i < wide else 4, generator=generator),
                 condition=0.1 * i, group="one")
        for i in range(count)
    ]


def flat(errors):
    return [e for h in sorted(errors) for e in errors[h]]


def test_loss_is_the_plain_mean_square_in_the_networks_output_space():
    model, items = TinyFlow(), make_items()
    draws = plan_draws(items, num_timesteps=4, distribution="logit-normal")
    errors = evaluate(model, items, draws, batch_size=3)
    with torch.no_grad():
        for item in items:
            for place, draw in enumerate(d for d in draws if d.content_hash == item.content_hash):
                sigma = model.sigma_at(torch.tensor([draw.t]))
                noise = noise_for(draw.seed, item.latents.shape)
                velocity = model.velocity(model.add_noise(item.latents, noise, sigma), sigma, [item.condition])
                expected = (velocity - (noise - item.latents)).square().mean().item()  # no weight by sigma
                assert errors[item.content_hash][place] == pytest.approx(expected, rel=1e-4)


def test_timesteps_are_the_strata_of_the_training_distribution():
    draws = plan_draws(make_items(4), num_timesteps=8, distribution="logit-normal")
    first = [d.t for d in draws if d.content_hash == draws[0].content_hash]
    assert first == pytest.approx([sample("logit-normal", (j + 0.5) / 8).item() for j in range(8)], abs=1e-6)
    uniform = plan_draws(make_items(4), num_timesteps=4, distribution="uniform")
    assert [d.t for d in uniform][:4] == pytest.approx([0.125, 0.375, 0.625, 0.875])


def test_few_pictures_never_get_fewer_than_four_timesteps(caplog):
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        assert len(plan_draws(make_items(8), num_timesteps=2, distribution="uniform")) == 8 * 4
    assert "2 timesteps a picture are too few" in caplog.text
    assert len(plan_draws(make_items(9), num_timesteps=2, distribution="uniform")) == 9 * 2


@pytest.mark.parametrize("count, each", [(16, 8), (17, 4), (32, 4), (64, 2)])
def test_many_pictures_rotate_through_the_timesteps(count, each):
    draws = plan_draws(make_items(count), num_timesteps=8, distribution="uniform")
    per_picture = {h: sorted(d.index for d in draws if d.content_hash == h) for h in {d.content_hash for d in draws}}
    assert {len(indices) for indices in per_picture.values()} == {each}
    uses = [sum(d.index == j for d in draws) for j in range(8)]
    assert max(uses) - min(uses) <= 2 and min(uses) > 0  # the whole grid stays covered
    assert all(indices[-1] - indices[0] >= 4 for indices in per_picture.values())  # each sees high and low noise


def test_seeds_depend_on_picture_shape_and_draw_alone():
    base = noise_seed("ab", (1, 4, 8, 8), 0)
    assert base == noise_seed("ab", torch.Size([1, 4, 8, 8]), 0, 0)
    others = [noise_seed("ac", (1, 4, 8, 8), 0), noise_seed("ab", (1, 4, 8, 9), 0), noise_seed("ab", (1, 4, 8, 8), 1),
              noise_seed("ab", (1, 4, 8, 8), 0, 1)]
    assert len({base, *others}) == 5
    noise = noise_for(base, (1, 4, 64, 64))
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert abs(noise.mean().item()) < 0.03 and abs(noise.std().item() - 1) < 0.03


def test_noise_of_a_version_never_changes():
    # A change of these numbers makes old runs incomparable: raise PROTOCOL_VERSION with it.
    assert evaluation.PROTOCOL_VERSION == "pistachio-eval-1"
    assert noise_seed("ab", (1, 4, 8, 8), 3) == 7143609539670842297  # first 8 bytes of sha256("pistachio-eval-1|ab|1x4x8x8|3|0"), halved


def test_the_same_numbers_after_reordering_and_in_a_larger_process():
    model, items = TinyFlow(), make_items(6, wide=2)
    draws = plan_draws(items, num_timesteps=4, distribution="logit-normal")
    first = evaluate(model, items, draws, batch_size=4)
    torch.randn(1000)  # what a resumed process has drawn in the meantime must not matter
    shuffled = items[::-1]
    assert plan_draws(shuffled, num_timesteps=4, distribution="logit-normal") == draws
    assert evaluate(model, shuffled, draws[::-1], batch_size=4) == first  # bit for bit


def test_swapping_one_picture_leaves_the_others_alone():
    items = make_items(4)
    swapped = [*items[:3], replace(items[3], content_hash="f" * 64)]
    kept = {i.content_hash for i in items[:3]}

    def of_kept(pictures):
        return [d for d in plan_draws(pictures, num_timesteps=8, distribution="uniform") if d.content_hash in kept]

    assert of_kept(items) == of_kept(swapped)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_batch_size_does_not_change_the_numbers(batch_size):
    model, items = TinyFlow(), make_items(5, wide=2)
    draws = plan_draws(items, num_timesteps=4, distribution="uniform")
    reference = evaluate(model, items, draws, batch_size=1)
    assert flat(evaluate(model, items, draws, batch_size=batch_size)) == pytest.approx(flat(reference), rel=1e-5)


def test_a_group_has_one_batch_shape_with_little_padding():
    model, items = TinyFlow(), make_items(5)
    evaluate(model, items, plan_draws(items, num_timesteps=4, distribution="uniform"), batch_size=6)
    assert model.batch_sizes == [5, 5, 5, 5]  # 20 draws: four forwards either way, none padded


def test_groups_are_never_mixed():
    model = TinyFlow()
    items = [replace(item, group=f"{i % 2}") for i, item in enumerate(make_items(4))]
    evaluate(model, items, plan_draws(items, num_timesteps=4, distribution="uniform"), batch_size=64)
    assert model.batch_sizes == [8, 8]


def test_the_global_random_state_is_left_alone():
    model, items = TinyFlow(draws_noise=True), make_items()
    draws = plan_draws(items, num_timesteps=4, distribution="uniform")
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = evaluate(model, items, draws, batch_size=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12)
    assert evaluate(model, items, draws, batch_size=4) == first  # a model with noise of its own is still reproducible


def test_dropout_is_off_and_the_mode_is_restored():
    model, plain, items = TinyFlow(dropout=0.5), TinyFlow(), make_items()
    draws = plan_draws(items, num_timesteps=4, distribution="uniform")
    model.network.train()
    model.network[1].eval()
    assert evaluate(model, items, draws, batch_size=4) == evaluate(plain, items, draws, batch_size=4)
    assert [m.training for m in model.network] == [True, False, True, True]


def test_interrupt_is_checked_at_each_batch_and_restores_everything():
    model, items, calls = TinyFlow(dropout=0.5), make_items(), []

    def check():
        calls.append(1)
        if len(calls) == 3:
            raise Interrupted()

    before = torch.get_rng_state()
    with pytest.raises(Interrupted):
        evaluate(model, items, plan_draws(items, num_timesteps=4, distribution="uniform"), batch_size=4, check_interrupted=check)
    assert len(model.batch_sizes) == 2 and model.network.training and torch.equal(torch.get_rng_state(), before)


def test_no_gradient_is_kept():
    model, items = TinyFlow(), make_items()
    evaluate(model, items, plan_draws(items, num_timesteps=4, distribution="uniform"), batch_size=4)
    assert all(p.grad is None for p in model.network.parameters())


def test_better_weights_measure_better():
    model, items = TinyFlow(), make_items()
    draws = plan_draws(items, num_timesteps=8, distribution="uniform")
    before = sum(flat(evaluate(model, items, draws, batch_size=8)))
    parameters = list(model.network.parameters())
    for step in range(300):
        noise = noise_for(step, (4, 4, 4, 4))
        latents, sigma = torch.cat([i.latents for i in items]), torch.rand(4, generator=torch.Generator().manual_seed(step))
        velocity = model.velocity(model.add_noise(latents, noise, sigma), sigma, [i.condition for i in items])
        loss = (velocity - (noise - latents)).square().mean()
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
                parameter -= 0.1 * gradient
    assert sum(flat(evaluate(model, items, draws, batch_size=8))) < 0.9 * before


def test_t_values_lie_where_the_errors_do():
    items = make_items(20)
    draws = plan_draws(items, num_timesteps=8, distribution="uniform")
    errors, ts = evaluate(TinyFlow(), items, draws[::-1], batch_size=8), t_values(draws[::-1])
    assert {h: len(v) for h, v in errors.items()} == {h: len(v) for h, v in ts.items()}
    assert all(list(v) == sorted(v) for v in ts.values())


def test_a_draw_of_a_missing_picture_is_refused():
    items = make_items(4)
    draws = plan_draws(items, num_timesteps=4, distribution="uniform")
    with pytest.raises(PistachioError, match="no longer in the data"):
        evaluate(TinyFlow(), items[1:], draws, batch_size=4)
    with pytest.raises(PistachioError, match="held out twice"):
        plan_draws([*items, items[0]], num_timesteps=4, distribution="uniform")


BASE = {"a": (1.0, 2.0), "b": (3.0, 4.0)}


@pytest.mark.parametrize("factor, precision, passes", [(1, "fp32", True), (1.00005, "fp32", True), (1.001, "fp32", False),
                                                       (1.001, "bf16", True), (1.01, "bf16", False), (math.nan, "bf16", False)])
def test_self_test(factor, precision, passes):
    adapter = {"a": BASE["a"], "b": tuple(factor * e for e in BASE["b"])}
    with contextlib.nullcontext() if passes else pytest.raises(PistachioError, match="untrained LoRA"):
        self_test(BASE, adapter, precision=precision)


def test_self_test_of_a_base_that_gives_no_number():
    with pytest.raises(PistachioError, match="base model's own loss is not a finite number"):
        self_test({"a": (math.nan,)}, {"a": (math.nan,)})


def test_resume_note():
    assert resume_note(BASE, dict(BASE)) is None
    moved = {"a": (1.1, 2.2), "b": BASE["b"]}
    assert resume_note(BASE, moved) == (
        "The last checkpoint, evaluated again, differs by 10 %: the numbers before and after this resume cannot be compared."
    )
    assert "in its pictures or draws" in resume_note(BASE, {"a": BASE["a"]})


@pytest.mark.parametrize("num_steps, count, steps", [(100, 4, (0, 25, 50, 75, 100)), (10, 4, (0, 2, 5, 8, 10)), (3, 16, (0, 1, 2, 3)), (1, 1, (0, 1))])
def test_evaluation_steps(num_steps, count, steps):
    assert evaluation_steps(num_steps, count) == steps


@pytest.mark.parametrize(
    "seconds, probe_share, expected",
    [
        (6.0, 0.0, (16, 8, 8)),  # budget 100 s, 16 * 6 = 96
        (6.0, 1.0, (16, 8, 0)),  # 16 evaluations leave 4 s: the probes go first
        (10.0, 0.0, (10, 8, 5)),  # then evaluations
        (20.0, 0.0, (10, 4, 5)),  # under eight: half the timesteps, 10 s each
        (60.0, 0.0, (8, 4, 4)),  # four timesteps is the floor, and eight evaluations are kept
    ],
)
def test_schedule_keeps_to_the_budget(seconds, probe_share, expected):
    plan = plan_schedule(1000, num_evaluations=16, num_timesteps=8, num_images=4, seconds_per_step=1.0,
                         seconds_per_evaluation=seconds, probe_share=probe_share)
    assert (len(plan.steps) - 1, plan.num_timesteps, plan.num_probes) == expected
    assert plan.steps[-1] == 1000 and bool(plan.note) is (expected != (16, 8, 8))


def test_a_budget_in_seconds_is_measured_once_and_changes_no_weight(tmp_path):
    """The trainer is as it was, bit for bit, and a resumed run plans from the numbers that are there."""
    from pistachio.training.budget import TIMING_FILE, timing_of
    from pistachio.training.run import RunFolder
    from pistachio.training.trainer import Trainer
    from support.flow import Flow, train_items
    from support.flow_runs import flow_config

    trainer, untouched = (Trainer(Flow(), train_items(), flow_config(num_steps=8)) for _ in range(2))
    folder, calls = RunFolder(tmp_path), []
    with trainer.network:
        timing = timing_of(folder, trainer, lambda: calls.append(1))
        assert trainer.step == 0 and torch.equal(trainer.network.parameters, untouched.network.parameters)
        trainer.advance()
        assert timing_of(folder, trainer, lambda: calls.append(1)) == timing and trainer.step == 1
    with untouched.network:
        untouched.advance()
    assert torch.equal(trainer.network.parameters, untouched.network.parameters)
    assert torch.equal(trainer.average, untouched.average)
    assert len(calls) == 2 and timing.seconds_per_step > 0 and (tmp_path / TIMING_FILE).is_file()


def test_a_run_plans_by_the_seconds_that_its_folder_holds(tmp_path):
    """Evaluations that take as long as thirty steps: 48 steps pay for none, so the least that a choice needs is made."""
    from pistachio.training.budget import TIMING_FILE
    from support.flow_runs import flow_config, flow_run
    from pistachio.training.config import EvaluationConfig
    from pistachio.training.run import RunFolder

    settings = flow_config(num_steps=48, evaluation=EvaluationConfig(num_evaluations=16, timesteps_per_image=8, early_stop=False, budget="seconds"))
    RunFolder(tmp_path).write_json(TIMING_FILE, {"seconds_per_step": 1.0, "seconds_per_evaluation": 30.0})
    flow_run(tmp_path, settings, sampler=None)
    report = RunFolder(tmp_path).report()
    assert len(report["evaluations"]) == 9 and len(report["t_values"]["held-0"]) == 4
    assert any("Evaluation is kept near 10 %" in note for note in report["notes"])
    assert report["seconds"]["evaluations"] > 0 and report["seconds"]["evaluation_share"] > 0
