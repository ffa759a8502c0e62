"""Results that wait for what a network does with them: a norm for its modulation or its rotation, a product for its gate.

A block's own code goes on as it is. Where its next step is the one that a kernel does in the same pass, the kernel does both;
at anything else the waiting result becomes the tensor that the network's own layer gives, and nothing is different.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

IN_PLACE = {"add_", "__iadd__"}  # what torch calls `x += y`; a block that calls `x.add_(y)` by name must be given no waiting results
_ADDITIONS = {"add", "__add__", "__radd__"} | IN_PLACE
_MULTIPLICATIONS = {"mul", "__mul__", "__rmul__"}


class Pending:
    """Stands for a tensor in torch's functions; everything else that is asked of it is asked of the tensor."""

    _made: Tensor | None = None

    def _make(self) -> Tensor:
        raise NotImplementedError

    def _takes(self, name: str, args: tuple, kwargs: dict) -> Any:
        """What torch's function `name` of `args` is by a kernel, or None."""
        return None

    @property
    def settled(self) -> Tensor:
        if self._made is None:
            self._made = self._make()
        return self._made

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for each in args[0] if args and isinstance(args[0], (tuple, list)) else args:
            if isinstance(each, Pending) and each._made is None:
                found = each._takes(function.__name__, args, kwargs)
                if found is not None:
                    return found
        if function.__name__ in IN_PLACE:  # into what a norm before may have kept: `x += y` means a new x too
            function = _added
        return function(*_settled(args), **_settled(kwargs))

    def __getattr__(self, name: str):
        return getattr(self.settled, name)

    def __getitem__(self, index):
        return self.settled[index]

    def __setitem__(self, index, value):
        self.settled[index] = settled(value)

    def __len__(self):
        return len(self.settled)

    def __add__(self, other):
        return Pending.__torch_function__(torch.add, (), (self, other))

    __radd__ = __add__

    def __mul__(self, other):
        return Pending.__torch_function__(torch.mul, (), (self, other))

    __rmul__ = __mul__

    def __sub__(self, other):
        return self.settled - settled(other)

    def __rsub__(self, other):
        return settled(other) - self.settled

    def __truediv__(self, other):
        return self.settled / settled(other)

    def __neg__(self):
        return -self.settled


def _added(x, y):
    return torch.add(x, y).to(x.dtype)


def settled(value):
    """The tensor of a waiting result; anything else as it is."""
    return value.settled if isinstance(value, Pending) else value


def _settled(values):
    if isinstance(values, dict):
        return {name: _settled(value) for name, value in values.items()}
    if isinstance(values, (tuple, list)):
        return type(values)(map(_settled, values))
    return settled(values)


def _is_vector_for(vector, x: Tensor) -> bool:
    """[B or 1, 1 or T, C] beside x [B, T, C], of its type."""
    return isinstance(vector, Tensor) and vector.dtype == x.dtype and vector.ndim == x.ndim == 3 and vector.shape[2] == x.shape[2] and all(
        size in (1, whole) for size, whole in zip(vector.shape, x.shape)
    )


class Norm(Pending):
    """`plain`: the layer's own result. `modulated`: (shift, 1 + scale) -> both in one pass."""

    def __init__(self, x: Tensor, plain: Callable[[], Tensor], modulated: Callable[[Tensor, Tensor], Tensor]):
        self.x, self._make, self.modulated = x, plain, modulated

    def _takes(self, name, args, kwargs):
        if name == "addcmul" and len(args) == 3 and not kwargs and args[1] is self:
            shift, scale = args[0], args[2]
            if _is_vector_for(shift, self.x) and _is_vector_for(scale, self.x):
                return self.modulated(shift, scale)
        return None


class Product(Pending):
    """A layer's result that a gate may follow. `gated`: (x, y, gate) -> x + y gate."""

    def __init__(self, y: Tensor, gated: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.y, self.gated = y, gated

    def _make(self) -> Tensor:
        return self.y

    def _takes(self, name, args, kwargs):
        if kwargs:
            return None
        if name == "addcmul" and len(args) == 3 and args[1] is self and _is_same(args[0], self.y) and _is_vector_for(args[2], self.y):
            return self.gated(args[0], self.y, args[2])
        if name in _MULTIPLICATIONS and len(args) == 2:
            gate = args[0] if args[1] is self else args[1]
            if isinstance(gate, (Tensor, int, float)):
                return Gated(self.y, gate, self.gated)
        return None


class Gated(Pending):
    """y gate, waiting for what it is added to."""

    def __init__(self, y: Tensor, gate: Tensor | float, gated: Callable[[Tensor, Tensor, Tensor], Tensor]):
        self.y, self.gate, self.gated = y, gate, gated

    def _make(self) -> Tensor:
        return self.y * self.gate

    def _takes(self, name, args, kwargs):
        if name in _ADDITIONS and len(args) == 2 and not kwargs:
            x = args[0] if args[1] is self else args[1]
            if _is_same(x, self.y) and _is_vector_for(self.gate, self.y):
                return self.gated(x, self.y, self.gate)
        return None


def _is_same(x, y: Tensor) -> bool:
    return isinstance(x, Tensor) and x.shape == y.shape and x.dtype == y.dtype


class Heads(Pending):
    """Normalised queries or keys, waiting for their rotation. `turned`: (x, table) -> both in one pass, of x [.., T, .., D]."""

    def __init__(self, x: Tensor, plain: Callable[[Tensor], Tensor], turned: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] | None = None):
        self.x, self.plain, self.turned, self.new_shape = x, plain, turned, shape

    def _make(self) -> Tensor:
        y = self.plain(self.x)
        return y if self.new_shape is None else y.view(self.new_shape)

    def view(self, *shape):
        if self._made is None and self.new_shape is None and all(isinstance(size, int) for size in shape):
            return Heads(self.x, self.plain, self.turned, shape)
        return self.settled.view(*shape)

    def to(self, *args, **kwargs):
        if self._made is None and not kwargs and len(args) == 1 and getattr(args[0], "dtype", args[0]) == self.x.dtype:
            return self
        return self.settled.to(*_settled(args), **kwargs)

    def turn(self, table: Tensor) -> Tensor:
        """Once: what it works on may be overwritten."""
        x = self.x if self.new_shape is None else self.x.view(self.new_shape)
        return self.turned(x, table)

    def _takes(self, name, args, kwargs):
        if name != "cat" or not args or not all(isinstance(part, Heads) and part._made is None for part in args[0]):
            return None
        axis = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        return Joined(list(args[0]), axis)


class Joined(Pending):
    """`Heads` one after the other along the tokens' axis."""

    def __init__(self, parts: list[Heads], axis: int):
        self.parts, self.axis = parts, axis

    def _make(self) -> Tensor:
        return torch.cat([part.settled for part in self.parts], self.axis)

    def turn(self, table: Tensor, tokens: int) -> Tensor:
        """`tokens`: the table's axis."""
        sizes = [part.x.shape[self.axis] for part in self.parts]
        return torch.cat([part.turn(own) for part, own in zip(self.parts, table.split(sizes, tokens))], self.axis)
