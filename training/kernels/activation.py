"""GELU and SwiGLU that keep their inputs for the backward in 8 bits: int8 with a scale for 128 neighbours of a row.

The forward is exact; only the slope is taken at the rounded input. Rows are [N, C] with any row stride.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .glue import Unfit, by_columns, ceil_div, column_blocks, dtype_code, is_aligned, long, wide
from .programs import program

GROUP = 128
TANH = 0.7978845608028654


def gelu_reference(x: Tensor, tanh: bool) -> Tensor:
    return functional.gelu(x, approximate="tanh" if tanh else "none")


def swiglu_reference(a: Tensor, b: Tensor) -> Tensor:
    return functional.silu(a) * b


def keep(x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, C] -> int8 codes [N, C] and a scale [N, groups]."""
    rows, cols = x.shape
    groups = ceil_div(cols, GROUP)
    padded = functional.pad(x.to(wide(x.dtype)), (0, groups * GROUP - cols)).view(rows, groups, GROUP)
    largest = padded.abs().amax(-1) if padded.numel() else padded.new_zeros(rows, groups)
    up = torch.where(largest > 0, 127 / largest, torch.zeros_like(largest))
    codes = (padded * up.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(1)[:, :cols].contiguous(), largest / 127


def kept(codes: Tensor, scales: Tensor) -> Tensor:
    return codes.to(scales.dtype) * scales.repeat_interleave(GROUP, 1)[:, : codes.shape[1]]


def _kept_meta(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, cols = x.shape
    return x.new_empty((rows, cols), dtype=torch.int8), x.new_empty((rows, ceil_div(cols, GROUP)), dtype=wide(x.dtype))


# ---- GELU ----------------------------------------------------------------


def gelu_torch(x, tanh):
    return (gelu_reference(x, tanh), *keep(x))


def gelu_meta(x, tanh):
    return (x.new_empty(x.shape), *_kept_meta(x))


def gelu_cuda(launcher, x, tanh):
    x = by_columns(x)
    y, codes, scales = gelu_meta(x, tanh)
    rows, cols = x.shape
    if y.numel():
        _launch(launcher, "gelu8", x, rows, cols, (x, long(x.stride(0)), y, codes, scales), (x, y, codes), tanh)
    return y, codes, scales


def gelu_slope(x: Tensor, tanh: bool) -> Tensor:
    if tanh:
        t = torch.tanh(TANH * (x + 0.044715 * x**3))
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * TANH * (1 + 0.134145 * x * x)
    return 0.5 * (1 + torch.erf(x * 0.5**0.5)) + x * 0.3989422804014327 * torch.exp(-0.5 * x * x)


def gelu_backward_torch(dy, codes, scales, tanh):
    return (dy.to(scales.dtype) * gelu_slope(kept(codes, scales), tanh)).to(dy.dtype)


def gelu_backward_meta(dy, codes, scales, tanh):
    return dy.new_empty(dy.shape)


def gelu_backward_cuda(launcher, dy, codes, scales, tanh):
    dy = by_columns(dy)
    dx = dy.new_empty(dy.shape)
    rows, cols = dy.shape
    if dx.numel():
        _launch(launcher, "gelu8_backward", dy, rows, cols, (dy, long(dy.stride(0)), codes, scales, dx), (dy, codes, dx), tanh)
    return dx


# ---- SwiGLU --------------------------------------------------------------


def swiglu_torch(a, b):
    return (swiglu_reference(a, b), *keep(a), *keep(b))


def swiglu_meta(a, b):
    return (a.new_empty(a.shape), *_kept_meta(a), *_kept_meta(b))


def swiglu_cuda(launcher, a, b):
    a, b = by_columns(a), by_columns(b)
    if a.dtype != b.dtype:
        raise Unfit(f"{a.dtype} beside {b.dtype}")
    y, a_codes, a_scales, b_codes, b_scales = swiglu_meta(a, b)
    rows, cols = a.shape
    if y.numel():
        _launch(launcher, "swiglu8", a, rows, cols, (
            a, long(a.stride(0)), b, long(b.stride(0)), y, a_codes, a_scales, b_codes, b_scales,
        ), (a, b, y, a_codes), False)
    return y, a_codes, a_scales, b_codes, b_scales


def swiglu_backward_torch(dy, a_codes, a_scales, b_codes, b_scales):
    a, b, g = kept(a_codes, a_scales), kept(b_codes, b_scales), dy.to(a_scales.dtype)
    s = torch.sigmoid(a)
    return (g * b * s * (1 + a * (1 - s))).to(dy.dtype), (g * a * s).to(dy.dtype)


def swiglu_backward_meta(dy, a_codes, a_scales, b_codes, b_scales):
    return dy.new_empty(dy.shape), dy.new_empty(dy.shape)


def swiglu_backward_cuda(launcher, dy, a_codes, a_scales, b_codes, b_scales):
    dy = by_columns(dy)
    da, db = swiglu_backward_meta(dy, a_codes, a_scales, b_codes, b_scales)
    rows, cols = dy.shape
    if da.numel():
        _launch(launcher, "swiglu8_backward", dy, rows, cols, (
            dy, long(dy.stride(0)), a_codes, a_scales, b_codes, b_scales, da, db,
        ), (dy, a_codes, da, db), False)
    return da, db


def _launch(launcher, entry, like, rows, cols, arguments, rowwise, tanh) -> None:
    blocks, threads = column_blocks(cols)
    wanted = program("activation", DTYPE=dtype_code(like), VECTOR=is_aligned(*rowwise), THREADS=threads, FORM=tanh)
    launcher.launch(wanted, entry, (rows, blocks), threads, (*arguments, long(cols), long(ceil_div(cols, GROUP))), like.device)


class Gelu8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, tanh):
        y, codes, scales = torch.ops.pistachio.gelu8(x.flatten(0, -2), tanh)
        ctx.save_for_backward(codes, scales)
        ctx.tanh = tanh
        return y.view(x.shape)

    @staticmethod
    def backward(ctx, dy):
        return torch.ops.pistachio.gelu8_backward(dy.flatten(0, -2), *ctx.saved_tensors, ctx.tanh).view(dy.shape), None


class SwiGlu8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        y, *saved = torch.ops.pistachio.swiglu8(a.flatten(0, -2), b.flatten(0, -2))
        ctx.save_for_backward(*saved)
        return y.view(a.shape)

    @staticmethod
    def backward(ctx, dy):
        da, db = torch.ops.pistachio.swiglu8_backward(dy.flatten(0, -2), *ctx.saved_tensors)
        return da.view(dy.shape), db.view(dy.shape)
