"""Where numbers go besides the run folder, and how often the run itself is saved."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

WANDB_MODES = ("off", "offline", "online")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggingConfig:
    """Not part of a run's identity. Keys and tokens never belong here: wandb takes them from its own login."""

    wandb: str = "off"  # one of WANDB_MODES
    project: str = "pistachio"
    entity: str = ""
    tags: tuple[str, ...] = ()
    tensorboard: bool = False  # event files in the run folder
    save_state_minutes: float = 10.0  # between two saves of the state, besides those at evaluations; 0: at evaluations only

    def __post_init__(self):
        check(self.wandb in WANDB_MODES, f"wandb mode '{self.wandb}' is unknown. Choose one of {', '.join(WANDB_MODES)}.")
        check(
            self.save_state_minutes >= 0,
            f"The state is saved every {self.save_state_minutes} minutes. Set it to 0 (at evaluations only) or above in Logging Settings.",
        )
