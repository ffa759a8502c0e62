"""The runs that this server is training now, for requests that come while they do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from ..training.errors import PistachioError
from ..training.wishes import Wishes

_trained: dict[str, Wishes] = {}


@contextmanager
def listening(run_name: str, *, makes_samples: bool) -> Iterator[Wishes]:
    wishes = _trained[run_name] = Wishes(makes_samples=makes_samples)
    try:
        yield wishes
    finally:
        del _trained[run_name]


def ask(run_name: str, wish: str) -> None:
    """PistachioError when the run isn't being trained here, or can't do it."""
    wishes = _trained.get(run_name)
    if wishes is None:
        raise PistachioError(f"Run '{run_name}' isn't being trained now, or is in a part that takes no requests (caching, folds). Queue its graph to go on.")
    wishes.ask(wish)
