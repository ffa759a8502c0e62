"""The loss, the same for every family.

|x0_hat - x0|^2 / c_out^2 is the squared error in the network's own output space (eps, v or
velocity), whatever the parametrisation: x0_hat is affine in the output with slope c_out.
"""

from __future__ import annotations

from typing import Sequence

from torch import Tensor

from .model import Condition, TrainableModel


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
