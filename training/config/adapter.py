"""What the adapter is and which layers carry it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .check import check

ADAPTER_KINDS = ("lora", "dora", "lokr", "loha")
TARGET_PRESETS = ("attention", "attention+mlp", "all-linear", "all-linear+conv")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    kind: str = "lora"  # one of ADAPTER_KINDS
    rank: int = 16
    alpha: float = 16.0  # the update is scaled by alpha / rank
    targets: str = "all-linear"  # one of TARGET_PRESETS
    rank_stabilised: bool = False  # the update is scaled by alpha / sqrt(rank) instead (rsLoRA)
    dropout: float = 0.0  # share of the adapter's input values that a training step leaves out
    lokr_factor: int = -1  # LoKr: the smaller Kronecker factor's size at most; -1 is the most even split
    conv_rank: int = 0  # rank of convolutions larger than 1 x 1; 0 is `rank`
    conv_alpha: float = 0.0  # their alpha; 0 is `alpha`
    include: str = ""  # regular expressions, one a line: only layers of the preset that one of them finds
    exclude: str = ""  # regular expressions, one a line: never these layers
    rank_pattern: str = ""  # "regex=rank", one a line; the first that finds a layer sets its rank
    start_from: str = ""  # a LoRA file below models/loras whose weights are the start
    start_from_hash: str = ""  # of that file's content; filled in when the run begins

    def __post_init__(self):
        node = "in Adapter Settings"
        check(self.kind in ADAPTER_KINDS, f"Adapter type '{self.kind}' is unknown. Choose one of {', '.join(ADAPTER_KINDS)} {node}.")
        check(self.rank >= 1, f"Rank is {self.rank}. Set it to 1 or more {node}.")
        check(self.alpha > 0, f"Alpha is {self.alpha}. Set it above 0 {node}.")
        check(
            self.targets in TARGET_PRESETS,
            f"Target preset '{self.targets}' is unknown. Choose one of {', '.join(TARGET_PRESETS)} {node}.",
        )
        check(0 <= self.dropout < 1, f"Dropout is {self.dropout}. Set it from 0 up to less than 1 {node}.")
        check(self.lokr_factor == -1 or self.lokr_factor >= 1, f"The LoKr factor is {self.lokr_factor}. Set it to -1 (even split) or 1 or more {node}.")
        check(self.conv_rank >= 0, f"The rank of convolutions is {self.conv_rank}. Set it to 0 (as the others) or more {node}.")
        check(self.conv_alpha >= 0, f"The alpha of convolutions is {self.conv_alpha}. Set it to 0 (as the others) or more {node}.")
        check(
            not (self.conv_rank or self.conv_alpha) or self.targets == "all-linear+conv",
            f"A rank or alpha for convolutions needs them among the targets. Set targets to 'all-linear+conv' {node}, or both to 0.",
        )
        for name in ("include", "exclude"):
            for pattern in lines(getattr(self, name)):
                _check_pattern(pattern, name)
        self.rank_patterns()

    def rank_patterns(self) -> tuple[tuple[str, int], ...]:
        """(regular expression, rank), in the order of the lines."""
        parsed = []
        for line in lines(self.rank_pattern):
            pattern, equals, rank = line.rpartition("=")
            pattern, rank = pattern.strip(), rank.strip()
            check(
                bool(equals and pattern and rank.isdecimal() and int(rank) >= 1),
                f"'{line}' in rank_pattern is not 'regular expression=rank'. Write for example '\\.attn\\.=32' in Adapter Settings.",
            )
            _check_pattern(pattern, "rank_pattern")
            parsed.append((pattern, int(rank)))
        return tuple(parsed)


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _check_pattern(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        check(False, f"'{pattern}' in {name} is no regular expression ({error}). Correct it in Adapter Settings.")
