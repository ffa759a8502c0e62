"""The two ends of an 8-bit product: rows to codes with a scale each, sums back to numbers, a matrix of bytes on its side.

Codes are int8 or e4m3; `group` is the size of the Hadamard rotation (16, 64, 256), 0 for none. Weights are stored as
training/quantization/formats.py says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization.formats import E4M3_MAX, INT8_MAX, rotate
from .glue import Unfit, by_columns, ceil_div, code_block, column_blocks, dtype_code, is_aligned, long, whole, wide
from .programs import program

DIGITS = {0: 0, 16: 2, 64: 3, 256: 4}  # base-four digits of a place within a group
CODES = {torch.int8: 0, torch.float8_e4m3fn: 1}
SOURCES = {torch.int32: 0, torch.int8: 1, torch.float8_e4m3fn: 2}
TILE = 64


def digits(group: int, cols: int) -> int:
    if group not in DIGITS:
        raise Unfit(f"a rotation of groups of {group}")
    assert group == 0 or cols % group == 0
    return DIGITS[group]


# ---- to codes ------------------------------------------------------------


def quantise_torch(x, fold, fp8, group):
    """[N, C] -> codes [N, C], scale [N]. `fold` [C]: factors for the columns, first of all. A row that is not finite has such a scale."""
    values = x.to(wide(x.dtype))
    values = values if fold is None else values * fold
    values = rotate(values, group) if group else values
    top = E4M3_MAX if fp8 else INT8_MAX
    scale = values.abs().amax(1) / top if values.shape[1] else values.new_zeros(len(values))
    up = torch.where(scale > torch.finfo(torch.float32).tiny, 1 / scale, torch.zeros_like(scale))
    units = values * up.unsqueeze(1)
    codes = units.clamp(-top, top).to(torch.float8_e4m3fn) if fp8 else units.round().clamp(-top, top).to(torch.int8)
    return codes, torch.where((up > 0) | ~scale.isfinite(), scale, torch.zeros_like(scale))


def quantise_meta(x, fold, fp8, group):
    kind = torch.float8_e4m3fn if fp8 else torch.int8
    return x.new_empty(x.shape, dtype=kind), x.new_empty(x.shape[0], dtype=wide(x.dtype))


def quantise_cuda(launcher, x, fold, fp8, group):
    x = by_columns(x)
    codes, scales = quantise_meta(x, fold, fp8, group)
    rows, cols = x.shape
    if codes.numel() == 0:
        return codes, scales.zero_()
    rotated = digits(group, cols)
    threads, most, chunks = code_block(cols)
    wanted = program("quantise", DTYPE=dtype_code(x), VECTOR=is_aligned(x, fold, codes), MOST_THREADS=most, CHUNKS=chunks, FORMAT=fp8)
    launcher.launch(wanted, "quantise_rows", (rows, 1), threads, (
        x, long(x.stride(0)), fold, codes, scales, whole(cols), whole(rotated),
    ), x.device)
    return codes, scales


# ---- and back ------------------------------------------------------------


def rescale_torch(values, row_scale, col_scale, bias, group, dtype):
    """rotate(values * row_scale[:, None] * col_scale) + bias, [N, C]."""
    kind = wide(dtype)
    result = values.to(kind)
    result = result if row_scale is None else result * row_scale.unsqueeze(1)
    result = result if col_scale is None else result * col_scale
    result = rotate(result, group) if group else result
    return (result if bias is None else result + bias).to(dtype)


def rescale_meta(values, row_scale, col_scale, bias, group, dtype):
    return values.new_empty(values.shape, dtype=dtype)


def rescale_cuda(launcher, values, row_scale, col_scale, bias, group, dtype):
    values = values.contiguous()
    out = rescale_meta(values, row_scale, col_scale, bias, group, dtype)
    rows, cols = out.shape
    if out.numel() == 0:
        return out
    if values.dtype not in SOURCES:
        raise Unfit(f"{values.dtype} sums")
    rotated = digits(group, cols)
    bias = None if bias is None else bias.float()
    blocks, threads = column_blocks(cols)
    wanted = program(
        "rescale", DTYPE=dtype_code(out), VECTOR=is_aligned(values, out, col_scale, bias), THREADS=threads,
        SOURCE=SOURCES[values.dtype],
    )
    launcher.launch(wanted, "rescale_rows", (rows, blocks), threads, (
        values, row_scale, col_scale, bias, out, whole(cols), whole(rotated),
    ), out.device)
    return out


# ---- on its side ---------------------------------------------------------


def transpose_torch(x):
    return x.t().contiguous()


def transpose_meta(x):
    return x.new_empty(x.shape[::-1])


def transpose_cuda(launcher, x):
    if x.element_size() != 1:
        raise Unfit(f"{x.dtype} values")
    x = x.contiguous()
    y = transpose_meta(x)
    rows, cols = x.shape
    if y.numel():
        wanted = program("transpose", THREADS=256, VECTOR=rows % 4 == 0 and cols % 4 == 0 and x.data_ptr() % 4 == 0)
        launcher.launch(wanted, "transpose_bytes", (ceil_div(cols, TILE), ceil_div(rows, TILE)), 256, (x, y, long(rows), long(cols)), x.device)
    return y


# ---- products ------------------------------------------------------------


def product_int8_torch(a: Tensor, b: Tensor) -> Tensor:
    """a [M, K] and b [N, K] in int8 -> exact sums [M, N] in int32."""
    # Up to here every sum of products fits a float32's 24 bits.
    kind = torch.float32 if a.shape[1] * 127 * 127 < 1 << 24 else torch.float64
    return (a.to(kind) @ b.to(kind).t()).to(torch.int32)


def product_int8_meta(a, b):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=torch.int32)


def product_int8_library(a, b):
    """cuBLASLt wants more than 16 rows, and K and N as multiples of eight; rows of zeros are added where there are fewer."""
    rows, shared = a.shape
    if shared % 8 or b.shape[0] % 8:
        raise Unfit(f"a product of {rows} x {shared} x {b.shape[0]} (multiples of eight are needed)")
    if rows == 0:
        return product_int8_meta(a, b)
    if rows <= 16:
        a = torch.nn.functional.pad(a, (0, 0, 0, 17 - rows))
    return torch._int_mm(a, b.t())[:rows]


def product_fp8_torch(a, b, a_scale, b_scale, dtype):
    """(a * a_scale[:, None]) (b * b_scale[:, None])^T for e4m3 codes a [M, K], b [N, K]."""
    return ((a.float() @ b.float().t()) * a_scale.unsqueeze(1) * b_scale).to(dtype)


def product_fp8_meta(a, b, a_scale, b_scale, dtype):
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def product_fp8_library(a, b, a_scale, b_scale, dtype):
    """Scales by row and column need bfloat16 results and sizes that are multiples of 16."""
    if dtype != torch.bfloat16:
        raise Unfit(f"{dtype} results")
    if a.shape[1] % 16 or b.shape[0] % 16:
        raise Unfit(f"a product of {a.shape[0]} x {a.shape[1]} x {b.shape[0]} (multiples of 16 are needed)")
    if a.shape[0] == 0:
        return product_fp8_meta(a, b, a_scale, b_scale, dtype)
    return torch._scaled_mm(a, b.t(), a_scale.unsqueeze(1), b_scale.unsqueeze(0), out_dtype=dtype)
