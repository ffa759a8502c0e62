"""What blocks keep, waiting in RAM: copied out when a block's forward ends, and back while the backward is in the block after it.

On a card the copies run beside the computation, from and to pinned memory. On a CPU the same code copies plain memory.
"""

from __future__ import annotations

import weakref
from typing import Iterable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .values import Geometry, Value, geometry_of, version_of, view_of, whole

# Smaller tensors stay: a copy of them costs more than it frees.
WORTH_COPYING_BYTES = 2**20


class Copies:
    """Copies on a device that computes in order with them: the CPU."""

    def out(self, source: Tensor, target: Tensor) -> object:
        """Returns what says that it is done."""
        target.copy_(source)
        return None

    def back(self, source: Tensor, after: object, device: torch.device) -> tuple[Tensor, object]:
        return source.clone(), None

    def wait(self, done: object, tensor: Tensor) -> None:
        """Whatever is computed from now on may read `tensor`."""

    def is_done(self, done: object) -> bool:
        return True

    def buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8)


class CudaCopies(Copies):
    def __init__(self, device: torch.device):
        self._leaving, self._coming = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def out(self, source: Tensor, target: Tensor) -> object:
        self._leaving.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._leaving):
            target.copy_(source, non_blocking=True)
            done = self._leaving.record_event()
        source.record_stream(self._leaving)
        return done

    def back(self, source: Tensor, after: object, device: torch.device) -> tuple[Tensor, object]:
        with torch.cuda.stream(self._coming):
            self._coming.wait_event(after)
            tensor = source.to(device, non_blocking=True)
            return tensor, self._coming.record_event()

    def wait(self, done: object, tensor: Tensor) -> None:
        stream = torch.cuda.current_stream(tensor.device)
        stream.wait_event(done)
        tensor.record_stream(stream)

    def is_done(self, done: object) -> bool:
        return done.query()

    def buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)


class ShadowCopies(Copies):
    """Of a model without memory (`meta`), whose sizes alone are asked for."""

    def out(self, source: Tensor, target: Tensor) -> object:
        return None

    def back(self, source: Tensor, after: object, device: torch.device) -> tuple[Tensor, object]:
        return torch.empty(source.shape, dtype=source.dtype, device=device), None

    def buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(1, dtype=torch.uint8).expand(size_bytes)


def copies_for(device: torch.device) -> Copies:
    if device.type == "cuda":
        return CudaCopies(device)
    return ShadowCopies() if device.type == "meta" else Copies()


class Store:
    """RAM for one network's blocks. Buffers are used again in each step: pinning is slow."""

    def __init__(self, device: torch.device, worth_copying_bytes: int = WORTH_COPYING_BYTES):
        self.copies = copies_for(device)
        self.worth_copying_bytes = worth_copying_bytes
        self._free: dict[int, list[tuple[object, Tensor]]] = {}
        self._parcels: dict[tuple[int, int | None], tuple[StorageWeakRef, weakref.ref]] = {}
        self._last: weakref.ref | None = None

    def shelf(self, inputs: Iterable[Tensor]) -> "Shelf":
        """For the block that runs now; it knows the one before it, which the backward comes to next."""
        shelf = Shelf(self, self._last() if self._last is not None else None, inputs)
        self._last = weakref.ref(shelf)
        return shelf

    def parcel(self, base: Tensor) -> "Parcel":
        """One for each memory: what several blocks read is copied once."""
        storage = base.untyped_storage()
        key = (storage._cdata, version_of(base))
        known = self._parcels.get(key)
        parcel = known[1]() if known is not None and not known[0].expired() else None
        if parcel is None:
            parcel = Parcel(self, base)
            self._parcels = {k: pair for k, pair in self._parcels.items() if pair[1]() is not None}
            self._parcels[key] = (StorageWeakRef(storage), weakref.ref(parcel))
        return parcel

    def buffer(self, size_bytes: int) -> Tensor:
        free = self._free.get(size_bytes, ())
        for index, (done, buffer) in enumerate(free):
            if self.copies.is_done(done):
                del free[index]
                return buffer
        return self.copies.buffer(size_bytes)

    def give_back(self, buffer: Tensor, done: object) -> None:
        """`done`: the last copy from or to it."""
        self._free.setdefault(buffer.numel(), []).append((done, buffer))


class Parcel:
    """One piece of memory in RAM."""

    def __init__(self, store: Store, base: Tensor):
        self._store, self._geometry, self._device = store, geometry_of(base), base.device
        source = whole(base).view(torch.uint8)
        self._ram = store.buffer(source.numel())
        self._done = store.copies.out(source, self._ram)
        self._back: Tensor | None = None

    def fetch(self) -> None:
        if self._back is None:
            self._back, self._done = self._store.copies.back(self._ram, self._done, self._device)

    def tensor(self) -> Tensor:
        self.fetch()
        self._store.copies.wait(self._done, self._back)
        dtype, size, stride, offset = self._geometry
        return self._back.view(dtype).as_strided(size, stride, offset)

    def __del__(self):
        self._store.give_back(self._ram, self._done)


class Shelf:
    """The parcels of one block."""

    def __init__(self, store: Store, before: "Shelf | None", inputs: Iterable[Tensor]):
        self._store, self._before = store, before
        self._parcels: list[weakref.ref] = []  # a parcel lives as long as the values that need it
        # Memory from outside of the block leaves the device only where it is the block's own input: nobody else keeps it there.
        self._inputs = {tensor.untyped_storage()._cdata for tensor in inputs}

    def put(self, values: Iterable[Value]) -> None:
        for value in values:
            if value.base is not None and self._may_leave(value.base, value.is_outside):
                value.parcel = self._add(value.base)
                value.base = None

    def pack(self, tensor: Tensor) -> "Tensor | Boxed":
        """For `saved_tensors_hooks`."""
        return Boxed(self, self._add(tensor), geometry_of(tensor)) if self._may_leave(tensor, True) else tensor

    @staticmethod
    def unpack(held: "Tensor | Boxed") -> Tensor:
        return held.tensor() if isinstance(held, Boxed) else held

    def before_first(self) -> None:
        """The backward has come to this block: what the next one needs sets out."""
        before, self._before = self._before, None
        if before is not None:
            for reference in before._parcels:
                parcel = reference()
                if parcel is not None:
                    parcel.fetch()

    def _may_leave(self, tensor: Tensor, is_outside: bool) -> bool:
        storage = tensor.untyped_storage()
        return storage.nbytes() >= self._store.worth_copying_bytes and (not is_outside or storage._cdata in self._inputs)

    def _add(self, base: Tensor) -> Parcel:
        parcel = self._store.parcel(base)
        self._parcels.append(weakref.ref(parcel))
        return parcel


class Boxed:
    """A view of a parcel, in a saved tensor's place."""

    def __init__(self, shelf: Shelf, parcel: Parcel, geometry: Geometry):
        self._shelf, self._parcel, self._geometry = shelf, parcel, geometry

    def tensor(self) -> Tensor:
        self._shelf.before_first()
        return view_of(self._parcel.tensor(), self._geometry)
