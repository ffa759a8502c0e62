"""A LoRA over a frozen weight in 8 bits (or as it is, or nf4): products in 8 bits in both directions.

y = x W^T + bias + scale (x A^T) B^T. The input's rows become codes once for the product, and x is read once more for all
adapters that share it. In the backward the weight's scales are folded into dy before its rows become codes, so that the
product along the outputs has scales by row alone; the codes of W are turned on their side into a scratch buffer.

Shape suffixes: N tokens, I in, O out, R rank.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from ..frozen import _not_a_view
from ..quantization.formats import PackedWeight, dequantize

ops = torch.ops.pistachio


class Adapter(NamedTuple):
    """Low-rank factors a [R, I] and b [o, R] for the outputs from `start`: q, k and v stacked in one weight have three."""

    a: Tensor
    b: Tensor
    start: int = 0


def product(x_NI: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + bias in the weight's own precision."""
    kind = x_NI.dtype
    if isinstance(weight, Tensor) or weight.format == "nf4":
        w = weight.to(kind) if isinstance(weight, Tensor) else dequantize(weight, kind)
        return x_NI.mm(w.t()) if bias is None else torch.addmm(bias.to(kind), x_NI, w.t())
    fp8 = weight.format == "fp8-row"
    codes, scales = ops.quantise_rows(x_NI, None, fp8, 0 if fp8 else weight.group)
    if fp8:
        y = ops.product_fp8(codes, weight.codes, scales, weight.scale, kind)
        return y if bias is None else y.add_(bias.to(kind))
    sums = ops.product_int8(codes, weight.codes)
    return ops.rescale_rows(sums, scales, weight.scale, bias, 0, kind)


def product_backward(dy_NO: Tensor, weight: PackedWeight | Tensor) -> Tensor:
    """dy W"""
    kind = dy_NO.dtype
    if isinstance(weight, Tensor) or weight.format == "nf4":
        return dy_NO.mm(weight.to(kind) if isinstance(weight, Tensor) else dequantize(weight, kind))
    fp8 = weight.format == "fp8-row"
    codes, scales = ops.quantise_rows(dy_NO, weight.scale, fp8, 0)
    codes_IO = ops.transpose_bytes(weight.codes)
    if fp8:
        return ops.product_fp8(codes, codes_IO, scales, torch.ones_like(weight.scale[:1]).expand(len(codes_IO)).contiguous(), kind)
    return ops.rescale_rows(ops.product_int8(codes, codes_IO), scales, None, None, weight.group, kind)


class PackedLora(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, scale, starts, *factors):
        """`factors`: a and b of each adapter, in turn; `starts`: their first outputs."""
        x_NI = x.reshape(-1, x.shape[-1])
        y = product(x_NI, weight, bias)
        a = torch.cat([f.to(x.dtype) for f in factors[::2]]) if len(factors) > 2 else factors[0].to(x.dtype)
        h_NR = x_NI.mm(a.t())
        at = 0
        for start, b in zip(starts, factors[1::2]):
            rank = b.shape[1]
            y[:, start : start + len(b)].addmm_(h_NR[:, at : at + rank], b.to(x.dtype).t(), alpha=scale)
            at += rank
        ctx.save_for_backward(x_NI, h_NR, *factors)
        ctx.weight, ctx.scale, ctx.starts, ctx.x_shape = weight, scale, starts, x.shape
        return _not_a_view(y.view(*x.shape[:-1], y.shape[-1]))

    @staticmethod
    def backward(ctx, dy):
        x_NI, h_NR, *factors = ctx.saved_tensors
        kind, scale = dy.dtype, ctx.scale
        dy_NO = dy.reshape(-1, dy.shape[-1])
        parts, db, at = [], [], 0
        for start, b in zip(ctx.starts, factors[1::2]):
            own = dy_NO[:, start : start + len(b)]
            parts.append(own.mm(b.to(kind)))
            db.append((own.t().mm(h_NR[:, at : at + b.shape[1]]) * scale).to(b.dtype))
            at += b.shape[1]
        dh_NR = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        da = (dh_NR.t().mm(x_NI) * scale).split([len(a) for a in factors[::2]])
        dx = None
        if ctx.needs_input_grad[0]:
            a = torch.cat([f.to(kind) for f in factors[::2]])
            dx = product_backward(dy_NO, ctx.weight).addmm_(dh_NR, a, alpha=scale).view(ctx.x_shape)
        gradients = [gradient for pair in zip(da, db) for gradient in pair]
        return dx, None, None, None, None, *(g.to(f.dtype) for g, f in zip(gradients, factors))


def lora_linear(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, adapters: Sequence[Adapter], scale: float) -> Tensor:
    """x [..., I] -> [..., O]; gradients for x and the adapters, none for the frozen weight and bias."""
    factors = [factor for adapter in adapters for factor in (adapter.a, adapter.b)]
    return PackedLora.apply(x, weight, bias, scale, tuple(adapter.start for adapter in adapters), *factors)
