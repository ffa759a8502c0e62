"""The engine without a host: a small flow model, its adapters' exact gradients, prior preservation, and a run that learns."""

import pytest
import torch
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.batches import TrainItem
from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.loop import RunInfo, train
from pistachio.training.trainer import Trainer
from pistachio.training.run import RunFolder
from support.flow import Flow, OutOfPlace, eval_items, train_items


def config(**changes):
    defaults = dict(
        num_steps=240, batch_size=4, seed=1, adapter=AdapterConfig(rank=4, alpha=4, targets="all-linear+conv"),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5),
        objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.0),
        evaluation=EvaluationConfig(num_evaluations=8, timesteps_per_image=4),
    )
    return TrainConfig(**{**defaults, **changes})


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("keep", ["everything", "blocks"])
def test_every_adapter_gradient_is_exact_in_float64(rank, keep):
    """Against autograd over plain weights W + s B A, with in-place additions, biases, and K != N layers."""
    model = Flow(torch.float64)
    network = AdaptedNetwork(model, AdapterConfig(rank=rank, alpha=3, targets="all-linear+conv"), seed=0, keep=keep)
    network.parameters = torch.randn(network.parameters.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.3
    network.gradients = torch.zeros_like(network.parameters)
    network._bind()
    x, noise = (torch.randn(3, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (2, 3))
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)

    def loss(m):
        return (m.predict(m.add_noise(x, noise, sigma), sigma, [1.0, 0.0, -1.0]) - x).square().mean()

    with network:
        loss(model).backward()
    plain = Flow(torch.float64)
    leaves = {}
    for path, adapter in network.adapters.items():
        a, b = (adapter.tensors[name].detach().clone().requires_grad_(True) for name in ("lora_A", "lora_B"))
        leaves[path] = (a, b)
        module = plain.network.get_submodule(path)
        delta = (b.flatten(1) @ a.flatten(1)).view(module.weight.shape) * adapter.scale
        weight = module.weight + delta
        del module.weight
        module.weight = weight
    reference = loss(type("Plain", (Flow,), {"__init__": lambda self: None, "network": OutOfPlace(plain.network), "dtype": torch.float64})())
    reference.backward()
    for path, adapter in network.adapters.items():
        for name, leaf in zip(("lora_A", "lora_B"), leaves[path]):
            assert torch.allclose(adapter.tensors[name].grad, leaf.grad, rtol=1e-9, atol=1e-12), (path, name)


def test_prior_samples_ask_the_untrained_adapter_for_nothing():
    model = Flow()
    trainer = Trainer(model, train_items(), config(objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.5)))
    with trainer.network:
        first = trainer.advance()
        later = [trainer.advance() for _ in range(5)]
    assert first.prior_loss == pytest.approx(0, abs=1e-9) and first.loss > 0.1
    assert all(result.prior_loss > 1e-9 for result in later)


def drift(prior_fraction):
    """How far the trained adapter moves the answer to the trigger, and to its absence."""
    model = Flow()
    settings = config(num_steps=200, objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=prior_fraction))
    trainer = Trainer(model, train_items(), settings)
    x, sigma = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(5)), torch.full((16,), 0.7)
    with trainer.network, torch.no_grad():
        before = {c: model.predict(x, sigma, [c] * 16) for c in (1.0, -1.0)}
        with torch.enable_grad():
            for _ in range(settings.num_steps):
                trainer.advance()
        return [(model.predict(x, sigma, [c] * 16) - before[c]).norm().item() for c in (1.0, -1.0)]


def test_prior_preservation_keeps_the_base_without_the_trigger():
    plain_with, plain_without = drift(0.0)
    kept_with, kept_without = drift(0.5)
    assert plain_without > 0.5 * plain_with  # a plain LoRA answers without its trigger too
    assert kept_without < 0.5 * plain_without
    assert kept_with > 0.5 * plain_with


def test_a_run_lowers_the_held_out_loss_and_is_chosen_by_it(tmp_path):
    rows = []
    selection = train(Flow(), train_items(), eval_items(), config(), RunFolder(tmp_path), RunInfo(name="toy"), log_row=rows.append)
    assert selection.eval_delta_pct < -20
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert evaluations[0]["step"] == 0 and evaluations[0]["loss_delta"] == 0
    assert [row["kind"] for row in rows if row["kind"] == "probe"]
    assert rows[-1]["kind"] == "finished" and rows[-1]["report"]["chosen_step"] == selection.chosen_step


def test_without_held_out_pictures_nothing_is_claimed(tmp_path):
    selection = train(Flow(), train_items(), [], config(num_steps=16), RunFolder(tmp_path), RunInfo(name="toy"))
    assert selection.chosen_step == 16 and "Nothing here can detect memorising." in selection.words


def test_memorising_is_seen_and_the_run_ends_early(tmp_path):
    """Two pictures and a large adapter: the training loss falls on, the held-out loss turns."""
    items = [
        TrainItem(content_hash=f"{i}", latents=torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(i)) * 3, condition=1.0, group="one",
                  prior_condition=0.0, prior_group="one") for i in range(2)
    ]
    settings = config(num_steps=600, optimizer=OptimizerConfig(learning_rate=5e-2, schedule="constant"),
                      evaluation=EvaluationConfig(num_evaluations=30, timesteps_per_image=4, min_evaluations=2, patience=3))
    selection = train(Flow(), items, eval_items(), settings, RunFolder(tmp_path), RunInfo(name="toy"))
    assert selection.state in ("overfit", "diverged")
    assert selection.last_step < 600 and selection.chosen_step < selection.last_step


def test_out_of_memory_leaves_a_resumable_run_and_says_what_to_change(tmp_path):
    model = Flow()
    whole = train(Flow(), train_items(), eval_items(), config(num_steps=40), RunFolder(tmp_path / "whole"), RunInfo(name="toy"))
    predict, calls = model.predict, [0]

    def predict_until_full(*args):
        calls[0] += 1
        if calls[0] == 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(*args)

    model.predict = predict_until_full
    folder = RunFolder(tmp_path / "cut")
    with pytest.raises(ValueError, match="Out of GPU memory.*block checkpointing"):
        train(model, train_items(), eval_items(), config(num_steps=40), folder, RunInfo(name="toy"))
    assert folder.load_state()["step"] > 0
    resumed = train(Flow(), train_items(), eval_items(), config(num_steps=40), folder, RunInfo(name="toy"))
    assert resumed == whole
