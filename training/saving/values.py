"""Values of a block's forward, and how those that were not kept are made again.

A value is one state of one piece of memory: an operation that writes in place ends a value and begins another. It is
kept (`base`, or `parcel` where it went to RAM), or it has a recipe, the operation and the values that it read.
Views are no values: a view is a value and a geometry. Knows nothing of what is worth keeping.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, NamedTuple

import torch
from torch import Tensor

from ..errors import PistachioError


class Geometry(NamedTuple):
    """Where a tensor lies in its memory."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def geometry_of(tensor: Tensor) -> Geometry:
    return Geometry(tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())


def whole(base: Tensor) -> Tensor:
    """All of the memory that `base` lies in."""
    return base.as_strided((base.untyped_storage().nbytes() // base.element_size(),), (1,), 0)


def view_of(base: Tensor, geometry: Geometry) -> Tensor:
    dtype, size, stride, offset = geometry
    if dtype is not base.dtype:
        base = whole(base).view(dtype)
    return base.as_strided(size, stride, offset)


def copy_of(base: Tensor) -> Tensor:
    """The same tensor in memory of its own; whatever else lies in that memory keeps its place."""
    return whole(base).clone().as_strided(base.size(), base.stride(), base.storage_offset())


class Recipe:
    """An operation and what it read. `target`: what it wrote into, where it worked in place."""

    __slots__ = ("run", "args", "kwargs", "target")

    def __init__(self, run: Callable, args: tuple, kwargs: dict, target: "Reference | None" = None):
        self.run, self.args, self.kwargs, self.target = run, args, kwargs, target


class Value:
    __slots__ = ("recipe", "index", "geometry", "base", "parcel", "version", "references", "handles", "is_product", "is_outside", "origin", "__weakref__")

    def __init__(self, *, base: Tensor | None = None, recipe: Recipe | None = None, index: int = 0, geometry: Geometry | None = None):
        self.base, self.recipe, self.index, self.geometry = base, recipe, index, geometry
        self.parcel = None  # where it waits outside the device
        self.version: int | None = None  # of the memory when the block's forward ended
        self.references = 0  # recipes and handles that read it
        self.handles = 0  # saved tensors of the backward that lie in it
        self.is_product = False
        self.is_outside = False  # memory from before the block
        self.origin: Origin | None = None  # MIXED, if it was made of several; None, if of none

    @property
    def size_bytes(self) -> int:
        return 0 if self.base is None else self.base.untyped_storage().nbytes()


class Origin:
    """The dear value that others were made of cheaply, itself among them. No reference to it: memory must not wait for a collector."""

    __slots__ = ("source",)

    def __init__(self, source: "Origin | None" = None):
        self.source = source  # of a product: the origin of what it multiplied


MIXED = Origin()


def common_origin(values: Iterable[Value]) -> Origin | None:
    """An adapter's part, made of its layer's input, leaves the sum with its layer's output the layer's."""
    origins = {value.origin for value in values} - {None}
    for origin in origins:
        if origins <= {origin, origin.source}:
            return origin
    return MIXED if origins else None


class Reference:
    """A view of a value."""

    __slots__ = ("value", "geometry")

    def __init__(self, value: Value, geometry: Geometry):
        self.value, self.geometry = value, geometry


class Replay:
    """Makes a block's values again, each once for all that wait for it."""

    def __init__(self):
        self.made: dict[Value, Tensor] = {}
        self.before_first: Callable[[], None] | None = None

    def tensor(self, reference: Reference) -> Tensor:
        if self.before_first is not None:
            first, self.before_first = self.before_first, None
            first()
        with torch.no_grad():
            return view_of(self._memory(reference.value, {}), reference.geometry)

    def forget(self, value: Value) -> None:
        self.made.pop(value, None)

    def _memory(self, value: Value, here: dict[Value, Tensor]) -> Tensor:
        """`here`: what this one call has made, and reads more than once."""
        if value.base is not None:
            check_unchanged(value)
            return value.base
        if value.parcel is not None:
            return value.parcel.tensor()
        found = self.made.get(value)
        if found is None:
            found = here.get(value)
        if found is not None:
            return found
        made = self._make(value, here)
        if value.handles or (value.is_product and value.references > 1):
            self.made[value] = made
        elif value.references > 1:
            here[value] = made
        return made

    def _make(self, value: Value, here: dict[Value, Tensor]) -> Tensor:
        recipe = value.recipe
        if recipe.target is not None:
            before = recipe.target.value
            memory = self._memory(before, here)
            if before.base is not None or before.parcel is not None or before.references > 1:
                memory = copy_of(memory)
            recipe.run(view_of(memory, recipe.target.geometry), *self._given(recipe.args, here), **self._given(recipe.kwargs, here))
            return memory
        out = recipe.run(*self._given(recipe.args, here), **self._given(recipe.kwargs, here))
        out = out[value.index] if isinstance(out, (tuple, list)) else out
        return laid_out(out, value.geometry)

    def _given(self, argument: Any, here: dict[Value, Tensor]) -> Any:
        kind = type(argument)
        if kind is Reference:
            return view_of(self._memory(argument.value, here), argument.geometry)
        if kind is tuple or kind is list:
            return kind([self._given(each, here) for each in argument])
        if kind is dict:
            return {name: self._given(each, here) for name, each in argument.items()}
        return argument


def laid_out(made: Tensor, geometry: Geometry) -> Tensor:
    """As the first one lay, since views of it say where they begin."""
    if made.stride() == geometry.stride and made.storage_offset() == geometry.offset:
        return made
    room = 1 + geometry.offset + sum((size - 1) * stride for size, stride in zip(geometry.size, geometry.stride))
    memory = torch.empty(room, dtype=geometry.dtype, device=made.device)
    return memory.as_strided(geometry.size, geometry.stride, geometry.offset).copy_(made)


def version_of(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def check_unchanged(value: Value) -> None:
    if value.version is not None and version_of(value.base) != value.version:
        raise PistachioError(changed(value.base))


def changed(tensor: Tensor) -> str:
    return (
        f"A tensor {tuple(tensor.shape)} that a block keeps for its backward was changed in place after the block had run. "
        "Set block checkpointing to 'on' on Train LoRA, and tell us which model it was."
    )


class Handle:
    """What autograd holds in a saved tensor's place."""

    __slots__ = ("reference", "replay")

    def __init__(self, reference: Reference, replay: Replay):
        self.reference, self.replay = reference, replay
        reference.value.handles += 1

    def tensor(self) -> Tensor:
        return self.replay.tensor(self.reference)

    def __del__(self):
        value = self.reference.value
        value.handles -= 1
        if value.handles == 0:
            self.replay.forget(value)


class Held:
    """A tensor that is more than a view of memory (sparse, conjugated, of a class of its own), kept as it is."""

    __slots__ = ("kept", "version")

    def __init__(self, tensor: Tensor):
        self.kept = tensor
        self.version = version_of(tensor)

    def tensor(self) -> Tensor:
        if version_of(self.kept) != self.version:
            raise PistachioError(changed(self.kept))
        return self.kept
