"""How the weights move: optimiser, schedule, clipping, weight average."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

OPTIMIZERS = ("adamw",)
SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    name: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip_norm: float = 1.0  # largest global gradient norm; 0 switches clipping off
    schedule: str = "cosine"
    warmup_steps: int = 20  # linear from 0
    ema_decay: float = 0.0  # weight average; 0 means automatic: 1 - 12 / num_steps

    def __post_init__(self):
        check(self.name in OPTIMIZERS, f"Optimiser '{self.name}' is unknown. Choose one of {', '.join(OPTIMIZERS)}.")
        check(self.schedule in SCHEDULES, f"Schedule '{self.schedule}' is unknown. Choose one of {', '.join(SCHEDULES)}.")
        check(self.learning_rate > 0, f"Learning rate is {self.learning_rate}. Set it above 0, for example 1e-4.")
        check(0 <= self.ema_decay < 1, f"EMA decay is {self.ema_decay}. Set it between 0 (automatic) and 0.9999.")
        check(self.clip_norm >= 0, f"Clip norm is {self.clip_norm}. Set it to 0 (off) or above.")
        check(self.warmup_steps >= 0, f"Warm-up is {self.warmup_steps} steps. Set it to 0 or more.")
