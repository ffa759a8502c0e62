"""Bytes of live tensors, counted as they come and go.

It watches the operations of a piece of code, on any device: on `meta`, where tensors have a size and no memory, it says
what the same code would need. What an operation takes and gives back inside itself is not seen, and has to be told.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NO_BACKWARD = -1  # torch's number of the backward that runs, where none does


class LiveStorage(TorchDispatchMode):
    """Memory that was allocated inside the context and is still held, and the most that it ever was.

    A tensor from before the context is not counted, nor is a view of it.
    """

    def __init__(self, device: torch.device, *, scratch: Callable[[object, tuple, object], int] | None = None):
        """`scratch`: bytes that an operation (function, its arguments, its result) holds besides its result while it runs."""
        super().__init__()
        self.device_type = device.type
        self.scratch = scratch
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        # Where autograd adds up the gradients of a tensor it does so in place, except while somebody watches its operations as
        # this does. The sum takes the place of the first gradient: what is held is known when that is gone, at the next operation.
        in_place = function is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != NO_BACKWARD
        result = self._repeated(function, args, kwargs) if self.device_type == "meta" else function(*args, **kwargs)
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
        if not in_place:
            scratch = self.scratch(function, args, result) if self.scratch is not None else 0
            self.peak_bytes = max(self.peak_bytes, self.live_bytes + scratch)
        return result

    def _repeated(self, function, args: tuple, kwargs: dict):
        """The same operation on the same shapes is worked out once: torch's shape functions take most of a trace's time."""
        if not _makes_new_tensors(function):
            return function(*args, **kwargs)
        try:
            key = function, _signature(args), _signature(kwargs)
            known = _RESULTS.get(key)
        except TypeError:  # an argument that can't be looked up
            return function(*args, **kwargs)
        if known is None:
            result = function(*args, **kwargs)
            parts = result if isinstance(result, tuple) else (result,)
            if len(_RESULTS) < _LIMIT and all(isinstance(part, Tensor) and part.device.type == "meta" for part in parts):
                _RESULTS[key] = isinstance(result, tuple), tuple((part.shape, part.stride(), part.dtype) for part in parts)
            return result
        several, shapes = known
        made = tuple(torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in shapes)
        return made if several else made[0]

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


# (operation, shapes and settings) -> whether it gives a tuple, and the shape, stride and type of each result
_RESULTS: dict[tuple, tuple[bool, tuple]] = {}
_LIMIT = 20_000  # of them: a run has some hundreds


@cache
def _makes_new_tensors(function: object) -> bool:
    schema = function._schema
    if schema.name == "aten::_unsafe_view":  # the same memory, which its schema doesn't say
        return False
    return not schema.is_mutable and all(returned.alias_info is None for returned in schema.returns) and len(schema.returns) > 0


def _signature(value: object) -> object:
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device.type
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    if isinstance(value, dict):
        return tuple((name, _signature(item)) for name, item in value.items())
    # 1, 1.0 and True are equal keys and give different types.
    return (value, type(value)) if isinstance(value, (int, float)) else value


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
