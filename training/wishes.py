"""What a person asks of a run while it trains: measure now, sample now, stop and keep what there is.

Asked from another thread, granted between two steps. None of them changes a weight: the steps before and after are the same.
"""

from __future__ import annotations

import threading
from typing import Literal, get_args

from .errors import PistachioError

Wish = Literal["evaluate", "sample", "stop"]
WISHES = get_args(Wish)


class Wishes:
    """`makes_samples`: whether the run has a sampler."""

    def __init__(self, *, makes_samples: bool = False):
        self.makes_samples = makes_samples
        self._lock = threading.Lock()
        self._open: set[Wish] = set()

    def ask(self, wish: str) -> None:
        """PistachioError for what the run can't do."""
        if wish not in WISHES:
            raise PistachioError(f"'{wish}' can't be asked of a run. There are: {', '.join(WISHES)}.")
        if wish == "sample" and not self.makes_samples:
            raise PistachioError("This run makes no samples. Connect Sample Settings to Train LoRA, and queue the graph again to resume.")
        with self._lock:
            self._open.add(wish)

    def take(self) -> frozenset[Wish]:
        """Each wish once."""
        with self._lock:
            taken, self._open = frozenset(self._open), set()
        return taken
