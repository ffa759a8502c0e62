"""The loss, the same for every family.

|x0_hat - x0|^2 / c_out^2 is the squared error in the network's own output space (eps, v or
velocity), whatever the parametrisation: x0_hat is affine in the output with slope c_out.
Evaluation measures that and nothing else; `Objective` is what training may make of it.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .messages import message
from .model import Condition, TrainableModel
from .weighting import check_weighting, signal_to_noise, weights


def squared_error(model: TrainableModel, x0_hat: Tensor, x0: Tensor, sigma_B: Tensor) -> Tensor:
    """[B]: the mean over a sample's elements, float32."""
    error_B = (x0_hat.float() - x0.float()).square().flatten(1).mean(1)
    return error_B / model.output_scale(sigma_B).float().square()


def prediction_error(
    model: TrainableModel, latents: Tensor, noise: Tensor, sigma_B: Tensor, conditions: Sequence[Condition]
) -> Tensor:
    """[B]: the unweighted error of predicting `latents` from their noised version."""
    x_t = model.add_noise(latents, noise, sigma_B)
    return squared_error(model, model.predict(x_t, sigma_B, conditions), latents, sigma_B)


class Objective:
    """A setting for one model. Raises PistachioError for what the model can't honour."""

    def __init__(self, config: ObjectiveConfig, model: TrainableModel):
        check_weighting(model, config)
        self.config = config
        self.model = model

    def notes(self, effective_batch: int) -> list[str]:
        """What was asked for and changes less than one might think."""
        found = []
        if self.config.noise_offset and self.model.is_flow:
            found.append(message(
                "note.noise_offset",
                "Noise offset is on for a flow model, whose pure noise holds nothing of the picture: it has little to mend there, "
                "and shifts brightness instead. Set it to 0 in Objective Settings unless you mean it.",
            ))
        if self.config.stratified and effective_batch == 1:
            found.append(message(
                "note.stratified", "Stratified timesteps change nothing at batch 1. Raise batch_size or accumulation on Train LoRA to use them.",
            ))
        return found

    def perturbed(self, x_t: Tensor, latents: Tensor, perturbation: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
        """x_t with extra noise, and the picture that the unperturbed target means there (Ning et al. 2023, arXiv 2301.11706).

        The network is asked for the output that was right without the extra noise; x0_hat then moves with its input, by c_skip.
        """
        extra = self.model.add_noise(torch.zeros_like(latents), perturbation * self.config.input_perturbation, sigma_B)
        skip_B = self.model.skip_scale(sigma_B).view(-1, *[1] * (latents.ndim - 1))
        return x_t + extra, latents + skip_B * extra

    def losses(self, x0_hat: Tensor, target: Tensor, sigma_B: Tensor, t_B: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
        """[B], float32, with the weighting. A mask [1, 1, (1,) h, w] weighs places, not pictures: its own mean does not count."""
        if self.config.loss == "mse" and all(mask is None for mask in masks):
            losses_B = squared_error(self.model, x0_hat, target, sigma_B)
        else:
            scale_B = self.model.output_scale(sigma_B).float().view(-1, *[1] * (target.ndim - 1))
            error = (x0_hat.float() - target.float()) / scale_B
            losses_B = _masked_means(self._pointwise(error, sigma_B, t_B), masks)
        if self.config.weighting == "none":
            return losses_B
        return losses_B * weights(self.model, sigma_B, self.config)

    def _pointwise(self, error: Tensor, sigma_B: Tensor, t_B: Tensor) -> Tensor:
        if self.config.loss == "mse":
            return error.square()
        delta = self.delta(sigma_B, t_B).view(-1, *[1] * (error.ndim - 1))
        # Pseudo-Huber (Charbonnier et al. 1997), in sd-scripts' two scalings: error^2 near zero, or 2 |error| far out.
        root = 2 * ((error.square() + delta.square()).sqrt() - delta)
        return root * delta if self.config.loss == "huber" else root

    def delta(self, sigma_B: Tensor, t_B: Tensor) -> Tensor:
        """[B]: loss_delta at each noise level, by sd-scripts' schedules."""
        delta = self.config.loss_delta
        if self.config.delta_schedule == "constant":
            return torch.full_like(sigma_B, delta, dtype=torch.float32)
        if self.config.delta_schedule == "exponential":
            level_B = sigma_B if self.model.is_flow else t_B.to(sigma_B)
            return delta ** level_B.float()
        noise_B = signal_to_noise(self.model, sigma_B).rsqrt()
        return (1 - delta) / (1 + noise_B).square() + delta


def _masked_means(values: Tensor, masks: Sequence[Tensor | None]) -> Tensor:
    means = []
    for value, mask in zip(values, masks):
        if mask is None:
            means.append(value.mean())
        else:
            weight = mask[0].to(value).expand_as(value)
            # A mask without any weight leaves nothing to learn from.
            means.append((value * weight).sum() / weight.sum().clamp(min=torch.finfo(torch.float32).tiny))
    return torch.stack(means)
