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
from .codes import codes_of

ops = torch.ops.pistachio


class Adapter(NamedTuple):
    """Low-rank factors a [R, I] and b [o, R] for the outputs from `start`: q, k and v stacked in one weight have three."""

    a: Tensor
    b: Tensor
    start: int = 0


class LowRank(NamedTuple):
    """alpha t u^T beside a product: t [N, R], u [O, R]."""

    t: Tensor
    u: Tensor
    alpha: float


def product(x_NI: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, low_rank: LowRank | None = None) -> Tensor:
    """x W^T + bias + alpha t u^T, the first in the weight's own precision. Fresh memory."""
    kind = x_NI.dtype
    if isinstance(weight, Tensor) or weight.format == "nf4":
        w = weight.to(kind) if isinstance(weight, Tensor) else dequantize(weight, kind)
        y = x_NI.mm(w.t()) if bias is None else torch.addmm(bias.to(kind), x_NI, w.t())
        return _with(y, low_rank)
    fp8 = weight.format == "fp8-row"
    codes, scales = codes_of(x_NI, fp8, 0 if fp8 else weight.group)
    return _operation(weight)(codes, weight.codes, scales, weight.scale, bias, *_parts(low_rank), 0, kind)


def product_backward(dy_NO: Tensor, weight: PackedWeight | Tensor, low_rank: LowRank | None = None) -> Tensor:
    """dy W + alpha t u^T. Fresh memory."""
    kind = dy_NO.dtype
    if isinstance(weight, Tensor) or weight.format == "nf4":
        return _with(dy_NO.mm(weight.to(kind) if isinstance(weight, Tensor) else dequantize(weight, kind)), low_rank)
    fp8 = weight.format == "fp8-row"
    codes, scales = ops.quantise_rows(dy_NO, weight.scale, fp8, 0)
    codes_IO = ops.transpose_bytes(weight.codes)
    return _operation(weight)(codes, codes_IO, scales, None, None, *_parts(low_rank), 0 if fp8 else weight.group, kind)


def _operation(weight: PackedWeight):
    return ops.product_lora_fp8 if weight.format == "fp8-row" else ops.product_lora_int8


def _parts(low_rank: LowRank | None) -> tuple:
    return (None, None, 1.0) if low_rank is None else low_rank


def _with(y: Tensor, low_rank: LowRank | None) -> Tensor:
    return y if low_rank is None else y.addmm_(low_rank.t, low_rank.u.t(), alpha=low_rank.alpha)


def _stacked(factors: Sequence[Tensor], starts: Sequence[int], outputs: int) -> Tensor:
    """B of several adapters side by side [O, ranks], each in the rows of its outputs."""
    if len(factors) == 1 and len(factors[0]) == outputs:
        return factors[0]
    whole = factors[0].new_zeros(outputs, sum(b.shape[1] for b in factors))
    at = 0
    for start, b in zip(starts, factors):
        whole[start : start + len(b), at : at + b.shape[1]] = b
        at += b.shape[1]
    return whole


class PackedLora(Function):
    @staticmethod
    def forward(ctx, x, weight, bias, scale, starts, *factors):
        """`factors`: a and b of each adapter, in turn; `starts`: their first outputs."""
        x_NI = x.reshape(-1, x.shape[-1])
        a = torch.cat([f.to(x.dtype) for f in factors[::2]]) if len(factors) > 2 else factors[0].to(x.dtype)
        h_NR = x_NI.mm(a.t())
        outputs = weight.shape[0]
        y = product(x_NI, weight, bias, LowRank(h_NR, _stacked(factors[1::2], starts, outputs).to(x.dtype), scale))
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
            dx = product_backward(dy_NO, ctx.weight, LowRank(dh_NR, a.t(), scale)).view(ctx.x_shape)
        gradients = [gradient for pair in zip(da, db) for gradient in pair]
        return dx, None, None, None, None, *(g.to(f.dtype) for g, f in zip(gradients, factors))


def lora_linear(x: Tensor, weight: PackedWeight | Tensor, bias: Tensor | None, adapters: Sequence[Adapter], scale: float) -> Tensor:
    """x [..., I] -> [..., O]; gradients for x and the adapters, none for the frozen weight and bias."""
    factors = [factor for adapter in adapters for factor in (adapter.a, adapter.b)]
    return PackedLora.apply(x, weight, bias, scale, tuple(adapter.start for adapter in adapters), *factors)
