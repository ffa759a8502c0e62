"""How much each noise level counts in the loss: a factor on the squared error in the network's output space.

The signal-to-noise ratio is read from the model's own noising, and the output's scale from its own denoising, so
one formula serves eps, v and flow models. Nothing here draws or predicts.
"""

from __future__ import annotations

import math
from typing import Callable

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .errors import PistachioError
from .model import TrainableModel

# sd-scripts' bound: below it a level would count for nothing.
MAX_SNR = 1000.0
# The first of a scheduler's 1000 timesteps: 1 / sigma^2 has no bound below it.
LEAST_SIGMA = 1e-3
FLOW_ONLY = ("sigma-sqrt", "cosmap")


def signal_to_noise(model: TrainableModel, sigma_B: Tensor) -> Tensor:
    """[B]: squared ratio of what is left of the picture to the noise added."""
    ones = torch.ones(sigma_B.shape[0], 1, 1, 1, device=sigma_B.device)
    zeros = torch.zeros_like(ones)
    signal, noise = model.add_noise(ones, zeros, sigma_B), model.add_noise(zeros, ones, sigma_B)
    return (signal / noise).flatten().float().square()


def _none(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    return torch.ones_like(sigma_B, dtype=torch.float32)


def _min_snr(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """Hang et al. 2023 (arXiv 2303.09556), equation 8: min(SNR, gamma) on the error in the picture.

    In the output's space that is min(SNR, gamma) / SNR for eps, / (SNR + 1) for v, and min((1 - sigma)^2, gamma sigma^2) for flow.
    """
    return signal_to_noise(model, sigma_B).clamp(max=config.min_snr_gamma) * model.output_scale(sigma_B).float().square()


def _debiased(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """Yu et al. 2023 (arXiv 2310.08442): 1 / sqrt(SNR) on the error in eps, which is sqrt(SNR) on the error in the picture."""
    snr_B = signal_to_noise(model, sigma_B)
    picture_B = snr_B.sqrt() * (snr_B / MAX_SNR).clamp(min=1.0).sqrt()  # 1 / sqrt(min(SNR, bound)) in eps
    return picture_B * model.output_scale(sigma_B).float().square()


def _sigma_sqrt(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """sigma^-2, the weight of rectified flow's own error in the picture (Esser et al. 2024, arXiv 2403.03206, section 3)."""
    return sigma_B.float().clamp(min=LEAST_SIGMA).pow(-2)


def _cosmap(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """2 / (pi (1 - 2 sigma + 2 sigma^2)), Esser et al. 2024, equation 21: the density of a cosine schedule."""
    sigma_B = sigma_B.float()
    return 2 / (math.pi * (1 - 2 * sigma_B + 2 * sigma_B.square()))


WEIGHTS: dict[str, Callable[[TrainableModel, Tensor, ObjectiveConfig], Tensor]] = {
    "none": _none, "min-snr": _min_snr, "debiased": _debiased, "sigma-sqrt": _sigma_sqrt, "cosmap": _cosmap,
}


def check_weighting(model: TrainableModel, config: ObjectiveConfig) -> None:
    if config.weighting in FLOW_ONLY and not model.is_flow:
        raise PistachioError(
            f"Weighting '{config.weighting}' is for flow models, and {model.family} is none. Choose min-snr, debiased or none in Objective Settings."
        )


def weights(model: TrainableModel, sigma_B: Tensor, config: ObjectiveConfig) -> Tensor:
    """[B], float32."""
    return WEIGHTS[config.weighting](model, sigma_B, config)
