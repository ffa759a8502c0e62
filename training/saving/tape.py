"""The record of one block's forward, from which its backward gets what was not kept.

Sees every operation below autograd, so it serves every architecture, whatever its control flow was in this pass, and
operations in place. What a saved tensor of autograd is made of is decided here: kept memory, or a recipe.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Iterator

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode_temporarily

from .operations import DEAR_FLOPS_PER_BYTE, Kind, flops_per_byte, kind_of
from .values import Geometry, Handle, Held, Origin, Recipe, Reference, Replay, Value, common_origin, copy_of, geometry_of, version_of

ORDINARY = (Tensor, torch.nn.Parameter, FakeTensor)


@dataclass(frozen=True, kw_only=True, slots=True)
class Thrift:
    """From which size on bytes are worth an operation."""

    # A block with smaller inputs keeps all that autograd asks for: making it again would cost launches, and save little.
    block_input_bytes: int = 8 * 2**20
    tensor_bytes: int = 64 * 2**10  # smaller tensors (statistics, modulation) are kept as they are
    product_flops_per_byte: float = DEAR_FLOPS_PER_BYTE


def _is_ordinary(tensor: Any) -> bool:
    """That its memory and its geometry say all of it."""
    return type(tensor) in ORDINARY and tensor.layout is torch.strided and not tensor.is_conj() and not tensor.is_neg()


class _NotRecordable(Exception):
    """An argument that a recipe can't name."""


class Tape(TorchDispatchMode):
    """`level`: one of "attention", "products" and "everything", which says what becomes of a product's output."""

    def __init__(self, level: str, thrift: Thrift):
        super().__init__()
        self.level, self.thrift = level, thrift
        self.replay = Replay()
        self._values: dict[int, Value] = {}  # address of a storage -> its present value
        # An address in `_values` can't be given to other memory while something holds it.
        self._held: list[StorageWeakRef] = []
        self._products: list[Value] = []  # with memory and a recipe, until it is known whether the backward reads them
        self._handles: list[Handle] = []
        self._is_paused = False

    # ---- what autograd saves --------------------------------------------

    def pack(self, tensor: Tensor) -> "Handle | Held":
        if not _is_ordinary(tensor):
            return Held(tensor)
        handle = Handle(self._reference(tensor), self.replay)
        self._handles.append(handle)
        return handle

    def finish(self) -> list[Value]:
        """The forward is over: decide, let go of the rest, and return the values that are kept."""
        read = {handle.reference.value.origin for handle in self._handles}
        for value in self._products:
            if value.base is None:
                continue
            if value.origin in read:
                value.recipe = None
            else:
                value.base = None
        kept: dict[Value, None] = {}
        seen: set[Value] = set()
        waiting = [handle.reference.value for handle in self._handles]
        while waiting:
            value = waiting.pop()
            if value in seen:
                continue
            seen.add(value)
            if value.base is not None:
                value.version = version_of(value.base)
                kept[value] = None
            else:
                waiting.extend(_read_by(value.recipe))
        self._values, self._held, self._products, self._handles = {}, [], [], []
        return list(kept)

    # ---- what runs -------------------------------------------------------

    def product(self, run: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """A frozen layer as one operation: run again it fetches its weight again, which may have been moved or cast."""
        return self._call(run, args, self._define_product)

    def cheap(self, run: Callable, *args) -> Any:
        """A kernel that PyTorch doesn't know as an operation, as cheap to run again as an elementwise one."""
        return self._call(run, args, self._define_cheap)

    def _call(self, run: Callable, args: tuple, define: Callable) -> Any:
        was_paused, self._is_paused = self._is_paused, True
        try:
            # Stepping aside spares each operation in there a call; beneath another mode the tape can't.
            with _pop_mode_temporarily() if _get_current_dispatch_mode() is self else nullcontext():
                out = run(*args)
        finally:
            self._is_paused = was_paused
        if not was_paused:
            define(run, args, {}, out)
        return out

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would wrap what follows against being compiled, which costs more than what it does."""
        return False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        kind = kind_of(operation)
        if kind is Kind.VIEW or self._is_paused:
            return operation(*args, **kwargs)
        if kind is Kind.CHEAP:
            out = operation(*args, **kwargs)
            self._define_cheap(operation, args, kwargs, out)
            return out
        if kind is Kind.CHEAP_WRITE:
            return self._write(operation, args, kwargs)
        if kind is Kind.WRITE:
            return self._write_for_good(operation, args, kwargs)
        out = operation(*args, **kwargs)
        if kind is Kind.PRODUCT:
            if flops_per_byte(operation, args, out) < self.thrift.product_flops_per_byte:
                self._define_cheap(operation, args, kwargs, out)
            else:
                self._define_product(operation, args, kwargs, out)
            return out
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if _is_ordinary(each) and each.untyped_storage()._cdata not in self._values:
                self._keep(each)
        return out

    def _define_cheap(self, operation, args, kwargs, out) -> None:
        recipe = None
        for index, each in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
            if not _is_ordinary(each):
                continue
            if each.untyped_storage().nbytes() <= self.thrift.tensor_bytes:
                self._keep(each)
                continue
            if recipe is None:
                try:
                    recipe = Recipe(operation, self._given(args), self._given(kwargs))
                except _NotRecordable:
                    self._keep(each)
                    continue
            value = Value(recipe=recipe, index=index, geometry=geometry_of(each))
            value.origin = common_origin(_read_by(recipe))
            self._set(each, value)

    def _define_product(self, operation, args, kwargs, out) -> None:
        if not _is_ordinary(out):
            return
        if self.level == "everything" or out.untyped_storage().nbytes() <= self.thrift.tensor_bytes:
            self._keep(out)
            return
        try:
            value = Value(recipe=Recipe(operation, self._given(args), self._given(kwargs)), geometry=geometry_of(out))
        except _NotRecordable:
            self._keep(out)
            return
        value.is_product, value.origin = True, Origin(common_origin(_read_by(value.recipe)))
        if self.level == "products":
            value.base = out.detach()
            self._products.append(value)
        self._set(out, value)

    def _write(self, operation, args, kwargs):
        """An operation in place: the value of before ends here, and whoever reads it must still find it."""
        target = args[0]
        if not _is_ordinary(target):
            return self._write_for_good(operation, args, kwargs)
        before = self._value(target)
        has_readers = before.references > 0
        try:
            rest, named = self._given(args[1:]), self._given(kwargs)
        except _NotRecordable:
            return self._write_for_good(operation, args, kwargs)
        geometry = before.geometry or geometry_of(target)
        recipe = Recipe(operation, rest, named, Reference(before, geometry_of(target)))
        after = Value(recipe=recipe, geometry=geometry)
        if before.base is not None and not has_readers and (before.recipe is None or before.is_product):
            # The memory goes on as the new value's, kept as the old one was.
            after.base, before.base = before.base, None
            after.is_outside = before.is_outside
            if before.recipe is None:
                after.recipe = None
                after.origin = before.origin
            else:
                before.references += 1
                after.is_product, after.origin = True, before.origin
                self._products.append(after)
        else:
            before.references += 1
            self._preserve(before)
            after.origin = common_origin(_read_by(recipe))
        out = operation(*args, **kwargs)
        self._set(target, after)
        return out

    def _write_for_good(self, operation, args, kwargs):
        """What is in the memory afterwards (random numbers, for one) can't be made again."""
        written = []
        for argument, given in zip(operation._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += [each for each in (given if isinstance(given, (tuple, list)) else (given,)) if torch.is_tensor(each)]
        written += [
            kwargs[argument.name] for argument in operation._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write and torch.is_tensor(kwargs.get(argument.name))
        ]
        for target in written:
            value = self._values.get(target.untyped_storage()._cdata)
            if value is not None and value.references:
                self._preserve(value)
        out = operation(*args, **kwargs)
        for target in written:
            self._keep(target)
        return out

    def _preserve(self, value: Value) -> None:
        """Its memory is about to be written."""
        if value.base is None:
            return
        if value.recipe is None or value.handles:
            value.base, value.is_outside = copy_of(value.base), False
        else:
            value.base = None

    # ---- values ----------------------------------------------------------

    def _keep(self, tensor: Tensor) -> None:
        value = Value(base=tensor.detach(), geometry=geometry_of(tensor))
        if value.size_bytes > self.thrift.tensor_bytes:
            value.origin = Origin()
        self._set(tensor, value)

    def _set(self, tensor: Tensor, value: Value) -> None:
        storage = tensor.untyped_storage()
        self._values[storage._cdata] = value
        self._held.append(StorageWeakRef(storage))

    def _value(self, tensor: Tensor) -> Value:
        value = self._values.get(tensor.untyped_storage()._cdata)
        if value is None:  # from outside of the block
            value = Value(base=tensor.detach(), geometry=geometry_of(tensor))
            value.is_outside = True
            if tensor.requires_grad and not tensor.is_leaf:
                value.origin = Origin()
            self._set(tensor, value)
        return value

    def _reference(self, tensor: Tensor) -> Reference:
        value = self._value(tensor)
        value.references += 1
        return Reference(value, Geometry(tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()))

    def _given(self, argument: Any) -> Any:
        """With references in the place of tensors."""
        if isinstance(argument, Tensor):
            if not _is_ordinary(argument):
                raise _NotRecordable
            return self._reference(argument)
        if isinstance(argument, (tuple, list)):
            return type(argument)([self._given(each) for each in argument])
        if isinstance(argument, dict):
            return {name: self._given(each) for name, each in argument.items()}
        return argument


def _read_by(recipe: Recipe) -> Iterator[Value]:
    if recipe.target is not None:
        yield recipe.target.value
    yield from _values_in(recipe.args)
    if recipe.kwargs:
        yield from _values_in(tuple(recipe.kwargs.values()))


def _values_in(arguments) -> Iterator[Value]:
    for each in arguments:
        if type(each) is Reference:
            yield each.value
        elif type(each) in (tuple, list):
            yield from _values_in(each)


_recording: list[Tape] = []  # of the block that runs now; blocks don't nest


def recording() -> Tape | None:
    return _recording[-1] if _recording else None


@contextmanager
def recorded(tape: Tape) -> Iterator[None]:
    _recording.append(tape)
    try:
        with tape, torch.autograd.graph.saved_tensors_hooks(tape.pack, lambda held: held.tensor()):
            yield
    finally:
        _recording.remove(tape)
