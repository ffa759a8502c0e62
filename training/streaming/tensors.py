"""The tensors inside a value, whatever carries them: subclasses that hold several, quantisation states, dicts and lists.

A leaf is a plain tensor. Knows no module and no host.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Callable

import torch
from torch import Tensor

PLAIN = (Tensor, torch.nn.Parameter)


def replaced(value: Any, leaf: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
    """`value` with `leaf(tensor)` for each plain tensor in it; the same object where that changes nothing.

    `known`: what was made of a value that stands in several places (a module and its weight share a state); it must
    outlive no value that it was filled from.
    """
    if id(value) in known:
        return known[id(value)]
    made = _replaced(value, leaf, known)
    if made is not value or isinstance(value, Tensor):
        known[id(value)] = made
    return made


def leaves(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    replaced(value, note, {})
    return found


def _replaced(value: Any, leaf: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        if type(value) in PLAIN:
            return leaf(value)
        return _of_parts(value, leaf, known) if hasattr(value, "__tensor_flatten__") else _of_subclass(value, leaf, known)
    if isinstance(value, dict):
        return _same_or(value, {key: replaced(item, leaf, known) for key, item in value.items()})
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        items = [replaced(item, leaf, known) for item in value]
        return value if all(a is b for a, b in zip(items, value)) else type(value)(items)
    if _is_bundle(value):
        names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else list(vars(value))
        before = {name: getattr(value, name) for name in names}
        after = {name: replaced(item, leaf, known) for name, item in before.items()}
        if _same_or(before, after) is before:
            return value
        made = copy.copy(value)
        for name, item in after.items():
            object.__setattr__(made, name, item)  # frozen dataclasses too
        return made
    return value


def _same_or(before: dict, after: dict) -> dict:
    return before if all(after[key] is item for key, item in before.items()) else after


def _is_bundle(value: Any) -> bool:
    """A plain record of tensors: a dataclass, or a state that can be moved (bitsandbytes' QuantState)."""
    if isinstance(value, (type, torch.nn.Module)):
        return False
    return dataclasses.is_dataclass(value) or (hasattr(value, "__dict__") and callable(getattr(value, "to", None)))


def _of_parts(value: Tensor, leaf: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Tensor:
    names, context = value.__tensor_flatten__()
    before = {name: getattr(value, name) for name in names}
    after = {name: replaced(part, leaf, known) for name, part in before.items()}
    if _same_or(before, after) is before:
        return value
    return type(value).__tensor_unflatten__(after, context, value.shape, value.stride())


def _of_subclass(value: Tensor, leaf: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Tensor:
    """A tensor with attributes (GGUF's, bitsandbytes' 4-bit weight): its own memory, and what the attributes hold."""
    with torch._C.DisableTorchFunctionSubclass():
        plain = value.as_subclass(Tensor).detach()
        moved = leaf(plain)
        before = dict(vars(value))
        after = {name: replaced(item, leaf, known) for name, item in before.items()}
        if moved is plain and _same_or(before, after) is before:
            return value
        made = moved.as_subclass(type(value))
        vars(made).update(after)
        return made
