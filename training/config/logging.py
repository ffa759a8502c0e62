"""Where numbers go besides the run folder."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """Where numbers go besides the run folder. Keys and tokens never belong here: wandb takes them from its own login."""

    wandb: str = "off"  # one of WANDB_MODES
    project: str = "pistachio"
    entity: str = ""
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        check(self.wandb in WANDB_MODES, f"wandb mode '{self.wandb}' is unknown. Choose one of {', '.join(WANDB_MODES)}.")
