"""The model's blocks through `torch.compile`, each by itself: what stands between its linear layers becomes few kernels.

Layers with a frozen or adapted weight stay outside the compiled code: they have functions of their own. A block that can't be
compiled runs as it is, and so do all others; that is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Iterator

import torch

from .model import TrainableModel
from .patching import replaced_forward

log = logging.getLogger("pistachio")

# Each block is code of its own for each bucket; PyTorch's limit of eight would stop that, silently.
CODES_OF_A_FUNCTION = 4096


class CompiledBlocks:
    """`tell` is given the sentence for the run's report, should there be one."""

    def __init__(self, model: TrainableModel, *, backend: str = "inductor", tell: Callable[[str], None] = log.warning):
        self.model, self.backend, self.tell = model, backend, tell
        self.is_on = True

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Inside `model.training()`, around the blocks as their layers are in training, and inside what saves blocks."""
        import torch._dynamo

        config = torch._dynamo.config
        wanted = {"recompile_limit": CODES_OF_A_FUNCTION, "accumulated_recompile_limit": CODES_OF_A_FUNCTION, "fail_on_recompile_limit_hit": True}
        with ExitStack() as stack:
            stack.enter_context(config.patch({name: value for name, value in wanted.items() if hasattr(config, name)}))
            for _, block in self.model.blocks():
                stack.enter_context(replaced_forward(block, self._compiled(block.forward)))
            yield

    def _compiled(self, forward: Callable) -> Callable:
        # One code a shape: buckets are few, and shapes that are known make the better kernels.
        compiled = torch.compile(forward, backend=self.backend, dynamic=False)

        def run(*args, **kwargs):
            # A measurement is not worth a second compilation, without gradients.
            return (compiled if self.is_on and torch.is_grad_enabled() else forward)(*args, **kwargs)

        return run

    @staticmethod
    def outside(layer_forward: Callable) -> Callable:
        """A layer that compiled code calls as it is."""
        return torch.compiler.disable(layer_forward)

    def give_up(self, error: BaseException) -> None:
        self.is_on = False
        error = getattr(error, "inner_exception", error)  # the backend's own
        words = str(error).strip().splitlines()
        self.tell(
            f"The blocks can't be compiled ({type(error).__name__}: {words[0] if words else 'no reason given'}), so they run as they are, which is "
            "slower and equally right. Set compile to 'off' in Memory Settings to save the attempt."
        )


def is_from_compiling(error: BaseException) -> bool:
    """Whether the compiler failed, and not what it compiled."""
    from torch._dynamo.exc import TorchDynamoException

    return isinstance(error, TorchDynamoException)


def why_not_compiled(*, keep: str, is_streaming: bool) -> str | None:
    if is_streaming:
        return "streamed blocks have their weights in other places from pass to pass"
    if keep in ("attention", "products"):
        return f"'{keep}' records each operation of a block, which compiled code hides"
    return None
