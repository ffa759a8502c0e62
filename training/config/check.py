"""How a settings class refuses a value, and what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from typing import Iterable

from ..errors import PistachioError


def check(condition: bool, message: str) -> None:
    if not condition:
        raise PistachioError(message)


def meant(word: str, known: Iterable[str]) -> str:
    """' Did you mean 'x'?' for the nearest known name, or nothing when none is near."""
    nearest = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
