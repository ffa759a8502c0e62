"""What each block keeps for its backward; the rest is computed again there."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator

import torch
from torch.utils.checkpoint import checkpoint

from .errors import PistachioError
from .model import TrainableModel
from .patching import replaced_forward


# What a block keeps: its inputs; and attention's outputs; and the outputs of the dear products; all of it.
KEEPS = ("blocks", "attention", "products", "everything")


def check_keep(keep: str) -> None:
    if keep not in KEEPS:
        raise PistachioError(f"A block can't keep '{keep}'. Choose one of {', '.join(KEEPS)}.")


@contextmanager
def saved_blocks(model: TrainableModel, keep: str) -> Iterator[None]:
    """The model's blocks keep as much as `keep` says."""
    check_keep(keep)
    with ExitStack() as stack:
        if keep == "everything":
            yield
            return
        for _, block in model.blocks():
            stack.enter_context(replaced_forward(block, _checkpointed(block.forward)))
        yield


def _checkpointed(forward: Callable) -> Callable:
    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        names = [name for name, value in kwargs.items() if torch.is_tensor(value)]
        others = {name: value for name, value in kwargs.items() if name not in names}

        def body(*tensors):
            # Blocks that add in place (Flux) would otherwise change the kept inputs before they are used again.
            tensors = [t.clone() if torch.is_tensor(t) and t.is_floating_point() else t for t in tensors]
            return forward(*tensors[: len(args)], **dict(zip(names, tensors[len(args) :])), **others)

        # No layer draws random numbers: dropout of a host's model is zero, and the adapters have none here.
        return checkpoint(body, *args, *[kwargs[name] for name in names], use_reentrant=False, preserve_rng_state=False)

    return run
