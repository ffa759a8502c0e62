"""Learning-rate factors by step."""

from __future__ import annotations

import math

from .config import OptimizerConfig


def _constant(progress: float) -> float:
    return 1.0


def _cosine(progress: float) -> float:
    """SGDR without restarts (Loshchilov & Hutter 2016, arXiv 1608.03983), to zero."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULE_FACTORS = {"constant": _constant, "cosine": _cosine}


def learning_rate_at(step: int, *, num_steps: int, config: OptimizerConfig) -> float:
    """For the update that ends step `step` (1-based): linear warm-up, then the schedule over what is left."""
    warmup = min(config.warmup_steps, num_steps // 2)
    if step <= warmup:
        return config.learning_rate * step / warmup
    progress = (step - 1 - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * SCHEDULE_FACTORS[config.schedule](min(1.0, progress))
