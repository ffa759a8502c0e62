"""GELU, SwiGLU and GEGLU that keep their inputs for the backward in 8 bits: int8 with a scale for 128 neighbours of a row.

The forward is exact; only the slope is taken at the rounded input. Rows are [N, C] with any row stride.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .glue import Unfit, by_columns, ceil_div, column_blocks, dtype_code, is_aligned, long, whole, wide
from .programs import program

GROUP = 128
TANH = 0.7978845608028654
SWIGLU, GEGLU = 2, 3  # forms of the source; GELU is 0, by tanh 1


def gelu_reference(x: Tensor, tanh: bool) -> Tensor:
    return functional.gelu(x, approximate="tanh" if tanh else "none")


def swiglu_reference(a: Tensor, b: Tensor) -> Tensor:
    return functional.silu(a) * b


def geglu_reference(both: Tensor) -> Tensor:
    """The first half of the columns times GELU, by erf, of the second."""
    x, gate = both.chunk(2, dim=-1)
    return x * functional.gelu(gate)


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
        _launch(launcher, "gelu8", x, rows, cols, (x, long(x.stride(0)), y, codes, scales, whole(cols), whole(ceil_div(cols, GROUP))), (x, y, codes), int(tanh))
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
        _launch(launcher, "gelu8_backward", dy, rows, cols, (
            dy, long(dy.stride(0)), codes, scales, dx, whole(cols), whole(ceil_div(cols, GROUP)),
        ), (dy, codes, dx), int(tanh))
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
            a, long(a.stride(0)), b, long(b.stride(0)), y, a_codes, a_scales, b_codes, b_scales, whole(cols), long(cols), whole(ceil_div(cols, GROUP)),
        ), (a, b, y, a_codes), SWIGLU)
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
            dy, long(dy.stride(0)), a_codes, a_scales, b_codes, b_scales, da, long(cols), db, long(cols), whole(cols), long(cols),
            whole(ceil_div(cols, GROUP)),
        ), (dy, a_codes, da, db), SWIGLU)
    return da, db


# ---- GEGLU: both halves are one matrix, and so are their codes and gradients -----------


def _halves(both: Tensor) -> tuple[Tensor, Tensor]:
    """(x, gate)"""
    return both.chunk(2, dim=-1)


def geglu_torch(both):
    (x_codes, x_scales), (gate_codes, gate_scales) = map(keep, _halves(both))
    return geglu_reference(both), torch.cat([x_codes, gate_codes], 1), torch.cat([x_scales, gate_scales], 1)


def geglu_meta(both):
    rows, cols = both.shape[0], both.shape[1] // 2
    codes, scales = both.new_empty((rows, 2 * cols), dtype=torch.int8), both.new_empty((rows, 2 * ceil_div(cols, GROUP)), dtype=wide(both.dtype))
    return both.new_empty((rows, cols)), codes, scales


def geglu_cuda(launcher, both):
    both = by_columns(both)
    y, codes, scales = geglu_meta(both)
    rows, cols = y.shape
    if y.numel():
        (x, gate), (x_codes, gate_codes), (x_scales, gate_scales) = _halves(both), _halves(codes), _halves(scales)
        _launch(launcher, "geglu8", x, rows, cols, (
            gate, long(gate.stride(0)), x, long(x.stride(0)), y, gate_codes, gate_scales, x_codes, x_scales, whole(cols), long(2 * cols), whole(scales.shape[1]),
        ), (x, gate, y, x_codes, gate_codes), GEGLU)
    return y, codes, scales


def geglu_backward_torch(dy, codes, scales):
    (x, gate), g = (kept(*half) for half in zip(_halves(codes), _halves(scales))), dy.to(scales.dtype)
    return torch.cat([g * gelu_reference(gate, False), g * x * gelu_slope(gate, False)], 1).to(dy.dtype)


def geglu_backward_meta(dy, codes, scales):
    return dy.new_empty((dy.shape[0], 2 * dy.shape[1]))


def geglu_backward_cuda(launcher, dy, codes, scales):
    dy = by_columns(dy)
    dboth = geglu_backward_meta(dy, codes, scales)
    rows, cols = dy.shape
    if dboth.numel():
        (dx, dgate), (x_codes, gate_codes), (x_scales, gate_scales) = _halves(dboth), _halves(codes), _halves(scales)
        _launch(launcher, "geglu8_backward", dy, rows, cols, (
            dy, long(dy.stride(0)), gate_codes, gate_scales, x_codes, x_scales, dgate, long(2 * cols), dx, long(2 * cols), whole(cols), long(2 * cols),
            whole(scales.shape[1]),
        ), (dy, x_codes, gate_codes, dx, dgate), GEGLU)
    return dboth


def _launch(launcher, entry, like, rows, cols, arguments, rowwise, form) -> None:
    blocks, threads = column_blocks(cols)
    wanted = program("activation", DTYPE=dtype_code(like), VECTOR=is_aligned(*rowwise), THREADS=threads, FORM=form)
    launcher.launch(wanted, entry, (rows, blocks), threads, arguments, like.device)


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


class GeGlu8(torch.autograd.Function):
    @staticmethod
    def forward(ctx, both):
        y, *saved = torch.ops.pistachio.geglu8(both.flatten(0, -2))
        ctx.save_for_backward(*saved)
        return y.view(*both.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx, dy):
        return torch.ops.pistachio.geglu8_backward(dy.flatten(0, -2), *ctx.saved_tensors).view(*dy.shape[:-1], 2 * dy.shape[-1])
