"""Host code without a right backward, made differentiable while training and put back afterwards.

Two kinds: fused kernels that autograd can't pass (their library has plain-torch twins), and residuals that a block adds
to in place after a norm or a projection has kept them for the backward.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator

import comfy.ldm.common_dit
import comfy.ops
import comfy.quant_ops
import torch

from ..training.patching import replaced_forward

# Of comfy_kitchen: a custom operation each, without a backward. Most networks avoid them when `in_training` is set, not all.
FUSED_KERNELS = (
    "adaln", "rms_adaln", "apply_rope", "apply_rope1", "apply_rope_split_half", "apply_rope_split_half1",
    "rms_rope", "rms_rope1", "rms_rope_split_half", "rms_rope_split_half1",
)
# Class of the network -> children of its blocks whose input the block changes in place later.
LATE_IN_PLACE = {"LTXVModel": "attn2"}


@contextmanager
def differentiable(network: torch.nn.Module, blocks: list[tuple[str, torch.nn.Module]]) -> Iterator[None]:
    with ExitStack() as stack:
        for name, plain in _plain_kernels().items():
            stack.enter_context(attribute(comfy.quant_ops.ck, name, plain))
        child = LATE_IN_PLACE.get(type(network).__name__)
        if child:
            stack.enter_context(attribute(comfy.ldm.common_dit, "rms_norm", _on_a_copy(comfy.ldm.common_dit.rms_norm)))
            for _, block in blocks:
                module = getattr(block, child)
                stack.enter_context(replaced_forward(module, _on_a_copy(module.forward)))
        yield


@contextmanager
def replaced_forwards_run() -> Iterator[None]:
    """While the host generates with adapters on: its fused activation and int8 product would pass by a layer's replaced forward."""
    fused = getattr(comfy.ops, "linear_input_act", None)
    if fused is None:  # hosts before it was there
        yield
        return

    def run(linear, x, input_act):
        if "forward" in vars(linear):
            return linear(comfy.ops.INPUT_ACT_EAGER[input_act](x))
        return fused(linear, x, input_act)

    with attribute(comfy.ops, "linear_input_act", run):
        yield


def _plain_kernels() -> dict[str, Callable]:
    kernels = getattr(comfy.quant_ops, "ck", None)  # hosts before 0.4 have none
    if kernels is None:
        return {}
    try:
        from comfy_kitchen.backends import eager
    except ImportError:
        return {}
    return {name: getattr(eager, name) for name in FUSED_KERNELS if hasattr(eager, name) and hasattr(kernels, name)}


def _on_a_copy(function: Callable) -> Callable:
    def run(x, *args, **kwargs):
        return function(x.clone() if x.requires_grad else x, *args, **kwargs)

    return run


@contextmanager
def attribute(owner, name: str, value) -> Iterator[None]:
    """Set an attribute on the instance; afterwards the instance looks exactly as before."""
    own = vars(owner)
    had, before = name in own, own.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
