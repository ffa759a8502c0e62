"""Optimiser name -> constructor over the run's flat parameter buffer."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import OptimizerConfig


def _adamw(flat: Tensor, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        [flat], lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon,
        weight_decay=config.weight_decay, fused=True,
    )


OPTIMIZER_BUILDERS = {"adamw": _adamw}


def build_optimizer(flat: Tensor, config: OptimizerConfig) -> torch.optim.Optimizer:
    return OPTIMIZER_BUILDERS[config.name](flat, config)


def clip_gradient(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale in place to at most `max_norm`; the norm before, as a tensor (no synchronisation)."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm > 0:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
