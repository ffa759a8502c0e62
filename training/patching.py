"""The only way the engine changes a module it does not own: a shadowed `forward`, taken away again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

import torch


@contextmanager
def replaced_forward(module: torch.nn.Module, forward) -> Iterator[None]:
    """Shadow `module.forward` on the instance and take exactly that away again."""
    had = "forward" in vars(module)
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward
