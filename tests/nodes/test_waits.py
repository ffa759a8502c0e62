"""A step of the five main families waits for the device once, for its losses; a second wait anywhere would show here."""

import pytest
import torch
from support.prepared import Prepared
from support.tiny_models import FILES
from support.waits import Waits


def advanced(prepared, monkeypatch, **settings):
    """What a step waited for."""
    from pistachio.training import trainer as trainer_module
    from pistachio.training.batches import TrainItem
    from pistachio.training.config import AdapterConfig, ObjectiveConfig, TrainConfig

    items = [
        TrainItem(
            content_hash=f"{i}", latents=prepared.latents[i : i + 1], condition=prepared.conditions[i], group="one",
            prior_condition=prepared.conditions[1 - i], prior_group="one", loss_weight=1.0 + i,
        )
        for i in range(2)
    ]
    config = TrainConfig(num_steps=4, batch_size=2, accumulation=2, adapter=AdapterConfig(rank=2, alpha=2, targets=prepared.targets), objective=ObjectiveConfig(prior_fraction=0.25))
    with prepared.model.training():
        trainer = trainer_module.Trainer(prepared.model, items, config, **settings)
        waits = Waits([*prepared.model.network.parameters(), *prepared.model.network.buffers(), trainer.network.parameters, trainer.network.gradients])
        inputs_of = trainer_module.inputs_of

        def marked(*args):
            made = inputs_of(*args)
            waits.mark([made.latents, made.noise, made.sigma_B, list(made.conditions.arguments.values())])
            return made

        monkeypatch.setattr(trainer_module, "inputs_of", marked)
        with trainer.network:
            trainer.advance()  # what is made once may wait
            with waits:
                trainer.advance()
    return waits.found


@pytest.mark.parametrize("family", FILES)
def test_a_step_waits_for_the_device_once(host, tiny, monkeypatch, family):
    assert advanced(Prepared(tiny(family)), monkeypatch) == ["tolist"]


@pytest.mark.parametrize("ask", [
    lambda t: t.sum().item(), lambda t: bool((t > 0).all()), lambda t: t[t > 0], lambda t: t.cpu(), lambda t: float(t.mean()), lambda t: t.nonzero(),
])
def test_every_way_of_waiting_is_seen(ask):
    values = torch.randn(4)
    with Waits([values]) as waits:
        ask(values * 2)
    assert waits.found
    with Waits([]) as waits:
        ask(values * 2)
    assert not waits.found
