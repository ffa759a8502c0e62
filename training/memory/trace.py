"""One training step and one evaluation, tried on a model's shadow to count the bytes that they hold.

The code is the run's own: adapters, objective, block saving and backward. Only numbers are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..adapted import AdaptedNetwork
from ..batches import Sample, TrainItem
from ..config import TrainConfig
from ..model import TrainableModel
from ..objective import Objective
from ..step import inputs_of, losses_of
from .counting import LiveStorage

Scratch = Callable[[object, tuple, object], int]

HALF = 0.5  # any timestep: sizes don't depend on it


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTrace:
    """Bytes of one forward and backward beyond weights, adapters, gradients and the optimiser's."""

    saved_bytes: int  # held between forward and backward
    peak_bytes: int
    adapter_bytes: int  # the flat buffer, fp32; gradients are as large again


def trace_step(model: TrainableModel, batch: Sequence[TrainItem], config: TrainConfig, *, keep: str, scratch: Scratch | None = None) -> StepTrace:
    """Inside `model.training()` of a model on `meta`. `batch`: one micro-batch, all of one shape and group; `scratch`: see LiveStorage."""
    with LiveStorage(model.device, scratch=scratch) as count:
        network = AdaptedNetwork(model, config.adapter, seed=config.seed, keep=keep)
        objective = Objective(config.objective, model)
        with network:
            before = count.live_bytes
            count.peak_bytes = before
            with network.training_pass(1, 0):
                inputs = inputs_of(model, objective, _samples(batch, config))  # held to the end, as a step holds them
                loss = losses_of(model, network, objective, inputs).sum() / len(batch)
                saved = count.live_bytes
                loss.backward()
    adapter_bytes = network.parameters.numel() * network.parameters.element_size()
    return StepTrace(saved_bytes=saved - before, peak_bytes=count.peak_bytes - before, adapter_bytes=adapter_bytes)


def trace_forward(model: TrainableModel, batch: Sequence[TrainItem], *, scratch: Scratch | None = None) -> int:
    """Largest bytes of a forward without gradients."""
    with torch.no_grad(), LiveStorage(model.device, scratch=scratch) as count:
        latents = torch.cat([item.latents for item in batch]).to(model.device, torch.float32)
        sigma_B = model.sigma_at(torch.full((len(batch),), HALF))
        model.predict(model.add_noise(latents, torch.zeros_like(latents), sigma_B), sigma_B, [item.condition for item in batch]).float()
    return count.peak_bytes


def _samples(batch: Sequence[TrainItem], config: TrainConfig) -> list[Sample]:
    num_priors = -int(-len(batch) * config.objective.prior_fraction // 1)
    return [
        Sample(
            item=item, t=torch.tensor(HALF), noise=torch.empty(item.shape, device="meta"), is_prior=index >= len(batch) - num_priors,
            perturbation=torch.empty(item.shape, device="meta") if config.objective.input_perturbation else None,
        )
        for index, item in enumerate(batch)
    ]
