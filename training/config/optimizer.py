"""How the weights move: optimiser, schedule, clipping, weight average."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check, meant

OPTIMIZERS = (
    "adamw", "adamw-8bit", "adamw-8bit-kahan", "adafactor", "lion", "prodigy", "came", "schedule-free", "library",
)
SCHEDULES = ("constant", "linear", "cosine", "cosine-with-restarts", "polynomial", "rex")
# What beta1, beta2 and epsilon speak of; the others have settings of their own, given in optimizer_args.
ADAM_LIKE = ("adamw", "adamw-8bit", "adamw-8bit-kahan", "prodigy", "schedule-free")
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
# Below this Prodigy, whose learning rate multiplies the one that it finds, would hardly move.
PRODIGY_LEAST_RATE = 0.1
NODE = "in Optimizer Settings"


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    name: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta1: float = BETA1
    beta2: float = BETA2
    epsilon: float = EPSILON
    clip_norm: float = 1.0  # largest global gradient norm; 0 switches clipping off
    schedule: str = "cosine"
    warmup_steps: int = 20  # linear from 0
    ema_decay: float = 0.0  # weight average; 0 means automatic: 1 - 12 / num_steps
    library: str = ""  # of name 'library': package and class, e.g. "torch.optim.RAdam"
    optimizer_args: str = ""  # further settings of the optimiser, "key=value" separated by spaces
    num_cycles: int = 3  # of cosine-with-restarts
    power: float = 2.0  # of polynomial
    min_lr_ratio: float = 0.0  # the schedule ends at this share of the learning rate
    decay_magnitudes: bool = False  # weight decay for vectors (DoRA's magnitudes) too, not matrices alone
    lora_plus_ratio: float = 1.0  # learning rate of B over that of A
    text_encoder_lr_ratio: float = 0.5  # the text encoder's learning rate over the diffusion model's, where both are trained

    def __post_init__(self):
        check(self.name in OPTIMIZERS, f"Optimiser '{self.name}' is unknown.{meant(self.name, OPTIMIZERS)} Choose one of {', '.join(OPTIMIZERS)}.")
        check(self.schedule in SCHEDULES, f"Schedule '{self.schedule}' is unknown.{meant(self.schedule, SCHEDULES)} Choose one of {', '.join(SCHEDULES)}.")
        check(self.learning_rate > 0, f"Learning rate is {self.learning_rate}. Set it above 0, for example 1e-4.")
        check(0 <= self.ema_decay < 1, f"EMA decay is {self.ema_decay}. Set it between 0 (automatic) and 0.9999.")
        check(self.clip_norm >= 0, f"Clip norm is {self.clip_norm}. Set it to 0 (off) or above.")
        check(self.warmup_steps >= 0, f"Warm-up is {self.warmup_steps} steps. Set it to 0 or more.")
        check(self.weight_decay >= 0, f"Weight decay is {self.weight_decay}. Set it to 0 (off) or above.")
        check(self.num_cycles >= 1, f"num_cycles is {self.num_cycles}. Set it to 1 or more {NODE}.")
        check(self.power > 0, f"power is {self.power}. Set it above 0, 1 is a straight line, {NODE}.")
        check(0 <= self.min_lr_ratio <= 1, f"min_lr_ratio is {self.min_lr_ratio}. Set it between 0 and 1 {NODE}.")
        check(self.lora_plus_ratio > 0, f"lora_plus_ratio is {self.lora_plus_ratio}. Set it above 0 (1 is off) {NODE}.")
        check(self.text_encoder_lr_ratio >= 0, f"text_encoder_lr_ratio is {self.text_encoder_lr_ratio}. Set it to 0 or above {NODE}.")
        self._check_combinations()

    def _check_combinations(self) -> None:
        check(
            (self.name == "library") == bool(self.library),
            f"The optimiser is '{self.name}' and library is '{self.library}'. Choose name 'library' and give its class, "
            f"for example torch.optim.RAdam, or leave library empty, {NODE}.",
        )
        check(
            "prodigy" not in (self.name + self.library).lower() or self.learning_rate >= PRODIGY_LEAST_RATE,
            f"Prodigy finds the learning rate itself, and {self.learning_rate} multiplies what it finds. Set learning_rate to 1 {NODE}.",
        )
        check(
            self.name != "prodigy" or self.lora_plus_ratio == 1,
            f"Prodigy finds one learning rate for all weights, and lora_plus_ratio is {self.lora_plus_ratio}. Set it to 1 {NODE}.",
        )
        check(
            not self.averages_itself or self.schedule == "constant",
            f"Schedule-free takes the place of the schedule, and '{self.schedule}' is set. Choose schedule 'constant' {NODE}; warm-up stays.",
        )
        check(
            not self.averages_itself or self.ema_decay == 0,
            f"Schedule-free averages the weights itself, and ema_decay is {self.ema_decay}. Set ema_decay to 0 {NODE}.",
        )
        if self.name not in ADAM_LIKE:
            for field, default in (("beta1", BETA1), ("beta2", BETA2), ("epsilon", EPSILON)):
                check(
                    getattr(self, field) == default,
                    f"{field} is {getattr(self, field)}, and '{self.name}' has settings of its own. Set {field} back to {default} and write "
                    f"for example betas=0.9,0.99 into optimizer_args {NODE}.",
                )

    @property
    def averages_itself(self) -> bool:
        """The optimiser's own average takes the place of ours."""
        return self.name == "schedule-free" or "schedulefree" in self.library.lower()
