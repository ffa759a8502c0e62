"""Every setting of a run, as frozen dataclasses.

A field's comment gives its meaning and unit. Nothing here touches torch or a file;
`training.run` writes the resolved configuration into the run folder.
"""

from .adapter import ADAPTER_KINDS, TARGET_PRESETS, AdapterConfig
from .evaluation import EvaluationConfig
from .logging import WANDB_MODES, LoggingConfig
from .objective import DELTA_SCHEDULES, LOSSES, SHIFTS, TIMESTEP_DISTRIBUTIONS, WEIGHTINGS, ObjectiveConfig
from .optimizer import OPTIMIZERS, SCHEDULES, OptimizerConfig
from .train import CHECKPOINTING, PRECISIONS, TrainConfig, from_dict, replace, to_dict

__all__ = [
    "ADAPTER_KINDS", "CHECKPOINTING", "DELTA_SCHEDULES", "LOSSES", "OPTIMIZERS", "PRECISIONS", "SCHEDULES", "SHIFTS", "TARGET_PRESETS", "TIMESTEP_DISTRIBUTIONS",
    "WANDB_MODES", "WEIGHTINGS",
    "AdapterConfig", "EvaluationConfig", "LoggingConfig", "ObjectiveConfig", "OptimizerConfig", "TrainConfig",
    "from_dict", "replace", "to_dict",
]
