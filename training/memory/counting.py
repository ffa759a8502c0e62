"""Bytes of live tensors, counted as they come and go.

It watches the operations of a piece of code, on any device: on `meta`, where tensors have a size and no memory, it says
what the same code would need. What an operation takes and gives back inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LiveStorage(TorchDispatchMode):
    """Memory that was allocated inside the context and is still held, and the most that it ever was.

    A tensor from before the context is not counted, nor is a view of it.
    """

    def __init__(self, device: torch.device):
        super().__init__()
        self.device_type = device.type
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in _tensors(result):
            if tensor.device.type != self.device_type:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            if given is None:
                given = {each.untyped_storage()._cdata for each in _tensors((args, kwargs))}
            if key not in given:
                self._begin(key, storage)
        return result

    def _begin(self, key: int, storage: torch.UntypedStorage) -> None:
        size_bytes = storage.nbytes()
        if not size_bytes:
            return
        known = self._known

        def ended(_reference: object) -> None:
            known.pop(key, None)
            self.live_bytes -= size_bytes

        known[key] = weakref.ref(storage, ended)
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
