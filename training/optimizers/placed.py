"""A run's weights and gradients a second time, in main memory, so that an optimiser's state can live there too.

An optimiser takes it in the network's place. Only gradients come down in a step and only weights go up; the weights come
down as well when somebody else has written to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapted import AdaptedNetwork

PLACES = ("device", "cpu")


@dataclass(slots=True)
class _Tensors:
    """An adapter's, as views of the copy."""

    tensors: dict[str, Tensor] = field(default_factory=dict)


class HeldOnCpu:
    """What an optimiser needs of `AdaptedNetwork`: the flat buffers and each adapter's tensors, in page-locked memory beside a GPU."""

    def __init__(self, network: AdaptedNetwork):
        self.network = network
        self.parameters = _like(network.parameters)
        self.gradients = _like(network.gradients)
        self.parameters.grad = self.gradients
        self.adapters = {path: _Tensors({name: self._view(tensor) for name, tensor in adapter.tensors.items()}) for path, adapter in network.adapters.items()}
        self._seen: int | None = None
        self._take_parameters()

    def _view(self, tensor: Tensor) -> Tensor:
        place = (tensor.shape, tensor.stride(), tensor.storage_offset() - self.network.parameters.storage_offset())
        view = torch.as_strided(self.parameters, *place).requires_grad_(True)
        view.grad = torch.as_strided(self.gradients, *place)
        return view

    def _take_parameters(self) -> None:
        parameters = self.network.parameters
        version = None if parameters.is_inference() else parameters._version
        if version is None or version != self._seen:
            with torch.no_grad():
                self.parameters.copy_(parameters)
            self._seen = version

    @torch.no_grad()
    def take(self) -> None:
        """Before a step: the network's gradients, and its weights if they were changed. Waits until they are here."""
        self._take_parameters()
        self.gradients.copy_(self.network.gradients)

    @torch.no_grad()
    def give(self) -> None:
        """After a step: the new weights. The device's next work waits for them, this thread does not."""
        parameters = self.network.parameters
        parameters.copy_(self.parameters, non_blocking=self.parameters.is_pinned())
        self._seen = None if parameters.is_inference() else parameters._version


def _like(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
