"""RMSNorm and rotary embedding of queries or keys in place; the backward works from what came out.

x is [B, T, H, D] in any strides with neighbouring D, overwritten. The table is [B or 1, T, D/2, 2, 2] in float32, matrices
[cos, -sin; sin, cos] for neighbouring pairs (Flux, Wan). The norm covers a head (weight [D]) or all heads (weight [H D]).
Kept: the result, which attention keeps anyway, and one rstd a row; the inverse rotation and a division by the frozen weight
give the normalised values back, so no weight may be near zero (`safe_weight`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .glue import MAX_TOKENS, WIDTH, Unfit, alike, ceil_div, dtype_code, is_aligned, long, real, row_block, whole, wide
from .programs import program

LEAST_WEIGHT = 1e-3  # of the largest: below it, rounding of the result is magnified too far


def safe_weight(weight: Tensor) -> bool:
    """May the values be had back by dividing? Looks at the values: once a layer, not in a step."""
    sizes = weight.detach().float().abs()
    return bool(sizes.min() > LEAST_WEIGHT * sizes.max())


def _pairs(x: Tensor, table: Tensor, direction: float) -> Tensor:
    """Rotate neighbouring pairs of [B, T, H, D]."""
    low, high = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = (table[..., i, 0].unsqueeze(2).to(x.dtype) for i in (0, 1))
    sin = sin * direction
    return torch.stack([cos * low - sin * high, sin * low + cos * high], -1).flatten(-2)


def _statistic(values: Tensor, whole_row: bool) -> tuple[int, ...]:
    return (-2, -1) if whole_row else (-1,)


def _weight(weight: Tensor, x: Tensor, whole_row: bool) -> Tensor:
    return weight.view(x.shape[-2:]) if whole_row else weight


def reference(x, weight, table, *, eps: float, whole_row: bool) -> Tensor:
    """Plain torch; a new tensor."""
    values = x.to(wide(x.dtype))
    rstd = torch.rsqrt(values.square().mean(_statistic(values, whole_row), keepdim=True) + eps)
    return _pairs(values * rstd * _weight(weight, x, whole_row), table, 1.0).to(x.dtype)


def forward_torch(x, weight, table, eps, whole_row):
    values = x.to(wide(x.dtype))
    rstd = torch.rsqrt(values.square().mean(_statistic(values, whole_row)) + eps)
    x.copy_(reference(x, weight, table, eps=eps, whole_row=whole_row))
    return rstd


def forward_meta(x, weight, table, eps, whole_row):
    return x.new_empty(x.shape[:2] if whole_row else x.shape[:3], dtype=wide(x.dtype))


def backward_torch(dz, z, weight, table, rstd, whole_row):
    kind = wide(z.dtype)
    weight = _weight(weight, z, whole_row)
    n = _pairs(z.to(kind), table, -1.0) / weight
    g = _pairs(dz.to(kind), table, -1.0) * weight
    axes = _statistic(n, whole_row)
    rstd = rstd[(...,) + (None,) * len(axes)]
    return (rstd * (g - n * (g * n).mean(axes, keepdim=True))).to(z.dtype)


def backward_meta(dz, z, weight, table, rstd, whole_row):
    return z.new_empty(z.shape)


def _plan(launcher_dtype: Tensor, weight: Tensor, table: Tensor, whole_row: bool, *rowwise: Tensor):
    batch, tokens, heads, width = launcher_dtype.shape
    if width % WIDTH:
        raise Unfit(f"heads of {width} values (a multiple of {WIDTH} is needed)")
    if table.dtype != torch.float32 or table.shape[-2:] != (2, 2) or table.stride()[-3:] != (4, 2, 1) or table.data_ptr() % 16:
        raise Unfit("a rotary table of another layout or type")
    if any(tensor.stride(-1) != 1 for tensor in rowwise):
        raise Unfit("values of a head that are no neighbours")
    cols = heads * width if whole_row else width
    if cols > 8192:
        raise Unfit(f"a norm over {cols} values")
    threads_a_row, chunks = row_block(cols)
    warps = threads_a_row // 32
    rows_a_block = 4 if warps == 1 else 1
    threads = 32 * warps * rows_a_block
    kind, (weight,) = alike(weight)
    wanted = program(
        "rope", DTYPE=dtype_code(launcher_dtype), MDTYPE=kind, VECTOR=is_aligned(*rowwise, weight), THREADS=threads, WARPS=warps,
        ROWS=rows_a_block, CHUNKS=chunks, WIDTH=width,
    )
    groups = 1 if whole_row else heads
    rows = batch * tokens * groups
    if rows > MAX_TOKENS:
        raise Unfit(f"{rows} rows")
    table = table.expand(batch, tokens, *table.shape[2:])
    sizes = (whole(rows), whole(tokens), whole(groups), whole(heads if whole_row else 1))
    return wanted, (ceil_div(rows, rows_a_block), 1), threads, table, sizes


def forward_cuda(launcher, x, weight, table, eps, whole_row):
    rstd = forward_meta(x, weight, table, eps, whole_row)
    if x.numel():
        wanted, grid, threads, table, sizes = _plan(x, weight, table, whole_row, x)
        launcher.launch(wanted, "rms_rope", grid, threads, (
            x, *map(long, x.stride()[:3]), weight, table, *map(long, table.stride()[:2]), rstd, *sizes, real(eps),
        ), x.device)
    return rstd


def backward_cuda(launcher, dz, z, weight, table, rstd, whole_row):
    dx = z.new_empty(z.shape)
    if z.numel():
        dz = dz if dz.stride(-1) == 1 else dz.contiguous()
        wanted, grid, threads, table, sizes = _plan(z, weight, table, whole_row, z, dz, dx)
        launcher.launch(wanted, "rms_rope_backward", grid, threads, (
            dz, *map(long, dz.stride()[:3]), z, *map(long, z.stride()[:3]), weight, table, *map(long, table.stride()[:2]), rstd, dx,
            *map(long, dx.stride()[:3]), *sizes,
        ), z.device)
    return dx


class RmsRope(torch.autograd.Function):
    """Overwrites x and gives it back."""

    @staticmethod
    def forward(ctx, x, weight, table, eps, whole_row):
        rstd = torch.ops.pistachio.rms_rope_(x, weight, table, eps, whole_row)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x, weight, table, rstd)
        ctx.whole_row = whole_row
        return x

    @staticmethod
    def backward(ctx, dz):
        z, weight, table, rstd = ctx.saved_tensors
        return torch.ops.pistachio.rms_rope_backward(dz, z, weight, table, rstd, ctx.whole_row), None, None, None, None
