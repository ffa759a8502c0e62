"""What isn't streamed of a network whose weights the host keeps in its memory: on the device for as long as streaming lasts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator

import torch
from torch import Tensor

from .device import StreamDevice
from .image import Place, moves, places_of
from .tensors import replaced


class Rest:
    def __init__(self, network: torch.nn.Module, without: frozenset[torch.nn.Module], device: StreamDevice):
        self.network, self.without, self.device = network, without, device
        self._changed: list[tuple[Place, Any]] = []

    @contextmanager
    def placed(self) -> Iterator[None]:
        try:
            self._place()
            yield
        finally:
            self._restore()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        self._restore()
        try:
            yield
        finally:
            self._place()

    def _place(self) -> None:
        known: dict[int, Any] = {}
        for place in places_of(self.network, without=self.without):
            shown = replaced(place.value, self._moved, known)
            if shown is not place.value:
                self._changed.append((place, shown))
                place.store[place.name] = shown

    def _moved(self, tensor: Tensor) -> Tensor:
        moved = self.device.resident(tensor) if moves(tensor) else tensor
        if moved is tensor or not isinstance(tensor, torch.nn.Parameter):
            return moved
        return torch.nn.Parameter(moved.detach(), requires_grad=False)

    def _restore(self) -> None:
        for place, shown in self._changed:
            if place.store.get(place.name) is shown:
                place.store[place.name] = place.value
        self._changed.clear()
