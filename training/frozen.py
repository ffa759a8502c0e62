"""Frozen layers inside a training graph.

The base's weights may be inference tensors, casts of another dtype, or views of a staging
buffer, so autograd must never keep them. These functions run the layer as the host does and
fetch the weight again in the backward. They know the layer only through `TrainableModel`.

Shape suffixes: N tokens (all leading axes flattened), I in, O out, R rank.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from .model import TrainableModel


def _not_a_view(y: Tensor) -> Tensor:
    """The same memory under a tensor that autograd doesn't call a view: some networks (Flux) add in place to it."""
    return torch.ops.aten._unsafe_view(y, y.shape)


class FrozenLinear(Function):
    """y = base(x); dx = dy W."""

    @staticmethod
    def forward(ctx, x: Tensor, base: Callable, module: torch.nn.Module, model: TrainableModel) -> Tensor:
        ctx.module, ctx.model = module, model
        return _not_a_view(base(x))

    @staticmethod
    def backward(ctx, dy: Tensor):
        with ctx.model.weight_for_backward(ctx.module, dy) as weight_OI:
            return dy @ weight_OI, None, None, None


class LoraLinear(Function):
    """y = base(x) + scale x A^T B^T, with x read once for both and no dW anywhere.

    dA = scale (dy B)^T x, dB = scale dy^T (x A^T), dx = dy W + scale (dy B) A.
    """

    @staticmethod
    def forward(ctx, x: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float, base: Callable, module, model) -> Tensor:
        y = base(x)
        a, b = a_RI.to(y.dtype), b_OR.to(y.dtype)
        x_NI = x.reshape(-1, x.shape[-1]).to(y.dtype)
        h_NR = x_NI @ a.t()
        # The base's output is fresh, so the update may land in it.
        y = y.contiguous()
        y.view(-1, y.shape[-1]).addmm_(h_NR, b.t(), alpha=scale)
        ctx.save_for_backward(x_NI, h_NR, a_RI, b_OR)
        ctx.scale, ctx.module, ctx.model, ctx.x_shape, ctx.x_dtype = scale, module, model, x.shape, x.dtype
        return _not_a_view(y)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x_NI, h_NR, a_RI, b_OR = ctx.saved_tensors
        dy_NO = dy.reshape(-1, dy.shape[-1])
        dh_NR = (dy_NO @ b_OR.to(dy.dtype)).mul_(ctx.scale)
        da = (dh_NR.t() @ x_NI).to(a_RI.dtype)
        db = (dy_NO.t() @ h_NR).mul_(ctx.scale).to(b_OR.dtype)
        dx = None
        if ctx.needs_input_grad[0]:
            with ctx.model.weight_for_backward(ctx.module, dy) as weight_OI:
                dx_NI = dy_NO @ weight_OI
            dx = dx_NI.addmm_(dh_NR, a_RI.to(dy.dtype)).view(ctx.x_shape).to(ctx.x_dtype)
        return dx, da, db, None, None, None, None


class FrozenConv(Function):
    """y = base(x); dx by the convolution's own backward, with the weight fetched again."""

    @staticmethod
    def forward(ctx, x: Tensor, base: Callable, module: torch.nn.Module, model: TrainableModel) -> Tensor:
        ctx.module, ctx.model, ctx.x_shape = module, model, x.shape
        return base(x)

    @staticmethod
    def backward(ctx, dy: Tensor):
        conv = ctx.module
        # The values of x don't enter dx: an expanded scalar carries its shape at no cost.
        x = dy.new_empty(1).expand(ctx.x_shape)
        with ctx.model.weight_for_backward(conv, dy) as weight:
            dx, _, _ = torch.ops.aten.convolution_backward(
                dy, x, weight, None, conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups,
                (True, False, False),
            )
        return dx, None, None, None
