"""The operations as torch operators, `torch.ops.pistachio.*`: seen by selective checkpointing, fake tensors and the compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from .door import door_of
from .table import OPERATIONS

NAMESPACE = "pistachio"
_kept: list[torch.library.Library] = []  # operators live as long as their library object


def define_operators() -> None:
    if _kept:
        return
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    _kept.append(library)
    for name, operation in OPERATIONS.items():
        library.define(f"{name}{operation.schema}")
        for key in ("CPU", "CUDA"):
            library.impl(name, _through_the_door(name, operation.schema), key)
        library.impl(name, operation.meta, "Meta")


def _through_the_door(name: str, schema: str):
    written = [place for place, word in enumerate(schema.split(" -> ")[0].split(",")) if "!)" in word]

    def call(*arguments):
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        results = door_of(device).call(name, *arguments)
        if written:  # a kernel writes behind torch's back: what autograd has saved of these would pass for unchanged
            torch.autograd.graph.increment_version([arguments[place] for place in written])
        return results

    return call
