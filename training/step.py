"""The forward of a micro-batch in two halves: what it is given, on the device, and what is computed of that.

The second half reads nothing but its inputs and the weights, and never waits for the device: it can be recorded once and
played again over other inputs (`graphs`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import torch
from torch import Tensor

from .adapted import AdaptedNetwork
from .batches import Sample
from .model import Condition, TrainableModel
from .objective import Objective
from .streaming.tensors import leaves
from .transfer import on_device


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepInputs:
    latents: Tensor
    noise: Tensor
    perturbation: Tensor | None
    sigma_B: Tensor
    t_B: Tensor
    conditions: Sequence[Condition] | Any  # as `TrainableModel.joined` gives them
    prior_conditions: Sequence[Condition] | Any | None
    masks: tuple[Tensor | None, ...]
    weights_B: Tensor | None
    priors: tuple[int, ...]  # their places in the batch
    groups: tuple[str, ...]

    @property
    def key(self) -> tuple:
        """Inputs of equal keys are computed by the same operations over the same shapes."""
        shapes = tuple((tuple(leaf.shape), leaf.dtype) for leaf in leaves(self))
        return shapes, self.priors, self.groups, tuple(mask is None for mask in self.masks)


def inputs_of(model: TrainableModel, objective: Objective, batch: Sequence[Sample]) -> StepInputs:
    device = model.device
    t_B = torch.stack([sample.t for sample in batch])
    priors = tuple(index for index, sample in enumerate(batch) if sample.is_prior)
    conditions = [sample.condition for sample in batch]
    item_weights = [sample.item.loss_weight for sample in batch]
    masks = [None if sample.is_prior else sample.item.mask for sample in batch]
    perturbed = objective.config.input_perturbation
    return StepInputs(
        latents=on_device(torch.cat([sample.item.latents for sample in batch]), device, torch.float32),
        noise=on_device(torch.cat([sample.noise for sample in batch]), device),
        perturbation=on_device(torch.cat([sample.perturbation for sample in batch]), device) if perturbed else None,
        sigma_B=model.sigma_at(t_B),
        t_B=on_device(t_B, device),
        conditions=model.joined(conditions),
        prior_conditions=model.joined([conditions[index] for index in priors]) if priors else None,
        masks=tuple(mask if mask is None else on_device(mask, device) for mask in masks),
        weights_B=on_device(torch.tensor(item_weights), device) if any(weight != 1 for weight in item_weights) else None,
        priors=priors, groups=tuple(sample.group for sample in batch),
    )


def losses_of(model: TrainableModel, network: AdaptedNetwork, objective: Objective, inputs: StepInputs) -> Tensor:
    """[B]; a prior sample's target is what the base itself predicts there, all over the picture."""
    latents, sigma_B = inputs.latents, inputs.sigma_B
    x_t, target = model.add_noise(latents, inputs.noise, sigma_B), latents
    if inputs.perturbation is not None:
        x_t, target = objective.perturbed(x_t, latents, inputs.perturbation, sigma_B)
    if inputs.priors:
        with torch.no_grad(), network.disabled():
            base = model.predict(_at(x_t, inputs.priors), _at(sigma_B, inputs.priors), inputs.prior_conditions)
        target = target.clone()
        for place, index in enumerate(inputs.priors):
            target[index] = base[place].float()
    losses_B = objective.losses(model.predict(x_t, sigma_B, inputs.conditions), target, sigma_B, inputs.t_B, inputs.masks)
    return losses_B if inputs.weights_B is None else losses_B * inputs.weights_B


def sample_losses(model: TrainableModel, network: AdaptedNetwork, objective: Objective, batch: Sequence[Sample]) -> Tensor:
    return losses_of(model, network, objective, inputs_of(model, objective, batch))


def sum_at(values_B: Tensor, places: Sequence[int]) -> Tensor:
    """[]: without a mask on the device, whose size somebody would have to wait for."""
    if len(places) == len(values_B):
        return values_B.sum()
    return torch.stack([values_B[place] for place in places]).sum() if places else values_B.new_zeros(())


def _at(values: Tensor, places: Sequence[int]) -> Tensor:
    return torch.cat([values[place : place + 1] for place in places])
