"""A device for machines without one: the CPU, with the freedom that a card's copy engine has, used for the worst.

A copy begins as early as it may, so that a slot's old contents are gone at once, and ends as late as it may, when somebody
waits for it. What reads a slot in between reads NaN. It checks the order of marks as well, and raises OrderError.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

POISON = 0xFF  # all bits set: NaN in every float format, 8 bits included


class OrderError(AssertionError):
    """A slot was read before its copy was done, or written while it was in use."""


@dataclass(eq=False, slots=True)
class _Copy:
    slot: Tensor
    source: Tensor
    is_done: bool = False


@dataclass(eq=False, slots=True)
class _Slot:
    memory: Tensor
    has_weights: bool = False
    last_read: int = 0  # the mark before it


class SimulatedDevice:
    is_simulated = True

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._slots: dict[int, _Slot] = {}  # address of the memory -> slot
        self._queue: list[_Copy] = []  # not done yet, in their order
        self._mark = 0
        self._stalled_seconds = 0.0
        self.copied_bytes = 0

    def slot(self, size_bytes: int) -> Tensor:
        memory = torch.full((size_bytes,), POISON, dtype=torch.uint8)
        self._slots[memory.untyped_storage().data_ptr()] = _Slot(memory)
        return memory

    def pin(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)

    def resident(self, tensor: Tensor) -> Tensor:
        return tensor  # host and device are one memory

    def computed(self) -> int:
        self._mark += 1
        return self._mark

    def copy(self, slot: Tensor, source: Tensor, *, after: int) -> _Copy:
        state = self._slots[slot.untyped_storage().data_ptr()]
        if state.last_read >= after:
            raise OrderError(f"a slot is overwritten after mark {after}, and was read after mark {state.last_read}")
        made = _Copy(slot, source)
        slot.fill_(POISON)
        state.has_weights = False
        self._queue.append(made)
        return made

    def wait(self, copied: _Copy) -> None:
        start = time.perf_counter()
        while not copied.is_done:  # one engine: what was asked for before comes first
            first = self._queue.pop(0)
            first.slot[: first.source.numel()].copy_(first.source)
            first.is_done = True
            state = self._slots[first.slot.untyped_storage().data_ptr()]
            state.has_weights = True
            self.copied_bytes += first.source.numel()
        self._stalled_seconds += time.perf_counter() - start

    def read(self, memory: Tensor) -> None:
        """For whoever watches the computing: some operation reads this memory now."""
        state = self._slots.get(memory.untyped_storage().data_ptr())
        if state is None:
            return
        if not state.has_weights:
            raise OrderError("a slot is read before its copy is done")
        state.last_read = self._mark

    def stall_seconds(self) -> float:
        """The time of the copies that were left until somebody waited: all of them, with one engine for everything."""
        return self._stalled_seconds

    def close(self) -> None:
        self._queue.clear()
        self._slots.clear()
