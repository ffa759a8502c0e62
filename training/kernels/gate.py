"""out = x + y gate, and its backward: dx = dout, dy = dout gate, dgate = the sum of dout y over a batch's tokens.

x and y are [B, T, C]; the gate is [B, C], [B, 1, C] or [B, T, C].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .glue import Unfit, alike, by_columns, column_blocks, dtype_code, is_aligned, over_rows, steps, three, whole, wide
from .norm import _like, _over
from .programs import program


def reference(x, y, gate) -> Tensor:
    """Rounded once, as the kernel does it."""
    kind = wide(y.dtype)
    scaled = y.to(kind) * _over(gate, y).to(kind)
    return (scaled if x is None else scaled + x.to(kind)).to(y.dtype)


def meta(x, y, gate) -> Tensor:
    return y.new_empty(y.shape)


def cuda(launcher, x, y, gate) -> Tensor:
    y = three(y)
    x = None if x is None else three(x)
    if x is not None and x.dtype != y.dtype:
        raise Unfit(f"{x.dtype} beside {y.dtype}")
    batch, tokens, cols = y.shape
    out = y.new_empty(y.shape)
    if out.numel() == 0:
        return out
    kind, (gate,) = alike(over_rows(gate, y))
    blocks, threads = column_blocks(cols)
    wanted = program("gate", DTYPE=dtype_code(y), MDTYPE=kind, VECTOR=is_aligned(x, y, gate, out), THREADS=threads)
    launcher.launch(wanted, "gated_residual", (batch * tokens, blocks), threads, (
        x, *steps(x), y, *steps(y), gate, *steps(gate), out, whole(tokens), whole(cols),
    ), y.device)
    return out


class GatedResidual(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, gate):
        ctx.save_for_backward(y if ctx.needs_input_grad[2] else None, gate)
        return torch.ops.pistachio.gated_residual(x, y, gate)

    @staticmethod
    def backward(ctx, dout):
        y, gate = ctx.saved_tensors
        dout = by_columns(dout)
        dy = torch.ops.pistachio.gated_residual(None, dout, gate) if ctx.needs_input_grad[1] else None
        dgate = None
        if ctx.needs_input_grad[2]:
            if gate.ndim == 3 and gate.shape[1] == y.shape[1] > 1:
                products = dout * y
            else:
                _, products = torch.ops.pistachio.column_sums(dout, y, None, None, None, None)
            dgate = _like(products, gate)
        return dout if ctx.needs_input_grad[0] else None, dy, dgate
