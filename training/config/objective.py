"""What is learned: noise levels, loss, weights, prior preservation.

A noise level is written in the model's own count, 0 (clean) to 1 (pure noise): sigma for flow models,
timestep / 1000 for the others. Whether a model can honour a setting is decided in `training.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass

from .check import check, meant

TIMESTEP_DISTRIBUTIONS = ("auto", "uniform", "logit-normal", "sigmoid", "mode")
SHIFTS = ("model", "given", "resolution")
LOSSES = ("mse", "huber", "smooth-l1")
DELTA_SCHEDULES = ("constant", "exponential", "snr")
WEIGHTINGS = ("none", "min-snr", "debiased", "sigma-sqrt", "cosmap")
NODE = "in Objective Settings"


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_distribution: str = "auto"  # auto: logit-normal for flow models, uniform for the others
    logit_mean: float = 0.0  # of logit-normal; above 0 looks at noisier levels
    logit_std: float = 1.0
    sigmoid_scale: float = 1.0  # of sigmoid: sigmoid(scale * N(0, 1))
    mode_scale: float = 1.29  # of mode
    shift: str = "model"  # model: the model's own; given: shift_value; resolution: by the picture's tokens
    shift_value: float = 3.0
    min_timestep: float = 0.0  # noise levels outside the range are never drawn; the distribution keeps its shape inside
    max_timestep: float = 1.0
    stratified: bool = False  # one draw in each equal part of the distribution over an effective batch
    loss: str = "mse"
    loss_delta: float = 0.1  # where huber and smooth-l1 turn from squared to absolute
    delta_schedule: str = "constant"  # how loss_delta depends on the noise level
    weighting: str = "none"
    min_snr_gamma: float = 5.0
    noise_offset: float = 0.0  # a random shift of each channel's mean noise, as a share of the noise
    input_perturbation: float = 0.0  # extra noise that the network sees and the target does not, as a share of the noise
    prior_fraction: float = 0.5  # share of samples whose caption lacks the trigger and whose target is the base's own prediction

    def __post_init__(self):
        for name, value, choices in (
            ("Timestep distribution", self.timestep_distribution, TIMESTEP_DISTRIBUTIONS), ("Shift", self.shift, SHIFTS),
            ("Loss", self.loss, LOSSES), ("Delta schedule", self.delta_schedule, DELTA_SCHEDULES), ("Weighting", self.weighting, WEIGHTINGS),
        ):
            check(value in choices, f"{name} '{value}' is unknown.{meant(value, choices)} Choose one of {', '.join(choices)} {NODE}.")
        check(self.logit_std > 0, f"logit_std is {self.logit_std}. Set it above 0 {NODE}.")
        check(self.sigmoid_scale > 0, f"sigmoid_scale is {self.sigmoid_scale}. Set it above 0 {NODE}.")
        # Outside of these the curve of Esser et al. no longer rises from 0 to 1.
        check(-1 <= self.mode_scale <= 1.75, f"mode_scale is {self.mode_scale}. Set it between -1 and 1.75 {NODE}.")
        check(self.shift_value > 0, f"shift_value is {self.shift_value}. Set it above 0 (1 is none) {NODE}.")
        check(
            0 <= self.min_timestep < self.max_timestep <= 1,
            f"The range of timesteps is {self.min_timestep} to {self.max_timestep}. Set min_timestep below max_timestep, both between 0 and 1, {NODE}.",
        )
        check(self.loss_delta > 0, f"loss_delta is {self.loss_delta}. Set it above 0, for example 0.1, {NODE}.")
        check(self.min_snr_gamma > 0, f"min_snr_gamma is {self.min_snr_gamma}. Set it above 0, 5 is usual, {NODE}.")
        check(self.noise_offset >= 0, f"noise_offset is {self.noise_offset}. Set it to 0 (off) or above {NODE}.")
        check(self.input_perturbation >= 0, f"input_perturbation is {self.input_perturbation}. Set it to 0 (off) or above {NODE}.")
        check(
            0 <= self.prior_fraction <= 0.9,
            f"Prior preservation is {self.prior_fraction}. Set it between 0 (off) and 0.9 on Train LoRA.",
        )
