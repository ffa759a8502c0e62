"""Streaming around a model: the only place that knows a `TrainableModel` and the ring."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..model import TrainableModel
from ..patching import replaced_attribute, replaced_forward
from .blocks import DEFAULT_SLOTS, streamed_indices
from .device import StreamDevice, stream_device
from .rest import Rest
from .ring import Ring

log = logging.getLogger("pistachio")

WEIGHT_READERS = ("weight_for_backward", "packed_weight", "packed_bias")  # of a model: (module, like) -> its weight


@contextmanager
def streamed(
    model: TrainableModel, count: int, *, slots: int = DEFAULT_SLOTS, device: StreamDevice | None = None
) -> Iterator[Ring | None]:
    """Inside `model.training()` and around everything that reads weights: `count` blocks pass through `slots` places on the device.

    All else of the network stays on the device meanwhile. None is given for a count of 0, and nothing is changed.
    """
    blocks = [block for _, block in model.blocks()]
    if not count:
        yield None
        return
    chosen = [blocks[index] for index in streamed_indices(len(blocks), count)]
    device = device or stream_device(model.device)
    with ExitStack() as stack:
        stack.callback(device.close)
        stack.enter_context(model.weights_on_host())
        ring = Ring(chosen, device, slots=slots)
        stack.callback(ring.close)
        rest = Rest(model.network, frozenset(chosen), device)
        stack.enter_context(rest.placed())
        index_of = {module: index for index, block in enumerate(chosen) for module in block.modules()}
        for index, block in enumerate(chosen):
            stack.enter_context(replaced_forward(block, _arriving(block.forward, ring, index)))
        for name in WEIGHT_READERS:
            if hasattr(model, name):
                stack.enter_context(replaced_attribute(model, name, _fetching(getattr(model, name), ring, index_of)))
        if hasattr(model, "generating"):
            stack.enter_context(replaced_attribute(model, "generating", _lending(model.generating, ring, rest)))
        log.info(
            "%d of %d blocks are streamed through %d slots of %.1f MB%s.", count, len(blocks), len(ring.slots), ring.slots[0].memory.numel() / 1e6,
            " (no accelerator: simulated, which saves no memory)" if device.is_simulated else "",
        )
        yield ring


def _arriving(forward: Callable, ring: Ring, index: int) -> Callable:
    """The block with its weights there, in the backward too: its gradients reach its outputs first."""

    def arrive(gradient: Tensor) -> None:
        ring.use(index)

    def run(*args, **kwargs):
        ring.use(index)
        out = forward(*args, **kwargs)
        if torch.is_grad_enabled():
            given = {id(value) for value in (*args, *kwargs.values())}  # what only passes through belongs to the block before
            for value in tree_leaves(out):
                if torch.is_tensor(value) and value.requires_grad and id(value) not in given:
                    value.register_hook(arrive)
        return out

    return run


def _fetching(read: Callable, ring: Ring, index_of: dict[torch.nn.Module, int]) -> Callable:
    def fetch(module: torch.nn.Module, like: Tensor):
        index = index_of.get(module)
        if index is not None:
            ring.use(index)
        return read(module, like)

    return fetch


def _lending(generating: Callable, ring: Ring, rest: Rest) -> Callable:
    @contextmanager
    def lent() -> Iterator[None]:
        with ring.suspended(), rest.suspended(), generating():
            yield

    return lent
