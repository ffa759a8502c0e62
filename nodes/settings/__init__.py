"""Settings on the canvas: each node fills one dataclass of `training.config`."""

from .adapter import AdapterSettings
from .evaluation import EvaluationSettings
from .logging import LoggingSettings
from .memory import MemorySettings
from .objective import ObjectiveSettings
from .optimizer import OptimizerSettings
from .samples import SampleSettingsNode

SETTINGS_NODES = (AdapterSettings, OptimizerSettings, ObjectiveSettings, EvaluationSettings, LoggingSettings, SampleSettingsNode, MemorySettings)
