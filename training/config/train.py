"""All settings of a run in one, and their form in `config.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace

from .adapter import AdapterConfig
from .check import check, meant
from .evaluation import EvaluationConfig
from .objective import ObjectiveConfig
from .optimizer import OptimizerConfig

PRECISIONS = ("auto", "bf16", "fp32")
CHECKPOINTING = ("auto", "on", "off")


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
        check(self.num_steps >= 0, f"{self.num_steps} steps. Set it to 0 (automatic) or more on Train LoRA.")
        check(self.batch_size >= 1, f"Batch size is {self.batch_size}. Set it to 1 or more on Train LoRA.")
        check(self.accumulation >= 1, f"Accumulation is {self.accumulation}. Set it to 1 or more on Train LoRA.")
        check(self.precision in PRECISIONS, f"Precision '{self.precision}' is unknown. Choose one of {', '.join(PRECISIONS)}.")
        check(
            self.block_checkpointing in CHECKPOINTING,
            f"Block checkpointing '{self.block_checkpointing}' is unknown. Choose one of {', '.join(CHECKPOINTING)}.",
        )

    @property
    def effective_batch(self) -> int:
        return self.batch_size * self.accumulation

    @property
    def ema_decay(self) -> float:
        """The given decay, or one whose memory is a twelfth of the run (0.98 at 600 steps); 0 where the optimiser averages itself."""
        if self.optimizer.averages_itself:
            return 0.0
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
    named = "; ".join(f"'{name}'.{meant(name, known)}" for name in unknown)
    check(not unknown, f"Unknown settings in {cls.__name__}: {named} Correct or remove them; if nobody wrote them by hand, another version did.")
    built = {}
    for name, value in values.items():
        default = known[name].default_factory() if callable(known[name].default_factory) else known[name].default
        if is_dataclass(default) and isinstance(value, dict):
            value = from_dict(type(default), value)
        elif isinstance(default, tuple):
            value = tuple(value)
        built[name] = value
    return cls(**built)
