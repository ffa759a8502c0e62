"""Norm and modulation of a row in one pass, the backward, and the gradients of the modulation.

y = (n w + b) (plus + scale) + shift, n = (x - mean) rstd (LayerNorm) or x rstd (RMSNorm); x is [B, T, C], shift and scale
[B, C], [B, 1, C] or [B, T, C]; w and b are frozen;
`plus` is 1, or 0 where the caller has added it to the scale. Shared by the gate: the sums over a batch's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .glue import Unfit, alike, by_columns, ceil_div, column_blocks, dtype_code, is_aligned, over_rows, real, row_block, steps, three, whole, wide
from . import rows
from .codes import remember
from .programs import program

SPAN = 64  # tokens that a block of column_sums adds up


def reference(x, weight=None, bias=None, shift=None, scale=None, *, eps: float, centred: bool, plus: float = 1.0) -> Tensor:
    """Plain torch, as networks write it; differentiable by autograd in every argument."""
    kind = wide(x.dtype)
    values = x.to(kind)
    if centred:
        values = values - values.mean(-1, keepdim=True)
    values = values * torch.rsqrt(values.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        values = values * weight
    if bias is not None:
        values = values + bias
    if scale is not None:
        values = values * (plus + _over(scale, x))
    if shift is not None:
        values = values + _over(shift, x)
    return values.to(x.dtype)


def _over(vector: Tensor, x: Tensor) -> Tensor:
    return vector.unsqueeze(1) if vector.ndim == 2 and x.ndim == 3 else vector


# ---- forward -------------------------------------------------------------


def forward_torch(x, weight, bias, shift, scale, eps, centred, plus=1.0):
    kind = wide(x.dtype)
    values = x.to(kind)
    mean = values.mean(-1) if centred else values.new_zeros(x.shape[:-1])
    rstd = torch.rsqrt((values - mean.unsqueeze(-1)).square().mean(-1) + eps)
    return reference(x, weight, bias, shift, scale, eps=eps, centred=centred, plus=plus), mean, rstd


def forward_meta(x, weight, bias, shift, scale, eps, centred, plus=1.0):
    statistics = x.new_empty(x.shape[:-1], dtype=wide(x.dtype))
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


def forward_cuda(launcher, x, weight, bias, shift, scale, eps, centred, plus=1.0, *, codes=(), **format):
    """`codes`: what the kernel is given besides, where the result is also wanted in 8 bits; `format`: the source's constant then."""
    x = three(x)
    batch, tokens, cols = x.shape
    y, mean, rstd = forward_meta(x, weight, bias, shift, scale, eps, centred)
    if y.numel() == 0:
        return y, mean, rstd
    threads, chunks = row_block(cols)
    kind, (weight, bias, shift, scale) = alike(weight, bias, shift, scale)  # before they are as many as the rows
    shift, scale = over_rows(shift, x), over_rows(scale, x)
    wanted = program(
        "norm", DTYPE=dtype_code(x), MDTYPE=kind, VECTOR=is_aligned(x, y, weight, bias, shift, scale, *codes[:1]), THREADS=threads, CHUNKS=chunks, **format,
    )
    launcher.launch(wanted, "norm_modulate_codes" if format else "norm_modulate", (batch * tokens, 1), threads, (
        x, *steps(x), weight, bias, shift, *steps(shift), scale, *steps(scale), y, mean, rstd, whole(tokens), whole(cols), real(eps),
        whole(centred), real(plus), *codes,
    ), x.device)
    return y, mean, rstd


# ---- forward, with the result in 8 bits too --------------------------------


def codes_torch(x, weight, bias, shift, scale, eps, centred, fp8, group, plus=1.0):
    y, mean, rstd = forward_torch(x, weight, bias, shift, scale, eps, centred, plus)
    return y, mean, rstd, *rows.quantise_torch(y.reshape(-1, y.shape[-1]), None, fp8, group)


def codes_meta(x, weight, bias, shift, scale, eps, centred, fp8, group, plus=1.0):
    y, mean, rstd = forward_meta(x, weight, bias, shift, scale, eps, centred)
    return y, mean, rstd, *rows.quantise_meta(y.view(-1, y.shape[-1]), None, fp8, group)


def codes_cuda(launcher, x, weight, bias, shift, scale, eps, centred, fp8, group, plus=1.0):
    x = three(x)
    codes, scales = rows.quantise_meta(x.new_empty(x.shape).view(-1, x.shape[-1]), None, fp8, group)
    y, mean, rstd = forward_cuda(
        launcher, x, weight, bias, shift, scale, eps, centred, plus, FORMAT=fp8, codes=(codes, scales, whole(rows.digits(group, x.shape[-1])))
    )
    return y, mean, rstd, codes, scales


# ---- backward ------------------------------------------------------------


def backward_torch(dy, x, mean, rstd, weight, scale, centred, plus=1.0):
    kind = wide(x.dtype)
    n = (x.to(kind) - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
    g = dy.to(kind)
    if weight is not None:
        g = g * weight
    if scale is not None:
        g = g * (plus + _over(scale, x))
    dx = g - n * (g * n).mean(-1, keepdim=True)
    if centred:
        dx = dx - g.mean(-1, keepdim=True)
    return (dx * rstd.unsqueeze(-1)).to(x.dtype)


def backward_meta(dy, x, mean, rstd, weight, scale, centred, plus=1.0):
    return x.new_empty(x.shape)


def backward_cuda(launcher, dy, x, mean, rstd, weight, scale, centred, plus=1.0):
    x, dy = three(x), three(dy)
    batch, tokens, cols = x.shape
    dx = x.new_empty(x.shape)
    if dx.numel() == 0:
        return dx
    threads, chunks = row_block(cols)
    kind, (weight, scale) = alike(weight, scale)
    scale = over_rows(scale, x)
    wanted = program("norm", DTYPE=dtype_code(x), MDTYPE=kind, VECTOR=is_aligned(x, dy, dx, weight, scale), THREADS=threads, CHUNKS=chunks)
    launcher.launch(wanted, "norm_modulate_backward", (batch * tokens, 1), threads, (
        dy, *steps(dy), x, *steps(x), mean, rstd, weight, scale, *steps(scale), dx, whole(tokens), whole(cols),
        whole(centred), real(plus),
    ), x.device)
    return dx


# ---- sums over tokens ----------------------------------------------------


def sums_torch(a, b, mean, rstd, weight, bias):
    """(sum of a, sum of a n), each [B, C]: n is b, normalised where there are statistics. No b: the second is empty."""
    kind = wide(a.dtype)
    a = a.to(kind)
    if b is None:
        return a.sum(1), a.new_empty(0)
    n = b.to(kind)
    if rstd is not None:
        n = (n - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
        n = n if weight is None else n * weight
        n = n if bias is None else n + bias
    return a.sum(1), (a * n).sum(1)


def sums_meta(a, b, mean, rstd, weight, bias):
    sums = a.new_empty((a.shape[0], a.shape[2]), dtype=wide(a.dtype))
    return sums, sums.new_empty(0) if b is None else torch.empty_like(sums)


def sums_cuda(launcher, a, b, mean, rstd, weight, bias):
    a, b = three(a), None if b is None else three(b)
    batch, tokens, cols = a.shape
    if batch * tokens * cols == 0:
        return tuple(t.zero_() for t in sums_meta(a, b, mean, rstd, weight, bias))
    if b is not None and b.dtype != a.dtype:
        raise Unfit(f"{b.dtype} beside {a.dtype}")
    parts = ceil_div(tokens, SPAN)
    kind, (weight, bias) = alike(weight, bias)
    blocks, threads = column_blocks(cols, 1)
    sums = a.new_empty((batch, parts, cols), dtype=torch.float32)
    products = None if b is None else torch.empty_like(sums)
    wanted = program("columns", DTYPE=dtype_code(a), MDTYPE=kind, VECTOR=0, THREADS=threads)
    launcher.launch(wanted, "column_sums", (batch * parts, blocks), threads, (
        a, *steps(a), b, *steps(b), mean if rstd is not None else None, rstd, weight, bias, sums, products, whole(tokens), whole(SPAN), whole(parts), whole(cols),
    ), a.device)
    return sums.sum(1), sums.new_empty(0) if products is None else products.sum(1)


class NormModulate(torch.autograd.Function):
    """Keeps x, its statistics and the modulation; nothing of the size of y."""

    @staticmethod
    def forward(ctx, x, weight, bias, shift, scale, eps, centred, codes_for=None, plus=1.0):
        """`codes_for`: (fp8, group) of the 8-bit product that takes y next, which then finds its codes made."""
        if codes_for is None:
            y, mean, rstd = torch.ops.pistachio.norm_modulate(x, weight, bias, shift, scale, eps, centred, plus)
        else:
            y, mean, rstd, codes, scales = torch.ops.pistachio.norm_modulate_codes(x, weight, bias, shift, scale, eps, centred, *codes_for, plus)
            remember(y, codes, scales, *codes_for)
        ctx.save_for_backward(x, mean, rstd, weight, bias, shift, scale)
        ctx.centred, ctx.plus = centred, plus
        return y

    @staticmethod
    def backward(ctx, dy):
        x, mean, rstd, weight, bias, shift, scale = ctx.saved_tensors
        dy = by_columns(dy)
        dx = dshift = dscale = None
        if ctx.needs_input_grad[0]:
            dx = torch.ops.pistachio.norm_modulate_backward(dy, x, mean, rstd, weight, scale, ctx.centred, ctx.plus)
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            a_token_each = any(v is not None and v.ndim == 3 and v.shape[1] == x.shape[1] > 1 for v in (shift, scale))
            if a_token_each:
                n = (x - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
                n = n if weight is None else n * weight
                n = n if bias is None else n + bias
                along, against = dy, dy * n
            else:
                along, against = torch.ops.pistachio.column_sums(dy, x if ctx.needs_input_grad[4] else None, mean, rstd, weight, bias)
            dshift = _like(along, shift) if ctx.needs_input_grad[3] else None
            dscale = _like(against, scale) if ctx.needs_input_grad[4] else None
        return dx, None, None, dshift, dscale, None, None, None, None


def _like(sums: Tensor, vector: Tensor) -> Tensor:
    """Sums over tokens, [B, C], or a token each, [B, T, C], in the vector's own shape and type."""
    if sums.ndim == 2 and vector.ndim == 3:
        sums = sums.unsqueeze(1)
    if sums.ndim == 3 and vector.ndim == 2:
        sums = sums.sum(1)
    return sums.sum_to_size(vector.shape).to(vector.dtype)
