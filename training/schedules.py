"""Learning-rate factors by step: a function of the step and the settings alone, so nothing of it is saved."""

from __future__ import annotations

import math
from typing import Callable

from .config import OptimizerConfig


def _constant(progress: float, config: OptimizerConfig) -> float:
    return 1.0


def _linear(progress: float, config: OptimizerConfig) -> float:
    return 1 - progress


def _cosine(progress: float, config: OptimizerConfig) -> float:
    """SGDR without restarts (Loshchilov & Hutter 2016, arXiv 1608.03983), to zero."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def _cosine_with_restarts(progress: float, config: OptimizerConfig) -> float:
    """SGDR with cycles of equal length; the last one ends at zero."""
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (config.num_cycles * progress % 1.0)))


def _polynomial(progress: float, config: OptimizerConfig) -> float:
    return (1 - progress) ** config.power


def _rex(progress: float, config: OptimizerConfig) -> float:
    """Reflected exponential (Chen, Wolfe & Kyrillidis 2021, arXiv 2107.04197), equation 1."""
    return (1 - progress) / (1 - progress / 2)


SCHEDULE_FACTORS: dict[str, Callable[[float, OptimizerConfig], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine-with-restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "rex": _rex,
}


def learning_rate_at(step: int, *, num_steps: int, config: OptimizerConfig) -> float:
    """For the update that ends step `step` (1-based): linear warm-up, then the schedule over what is left."""
    warmup = min(config.warmup_steps, num_steps // 2)
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = min(1.0, (step - 1 - warmup) / max(1, num_steps - warmup))
    factor = SCHEDULE_FACTORS[config.schedule](progress, config)
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * factor)
