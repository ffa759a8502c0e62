"""One block's weights in two places: packed in host memory, and seen by the block's modules in a slot on the device.

The block's modules hold either their own tensors (`detach`) or views of the slot (`attach`). Nothing here copies to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from .tensors import replaced

ALIGNMENT_BYTES = 256  # as the device's allocator aligns, so that the same kernels are chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a module keeps a value that has tensors in it."""

    store: dict
    name: str
    value: Any


def places_of(module: torch.nn.Module, *, without: frozenset[torch.nn.Module] = frozenset()) -> list[Place]:
    """Parameters, buffers, and attributes with tensors in them; `without`: modules left out, with all below them."""
    found = []
    pending = [module]
    while pending:
        current = pending.pop()
        if current in without:
            continue
        pending.extend(child for child in current._modules.values() if child is not None)
        for store in (current._parameters, current._buffers):
            found.extend(Place(store=store, name=name, value=value) for name, value in store.items() if value is not None)
        state = vars(current)
        found.extend(Place(store=state, name=name, value=value) for name, value in state.items() if not name.startswith("_") and _tensors(value))
    return found


def _tensors(value: Any) -> bool:
    """A tensor, or a record of tensors; no list and no dict, which belong to the module's workings."""
    if value is None or isinstance(value, (bool, int, float, str, list, tuple, dict, set, torch.nn.Module, torch.dtype, torch.device)) or callable(value):
        return False
    seen: list[Tensor] = []
    replaced(value, lambda tensor: seen.append(tensor) or tensor, {})
    return bool(seen)


def moves(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.numel() > 0


def size_of(module: torch.nn.Module) -> int:
    """Bytes of an image of the module."""
    return _layout(places_of(module))[1]


def _layout(places: list[Place]) -> tuple[list[tuple[Tensor, int]], int]:
    """[(leaf, offset)], total bytes."""
    known: dict[int, Any] = {}
    found: list[tuple[Tensor, int]] = []
    end = 0

    def assign(leaf: Tensor) -> Tensor:
        nonlocal end
        if moves(leaf):
            found.append((leaf, end))
            end += -(-leaf.numel() * leaf.element_size() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return leaf

    for place in places:
        replaced(place.value, assign, known)
    return found, end


def _packed_stride(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own order of axes where it has no gaps; else the usual one."""
    end = 1
    for stride, size in sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape) if size != 1):
        if stride != end:
            return torch.empty(tensor.shape, device="meta").stride()
        end *= size
    return tensor.stride()


def _alias(flat: Tensor, offset: int, like: Tensor) -> Tensor:
    """A tensor as `like` over a stretch of a byte buffer, with a version of its own: a later copy into the buffer doesn't count as a change."""
    made = torch.empty(0, dtype=like.dtype, device=flat.device)
    return made.set_(flat.untyped_storage(), (flat.storage_offset() + offset) // like.element_size(), like.shape, _packed_stride(like))


def _view(slot: Tensor, offset: int, leaf: Tensor) -> Tensor:
    made = _alias(slot, offset, leaf)
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(leaf, torch.nn.Parameter) else made


class BlockImage:
    """Make it outside inference mode: autograd may keep the slot's tensors."""

    def __init__(self, block: torch.nn.Module, *, pin: Callable[[int], Tensor]):
        self.places = places_of(block)
        self._leaves, self.size_bytes = _layout(self.places)
        self.host = pin(self.size_bytes)
        for leaf, offset in self._leaves:
            _alias(self.host, offset, leaf).copy_(leaf.detach())
        self._shown: list[Any] = []
        self.is_attached = False

    def bind(self, slot: Tensor) -> None:
        """Decide the slot; the same one for good, so that what autograd kept of it is right whenever the block is there."""
        views = iter([_view(slot, offset, leaf) for leaf, offset in self._leaves])
        known: dict[int, Any] = {}
        # In the order in which they were found: a leaf inside a subclass is a new object each time.
        self._shown = [replaced(place.value, lambda leaf: next(views) if moves(leaf) else leaf, known) for place in self.places]

    def attach(self) -> None:
        self.is_attached = True
        for place, shown in zip(self.places, self._shown):
            place.store[place.name] = shown

    def detach(self) -> None:
        for place, shown in zip(self.places, self._shown):
            if place.store.get(place.name) is shown:  # else the block has put something of its own there
                place.store[place.name] = place.value
        self.is_attached = False

    def read_again(self, block: torch.nn.Module, slot: Tensor) -> None:
        """After the host has moved its weights: their values are the same, their objects may not be."""
        self.places = places_of(block)
        self._leaves, size_bytes = _layout(self.places)
        if size_bytes != self.size_bytes:
            raise RuntimeError(f"a streamed block has {size_bytes} bytes, and had {self.size_bytes} before sampling")
        self.bind(slot)
