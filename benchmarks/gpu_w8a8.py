"""A peer: linear layers in 8 bits forward and in dX, as a published trainer does it, in plain torch for its compiler.

Weights have one scale for the whole matrix, activations and gradients one a row; sums come as 32-bit numbers and are scaled
in a second pass, which the compiler writes. Nothing here is Pistachio's. Layers that a product of the library can't take
stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

LEAST_ROWS = 17  # of the library's int8 product
E4M3 = torch.float8_e4m3fn
LARGEST = {torch.int8: 127.0, E4M3: 448.0}


def _codes(x: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    values = x.float()
    scale = (values.abs().amax(-1, keepdim=True) / LARGEST[kind]).clamp(min=1e-30)
    units = values / scale
    return (units.round().to(kind) if kind is torch.int8 else units.to(kind)), scale


def _product(x: Tensor, w_KN: Tensor, w_scale: Tensor) -> Tensor:
    """x [M, K] times codes whose K lies along memory."""
    if x.shape[0] < LEAST_ROWS or (w_KN.dtype is E4M3 and x.device.type != "cuda"):  # the CPU's fp8 product takes no scales by row
        return x @ (w_KN.to(x.dtype) * w_scale.to(x.dtype))
    codes, scale = _codes(x, w_KN.dtype)
    if w_KN.dtype is torch.int8:
        return (torch._int_mm(codes, w_KN).float() * (scale * w_scale)).to(x.dtype)
    return torch._scaled_mm(codes, w_KN, scale_a=scale, scale_b=w_scale.expand(1, w_KN.shape[1]).contiguous(), out_dtype=x.dtype)


class _Frozen(Function):
    @staticmethod
    def forward(ctx, x, w_NK, w_scale):
        ctx.save_for_backward(w_NK, w_scale)
        return _product(x, w_NK.t(), w_scale)

    @staticmethod
    def backward(ctx, dy):
        w_NK, w_scale = ctx.saved_tensors
        return _product(dy.contiguous(), w_NK.t().contiguous().t(), w_scale), None, None


class W8A8Linear(torch.nn.Linear):
    """A Linear to PEFT, with codes for a weight."""

    def __init__(self, layer: torch.nn.Module, kind: torch.dtype):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = layer.weight.detach().float()
        scale = (weight.abs().amax() / LARGEST[kind]).clamp(min=1e-30).view(1, 1)
        units = weight / scale
        self.weight = torch.nn.Parameter(units.round().to(kind) if kind is torch.int8 else units.to(kind), requires_grad=False)
        self.register_buffer("weight_scale", scale)
        self.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _Frozen.apply(x.reshape(-1, x.shape[-1]), self.weight, self.weight_scale).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def replace_linears(network: torch.nn.Module, blocks: list[tuple[str, torch.nn.Module]], kind: torch.dtype) -> int:
    """Puts codes into the blocks' linear layers; how many."""
    inside = tuple(f"{path}." for path, _ in blocks)
    chosen = [
        (path, module) for path, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and path.startswith(inside) and module.in_features % 16 == 0 and module.out_features % 16 == 0
    ]
    for path, module in chosen:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, W8A8Linear(module, kind))
    return len(chosen)
