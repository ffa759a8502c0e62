"""The 8-bit product of a LoRA linear as one operation: y = rotate(a b^T row_scale col_scale, group) + bias + alpha t u^T.

a [N, K] and b [O, K] are codes, t [N, R] and u [O, R] the low-rank part. Forward: a from x, b the weight, t = x A^T, u = B.
Backward: a from dy with the weight's scales folded in, b the weight on its side, t = dy B, u = A^T, rotated as the weight is.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..quantization.formats import rotate
from .glue import Unfit, ceil_div, dtype_code, is_aligned, real, whole
from .programs import Program, program
from .rows import CODES, DIGITS

THREADS, BLOCK_COLS, STEP_BYTES, STAGES = 256, 256, 64, 4
MOST_ROWS = 2**31 - 256  # a row's number is 32 bits, with a block's rows beyond the last
UNIT_BYTES = 16  # what a copy into shared memory moves; rows begin at one


def block_rows(tiles: int) -> int:
    return 32 * tiles


def pool_bytes(tiles: int) -> int:
    """Shared memory that a block is given at its start. At most 96 KB: what every card since 8.6 has for one block."""
    return STAGES * (block_rows(tiles) + BLOCK_COLS) * STEP_BYTES


def tiles_of(fp8: bool, major: int) -> int:
    """Sixteens of rows to a warp on compute capability `major`: on 10.x the largest block of e4m3 needs more registers than there are.

    The same for a product of few rows, which waits for its weight from memory anyway: a program of its own would be one more to compile.
    """
    return 2 if fp8 and major == 10 else 4


def plan(*, tiles: int, out_code: int, vector: bool, fp8: bool) -> Program:
    return program("gemm", DTYPE=out_code, VECTOR=vector, THREADS=THREADS, FORMAT=fp8, MT=tiles, STAGES=STAGES)


def lora_torch(a, b, row_scale, col_scale, bias, t, u, alpha, group, dtype):
    """The same of the door's other operations: the library's product where there is one, and two more passes."""
    ops = torch.ops.pistachio
    if a.dtype == torch.int8:
        y = ops.rescale_rows(ops.product_int8(a, b), row_scale, col_scale, bias, group, dtype)
    else:
        if col_scale is None:
            col_scale = row_scale.new_ones(len(b))
        y = ops.product_fp8(a, b, row_scale, col_scale, dtype)
        if bias is not None:
            y.add_(bias.to(dtype))
    return y if t is None else y.addmm_(t.to(dtype), u.to(dtype).t(), alpha=alpha)


def lora_meta(a, b, row_scale, col_scale, bias, t, u, alpha, group, dtype):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def lora_cuda(launcher, a, b, row_scale, col_scale, bias, t, u, alpha, group, dtype):
    out = lora_meta(a, b, row_scale, col_scale, bias, t, u, alpha, group, dtype)
    (rows, shared), cols = a.shape, len(b)
    if out.numel() == 0:
        return out
    fp8 = CODES[a.dtype]
    if fp8 and group:
        raise Unfit("a rotation of e4m3 codes")
    if group not in DIGITS:
        raise Unfit(f"a rotation of groups of {group}")
    if shared == 0 or ceil_div(cols, BLOCK_COLS) > 65535 or rows > MOST_ROWS:
        raise Unfit(f"a product of {rows} x {shared} x {cols}")
    a, b = _rows_of_units(a, "codes"), _rows_of_units(b, "codes")
    if t is None or alpha == 0 or t.shape[1] == 0:
        t = u = None
        alpha = 1.0
    else:
        if t.dtype != torch.bfloat16:
            raise Unfit(f"a low-rank part in {t.dtype}")
        t, u = _low_rank(t), _low_rank(rotate(u.t().float(), group).t().to(t.dtype) if group else u.to(t.dtype))
    row_scale = row_scale.contiguous()
    col_scale = None if col_scale is None else col_scale.contiguous()
    bias = None if bias is None else bias.float().contiguous()
    tiles = tiles_of(bool(fp8), torch.cuda.get_device_capability(out.device)[0] if out.device.type == "cuda" else 0)
    wanted = plan(tiles=tiles, out_code=dtype_code(out), vector=is_aligned(out, bias), fp8=bool(fp8))
    launcher.launch(wanted, "product_lora_fp8" if fp8 else "product_lora_int8", (ceil_div(rows, block_rows(tiles)), ceil_div(cols, BLOCK_COLS)), THREADS, (
        a, _row_bytes(a), b, _row_bytes(b), row_scale, col_scale, bias, t, _row_bytes(t), u, _row_bytes(u), out, whole(rows), whole(cols), whole(shared),
        whole(0 if t is None else 2 * t.shape[1]), real(1 / alpha), real(alpha), whole(DIGITS[group]),
    ), out.device, shared_bytes=pool_bytes(tiles))
    return out


def _row_bytes(matrix: Tensor | None) -> ctypes.c_int:
    size_bytes = 0 if matrix is None else matrix.stride(0) * matrix.element_size()
    if size_bytes >= 1 << 31:
        raise Unfit(f"rows of {size_bytes} bytes")
    return whole(size_bytes)


def _rows_of_units(matrix: Tensor, what: str) -> Tensor:
    if matrix.stride(1) != 1:
        matrix = matrix.contiguous()
    bytes_ = matrix.element_size()
    if matrix.data_ptr() % UNIT_BYTES or matrix.stride(0) * bytes_ % UNIT_BYTES:
        raise Unfit(f"{what} of {matrix.shape[1]} to a row (rows that begin at {UNIT_BYTES} bytes are needed)")
    return matrix


def _low_rank(factor: Tensor) -> Tensor:
    """[N, R] with the rank filled up with zeros to rows of whole units."""
    per_unit = UNIT_BYTES // factor.element_size()
    if factor.shape[1] % per_unit:
        factor = torch.nn.functional.pad(factor, (0, -factor.shape[1] % per_unit))
    if factor.stride(1) != 1 or factor.stride(0) % per_unit or factor.data_ptr() % UNIT_BYTES:
        factor = factor.clone(memory_format=torch.contiguous_format)
    return factor
