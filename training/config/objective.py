"""What is learned: noise levels, loss, prior preservation."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

TIMESTEP_DISTRIBUTIONS = ("auto", "uniform", "logit-normal")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_distribution: str = "auto"  # auto: logit-normal for flow models, uniform for the others
    prior_fraction: float = 0.5  # share of samples whose caption lacks the trigger and whose target is the base's own prediction

    def __post_init__(self):
        check(
            self.timestep_distribution in TIMESTEP_DISTRIBUTIONS,
            f"Timestep distribution '{self.timestep_distribution}' is unknown. Choose one of {', '.join(TIMESTEP_DISTRIBUTIONS)}.",
        )
        check(
            0 <= self.prior_fraction <= 0.9,
            f"Prior preservation is {self.prior_fraction}. Set it between 0 (off) and 0.9 on Train LoRA.",
        )
