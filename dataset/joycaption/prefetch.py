"""Pictures decoded and made ready on threads, ahead of the model that reads them.

Keeps a window of results in memory, not the whole set. Knows nothing of what "ready" means.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Generic, Sequence, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8  # decoding is rarely the slower side; more threads only hold more whole pictures at once


class Prefetch(Generic[Item, Result]):
    """`take(start, stop)` gives the results of those items in order; later ones are worked on meanwhile.

    A result is kept until an item behind it is taken, so that a batch can be taken again in smaller parts.
    """

    def __init__(self, items: Sequence[Item], work: Callable[[Item], Result], *, ahead: int, workers: int | None = None):
        assert ahead >= 0
        self._items, self._work, self._ahead = items, work, ahead
        self._futures: dict[int, Future[Result]] = {}
        self._pool = ThreadPoolExecutor(workers or min(MAX_WORKERS, max(2, os.cpu_count() or 2)), thread_name_prefix="pistachio-prefetch")
        self._request(0, ahead)

    def take(self, start: int, stop: int) -> list[Result]:
        """Results of items[start:stop]; what `work` raised is raised."""
        for index in [i for i in self._futures if i < start]:
            del self._futures[index]
        self._request(start, stop + self._ahead)
        return [self._futures[index].result() for index in range(start, min(stop, len(self._items)))]

    def close(self) -> None:
        """Drop what is waiting; returns when the threads are done with what they had begun."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._futures.clear()

    def _request(self, start: int, stop: int) -> None:
        for index in range(start, min(stop, len(self._items))):
            if index not in self._futures:
                self._futures[index] = self._pool.submit(self._work, self._items[index])
