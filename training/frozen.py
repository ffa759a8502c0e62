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

from .kernels.door import eight_bit_products, whole_products
from .model import TrainableModel
from .saving.tape import recording


_unsafe_view = torch.ops.aten._unsafe_view.default


def _not_a_view(y: Tensor) -> Tensor:
    """The same memory under a tensor that autograd doesn't call a view: some networks (Flux) add in place to it."""
    return _unsafe_view(y, y.shape) if y._is_view() else y


def eight_bit_gradient(dy: Tensor, module: torch.nn.Module, model: TrainableModel, low_rank: tuple[Tensor, Tensor, float] | None = None) -> Tensor | None:
    """dy W [N, I] by a product in 8 bits, in a tensor of its own; None unless the run asks for those and W is stored so.

    `low_rank`: (t [N, R], u [I, R], alpha), of which alpha t u^T is added.
    """
    if not eight_bit_products(dy.device):
        return None
    packed = model.packed_weight(module, dy)
    if packed is None or not eight_bit_products(dy.device, packed.format):
        return None
    from .kernels.linear import LowRank, product_backward  # which imports this module

    return product_backward(dy.reshape(-1, dy.shape[-1]), packed, None if low_rank is None else LowRank(*low_rank))


def eight_bit_lora(x_NI: Tensor, site: LoraSite) -> tuple[Tensor, Tensor] | None:
    """(base(x) + scale h B^T, h = x A^T) by the kernel that does all of it; None unless the run asks for that and W is stored so."""
    model, module = site.model, site.module
    packed = model.packed_weight(module, x_NI)
    if packed is None or not whole_products(x_NI.device, packed.format):
        return None
    from .kernels.linear import LowRank, product
    from .kernels.neighbours import low_rank_input

    def run(x_NI: Tensor, h_NR: Tensor) -> Tensor:
        # The weight is fetched each time: by the time of another run it may have been moved.
        low_rank = LowRank(h_NR, site.b_OR.to(h_NR.dtype), site.scale)
        return product(x_NI, model.packed_weight(module, x_NI), model.packed_bias(module, x_NI), low_rank)

    h_NR = low_rank_input(x_NI, site)
    tape = recording()
    return (run(x_NI, h_NR) if tape is None else tape.product(run, x_NI, h_NR)), h_NR


class FrozenLinear(Function):
    """y = base(x); dx = dy W."""

    @staticmethod
    def forward(ctx, x: Tensor, base: Callable, module: torch.nn.Module, model: TrainableModel) -> Tensor:
        ctx.module, ctx.model = module, model
        return _not_a_view(base(x))

    @staticmethod
    def backward(ctx, dy: Tensor):
        dx_NI = eight_bit_gradient(dy, ctx.module, ctx.model)
        if dx_NI is not None:
            return dx_NI.view(*dy.shape[:-1], dx_NI.shape[-1]), None, None, None
        with ctx.model.weight_for_backward(ctx.module, dy) as weight_OI:
            return dy @ weight_OI, None, None, None


class LoraSite:
    """What one adapted linear layer needs in each call. The tensors are detached views of the flat buffers.

    They are made once: in a small layer a transposition costs as much as the product it is for.
    """

    __slots__ = ("base", "module", "model", "scale", "a_RI", "b_OR", "a_IR", "b_RO", "da_RI", "db_RO", "neighbours", "__weakref__")

    def __init__(self, base: Callable, module: torch.nn.Module, model: TrainableModel, a_RI: Tensor, b_OR: Tensor, scale: float):
        self.base, self.module, self.model, self.scale = base, module, model, scale
        self.a_RI, self.b_OR = a_RI.detach(), b_OR.detach()
        self.a_IR, self.b_RO = self.a_RI.t(), self.b_OR.t()
        self.da_RI, self.db_RO = a_RI.grad, b_OR.grad.t()
        self.neighbours: tuple = ()  # sites that read the same x, by kernels/neighbours.py


class LoraLinear(Function):
    """y = base(x) + scale x A^T B^T, with x read once for both and no dW anywhere.

    dA = scale (dy B)^T x, dB = scale dy^T (x A^T), dx = dy W + scale (dy B) A.
    dA and dB are added straight to the site's gradient buffers. Autograd is given none: that spares
    two graph nodes, two allocations and two additions a layer. `a_RI` is an argument only because
    its `requires_grad` makes y part of the graph.
    """

    @staticmethod
    def forward(ctx, x: Tensor, a_RI: Tensor, site: LoraSite) -> Tensor:
        x_NI, a_IR, b_RO = x.reshape(-1, x.shape[-1]), site.a_IR, site.b_RO
        fused = eight_bit_lora(x_NI, site) if eight_bit_products(x.device) else None
        if fused is not None:
            y_NO, h_NR = fused
            ctx.save_for_backward(x_NI, h_NR)
            ctx.site, ctx.x_shape, ctx.x_dtype = site, x.shape, x.dtype
            return _not_a_view(y_NO.view(*x.shape[:-1], y_NO.shape[-1]))
        y = site.base(x).contiguous()
        dtype = y.dtype
        if dtype is not a_IR.dtype:
            a_IR, b_RO = a_IR.to(dtype), b_RO.to(dtype)
        if dtype is not x.dtype:
            x_NI = x_NI.to(dtype)
        h_NR = x_NI.mm(a_IR)
        # The base's output is fresh, so the update may land in it.
        y.view(-1, y.shape[-1]).addmm_(h_NR, b_RO, alpha=site.scale)
        ctx.save_for_backward(x_NI, h_NR)
        ctx.site, ctx.x_shape, ctx.x_dtype = site, x.shape, x.dtype
        return _not_a_view(y)

    @staticmethod
    def backward(ctx, dy: Tensor):
        x_NI, h_NR = ctx.saved_tensors
        site, scale, dtype = ctx.site, ctx.site.scale, dy.dtype
        dy_NO = dy.reshape(-1, dy.shape[-1])
        a, b, same = site.a_RI, site.b_OR, dtype is site.a_RI.dtype
        if not same:
            a, b = a.to(dtype), b.to(dtype)
        dh_NR = dy_NO.mm(b)
        if same:
            site.da_RI.addmm_(dh_NR.t(), x_NI, alpha=scale)
            site.db_RO.addmm_(h_NR.t(), dy_NO, alpha=scale)
        else:
            site.da_RI.add_(dh_NR.t().mm(x_NI), alpha=scale)
            site.db_RO.add_(h_NR.t().mm(dy_NO), alpha=scale)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        dx_NI = eight_bit_gradient(dy_NO, site.module, site.model, (dh_NR, a.t(), scale))
        if dx_NI is None:
            with site.model.weight_for_backward(site.module, dy) as weight_OI:
                dx_NI = dy_NO.mm(weight_OI)
            dx_NI.addmm_(dh_NR, a, alpha=scale)
        dx = dx_NI.view(ctx.x_shape)
        return dx if dtype is ctx.x_dtype else dx.to(ctx.x_dtype), None, None


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
