"""Every setting of a run, as frozen dataclasses.

A field's comment gives its meaning and unit. Nothing here touches torch or a file;
`training.run` writes the resolved configuration into the run folder.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace

from .errors import PistachioError

TARGET_PRESETS = ("attention", "all-linear", "all-linear+conv")
OPTIMIZERS = ("adamw",)
SCHEDULES = ("constant", "cosine")
TIMESTEP_DISTRIBUTIONS = ("auto", "uniform", "logit-normal")
PRECISIONS = ("auto", "bf16", "fp32")
CHECKPOINTING = ("auto", "on", "off")
WANDB_MODES = ("off", "offline", "online")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise PistachioError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "lora"
    rank: int = 16
    alpha: float = 16.0  # the update is scaled by alpha / rank
    targets: str = "all-linear"  # one of TARGET_PRESETS

    def __post_init__(self):
        _check(self.kind == "lora", f"Adapter type '{self.kind}' is unknown. Choose 'lora' in Adapter Settings.")
        _check(self.rank >= 1, f"Rank is {self.rank}. Set it to 1 or more in Adapter Settings.")
        _check(self.alpha > 0, f"Alpha is {self.alpha}. Set it above 0 in Adapter Settings.")
        _check(
            self.targets in TARGET_PRESETS,
            f"Target preset '{self.targets}' is unknown. Choose one of {', '.join(TARGET_PRESETS)} in Adapter Settings.",
        )


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
        _check(self.name in OPTIMIZERS, f"Optimiser '{self.name}' is unknown. Choose one of {', '.join(OPTIMIZERS)}.")
        _check(self.schedule in SCHEDULES, f"Schedule '{self.schedule}' is unknown. Choose one of {', '.join(SCHEDULES)}.")
        _check(self.learning_rate > 0, f"Learning rate is {self.learning_rate}. Set it above 0, for example 1e-4.")
        _check(0 <= self.ema_decay < 1, f"EMA decay is {self.ema_decay}. Set it between 0 (automatic) and 0.9999.")
        _check(self.clip_norm >= 0, f"Clip norm is {self.clip_norm}. Set it to 0 (off) or above.")
        _check(self.warmup_steps >= 0, f"Warm-up is {self.warmup_steps} steps. Set it to 0 or more.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    timestep_distribution: str = "auto"  # auto: logit-normal for flow models, uniform for the others
    prior_fraction: float = 0.5  # share of samples whose caption lacks the trigger and whose target is the base's own prediction

    def __post_init__(self):
        _check(
            self.timestep_distribution in TIMESTEP_DISTRIBUTIONS,
            f"Timestep distribution '{self.timestep_distribution}' is unknown. Choose one of {', '.join(TIMESTEP_DISTRIBUTIONS)}.",
        )
        _check(
            0 <= self.prior_fraction <= 0.9,
            f"Prior preservation is {self.prior_fraction}. Set it between 0 (off) and 0.9 on Train LoRA.",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    num_evaluations: int = 16  # spread over the run, besides step 0; each is also a saved checkpoint
    timesteps_per_image: int = 8
    early_stop: bool = True
    patience: int = 5  # evaluations without a new best before the run stops
    min_evaluations: int = 8  # never stop before this many

    def __post_init__(self):
        _check(self.num_evaluations >= 1, f"{self.num_evaluations} evaluations. Set it to 1 or more in Evaluation Settings.")
        _check(self.timesteps_per_image >= 1, f"{self.timesteps_per_image} timesteps a picture. Set it to 1 or more in Evaluation Settings.")
        _check(self.patience >= 1, f"Patience is {self.patience}. Set it to 1 or more in Evaluation Settings.")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """Where numbers go besides the run folder. Keys and tokens never belong here: wandb takes them from its own login."""

    wandb: str = "off"  # one of WANDB_MODES
    project: str = "pistachio"
    entity: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        _check(self.wandb in WANDB_MODES, f"wandb mode '{self.wandb}' is unknown. Choose one of {', '.join(WANDB_MODES)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    num_steps: int = 0  # optimiser steps; 0 is automatic, see `resolve_num_steps`
    batch_size: int = 1  # pictures in one forward pass
    accumulation: int = 1  # micro-batches in one optimiser step
    seed: int = 0
    precision: str = "auto"  # compute; adapters and optimiser are always fp32
    block_checkpointing: str = "auto"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self):
        _check(self.num_steps >= 0, f"{self.num_steps} steps. Set it to 0 (automatic) or more on Train LoRA.")
        _check(self.batch_size >= 1, f"Batch size is {self.batch_size}. Set it to 1 or more on Train LoRA.")
        _check(self.accumulation >= 1, f"Accumulation is {self.accumulation}. Set it to 1 or more on Train LoRA.")
        _check(self.precision in PRECISIONS, f"Precision '{self.precision}' is unknown. Choose one of {', '.join(PRECISIONS)}.")
        _check(
            self.block_checkpointing in CHECKPOINTING,
            f"Block checkpointing '{self.block_checkpointing}' is unknown. Choose one of {', '.join(CHECKPOINTING)}.",
        )

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def ema_decay(self) -> float:
        """The given decay, or one whose memory is a twelfth of the run (0.98 at 600 steps)."""
        return self.optimizer.ema_decay or max(0.0, 1.0 - 12.0 / max(1, self.num_steps))

    def resolve_num_steps(self, num_pictures: int) -> "TrainConfig":
        """Automatic: each picture is seen about 100 times, in 400 to 4000 steps; early stopping ends it sooner."""
        if self.num_steps:
            return self
        return replace(self, num_steps=max(400, min(4000, 100 * num_pictures // self.effective_batch)))


def to_dict(config) -> dict:
    return asdict(config)


def from_dict(cls, values: dict):
    """Rebuild a configuration written by `to_dict`; an unknown key is an error, a missing one takes its default."""
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    _check(not unknown, f"Unknown settings in {cls.__name__}: {', '.join(unknown)}. The run was written by another version.")
    built = {}
    for name, value in values.items():
        default = known[name].default_factory() if callable(known[name].default_factory) else known[name].default
        if is_dataclass(default) and isinstance(value, dict):
            value = from_dict(type(default), value)
        elif isinstance(default, tuple):
            value = tuple(value)
        built[name] = value
    return cls(**built)


__all__ = [
    "AdapterConfig", "EvaluationConfig", "LoggingConfig", "ObjectiveConfig", "OptimizerConfig", "TrainConfig",
    "from_dict", "replace", "to_dict",
]
