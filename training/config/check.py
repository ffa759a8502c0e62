"""How a settings class refuses a value."""

from __future__ import annotations

from ..errors import PistachioError


def check(condition: bool, message: str) -> None:
    if not condition:
        raise PistachioError(message)
