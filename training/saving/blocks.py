"""The model's blocks, each keeping for its backward what the level says.

Knows blocks only as modules whose forward is replaced; what a level means for an operation is `tape`'s.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, nullcontext
from typing import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import PistachioError
from ..model import TrainableModel
from ..patching import replaced_forward
from .ram import WORTH_COPYING_BYTES, Shelf, Store
from .tape import Tape, Thrift, recorded

KEEPS = ("blocks", "attention", "products", "everything")


def check_keep(keep: str) -> None:
    if keep not in KEEPS:
        raise PistachioError(f"A block can't keep '{keep}'. Choose one of {', '.join(KEEPS)}.")


def keep_for(model: TrainableModel, keep: str, *, in_ram: bool = False) -> tuple[str, str | None]:
    """What the model's blocks can keep of what was asked, and a sentence where that is something else."""
    check_keep(keep)
    if model.blocks() or (keep == "everything" and not in_ram):
        return keep, None
    return "everything", (
        f"{model.family} has no known blocks, so everything is kept on the device for the backward, and not "
        f"'{keep}'{' in RAM' if in_ram else ''} as planned."
    )


@contextmanager
def saved_blocks(
    model: TrainableModel, keep: str, *, in_ram: bool = False, thrift: Thrift = Thrift(), worth_copying_bytes: int = WORTH_COPYING_BYTES
) -> Iterator[None]:
    """The model's blocks keep as much as `keep` says, in RAM where `in_ram`."""
    check_keep(keep)
    with ExitStack() as stack:
        store = Store(model.device, worth_copying_bytes) if in_ram else None
        for _, block in model.blocks():
            if keep == "blocks":
                forward = _checkpointed(block.forward, store)
            else:
                forward = _taped(block.forward, keep, thrift, store)
            stack.enter_context(replaced_forward(block, forward))
        yield


def _checkpointed(forward: Callable, store: Store | None) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names = [name for name, value in kwargs.items() if torch.is_tensor(value)]
        others = {name: value for name, value in kwargs.items() if name not in names}

        def body(*tensors):
            # Blocks that add in place (Flux) would otherwise change the kept inputs before they are used again.
            tensors = [t.clone() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]
            return forward(*tensors[: len(args)], **dict(zip(names, tensors[len(args) :])), **others)

        with nullcontext() if store is None else _boxed(store.shelf(_trained(args, kwargs))):
            # No layer draws random numbers: dropout of a host's model is zero, and the adapters' is seeded by its pass.
            return checkpoint(body, *args, *[kwargs[name] for name in names], use_reentrant=False, preserve_rng_state=False)

    return run


def _boxed(shelf: Shelf):
    return torch.autograd.graph.saved_tensors_hooks(shelf.pack, shelf.unpack)


def _taped(forward: Callable, keep: str, thrift: Thrift, store: Store | None) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if keep == "everything" and store is None and _largest_bytes(args, kwargs) < thrift.block_input_bytes:
            return forward(*args, **kwargs)
        tape = Tape(keep, thrift)
        with recorded(tape):
            result = forward(*args, **kwargs)
        kept = tape.finish()
        if store is not None:
            shelf = store.shelf(_trained(args, kwargs))
            shelf.put(kept)
            tape.replay.before_first = shelf.before_first
        return result

    return run


def _tensors(args: tuple, kwargs: dict) -> Iterator[Tensor]:
    return (value for value in (*args, *kwargs.values()) if torch.is_tensor(value) and value.is_floating_point())


def _trained(args: tuple, kwargs: dict) -> list[Tensor]:
    """Inputs that a gradient passes: the blocks share the others."""
    return [tensor for tensor in _tensors(args, kwargs) if tensor.requires_grad]


def _largest_bytes(args: tuple, kwargs: dict) -> int:
    return max((tensor.numel() * tensor.element_size() for tensor in _tensors(args, kwargs)), default=0)
