"""What the adapter is and which layers carry it."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

TARGET_PRESETS = ("attention", "all-linear", "all-linear+conv")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "lora"
    rank: int = 16
    alpha: float = 16.0  # the update is scaled by alpha / rank
    targets: str = "all-linear"  # one of TARGET_PRESETS

    def __post_init__(self):
        check(self.kind == "lora", f"Adapter type '{self.kind}' is unknown. Choose 'lora' in Adapter Settings.")
        check(self.rank >= 1, f"Rank is {self.rank}. Set it to 1 or more in Adapter Settings.")
        check(self.alpha > 0, f"Alpha is {self.alpha}. Set it above 0 in Adapter Settings.")
        check(
            self.targets in TARGET_PRESETS,
            f"Target preset '{self.targets}' is unknown. Choose one of {', '.join(TARGET_PRESETS)} in Adapter Settings.",
        )
