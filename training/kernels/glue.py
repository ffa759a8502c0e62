"""What the kernels' Python side shares: rows and their strides, block sizes, arguments.

A row kernel's tensors are [batch, token, column] with neighbouring columns; the other strides are free, and 0 repeats a vector.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_longlong

import torch
from torch import Tensor

from .programs import DTYPES

MAX_COLUMNS = 16384  # four groups of eight for each of 512 threads: what a thread can hold
MAX_CODED_COLUMNS = 24576  # three for each of 1024
MAX_TOKENS = 2**31 - 1
WIDTH = 8  # neighbours that a thread handles at once


class Unfit(Exception):
    """This call is outside what the kernel does; the message says why. The caller takes another implementation, aloud."""


def dtype_code(tensor: Tensor) -> int:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise Unfit(f"{name} values")
    return DTYPES[name]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def row_block(cols: int) -> tuple[int, int]:
    """(threads, groups of eight a thread holds) for rows that a block keeps whole: as many threads as leave none without work."""
    if cols > MAX_COLUMNS:
        raise Unfit(f"rows of {cols} values (at most {MAX_COLUMNS})")
    chunks = 1 if cols <= 2048 else 2 if cols <= MAX_COLUMNS // 2 else 4
    return warps_for(cols, chunks), chunks


def code_block(cols: int) -> tuple[int, int, int]:
    """(threads, the most that are compiled for, groups of eight a thread holds) for rows that become codes: one program for most widths."""
    if cols > MAX_CODED_COLUMNS:
        raise Unfit(f"rows of {cols} values (at most {MAX_CODED_COLUMNS})")
    most, chunks = (256, 1) if cols <= 2048 else (1024, 2) if cols <= MAX_COLUMNS else (1024, 3)
    return warps_for(cols, chunks), most, chunks


def warps_for(cols: int, chunks: int) -> int:
    """Threads, in whole warps."""
    return 32 * max(1, ceil_div(cols, 32 * WIDTH * chunks))


def column_blocks(cols: int, width: int = WIDTH) -> tuple[int, int]:
    """(blocks along a row, threads) where threads are independent."""
    threads = 32 * min(8, max(1, ceil_div(cols, 32 * width)))
    return ceil_div(cols, threads * width), threads


def is_aligned(*tensors: Tensor | None) -> bool:
    """May rows be read and written 16 bytes at a time?"""
    for tensor in tensors:
        if tensor is None:
            continue
        unit = 16 // tensor.element_size()
        if tensor.data_ptr() % 16 or tensor.shape[-1] % WIDTH or any(stride % unit for stride in tensor.stride()[:-1]):
            return False
    return True


def by_columns(tensor: Tensor) -> Tensor:
    """The same values with neighbouring columns; a copy only where they are not."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def three(tensor: Tensor) -> Tensor:
    """[batch, token, column]"""
    if tensor.ndim != 3:
        raise Unfit(f"{tensor.ndim} axes where batch, token and column are expected")
    return by_columns(tensor)


def steps(tensor: Tensor | None) -> tuple[c_longlong, c_longlong]:
    """Strides of batch and token."""
    return (long(0), long(0)) if tensor is None else (long(tensor.stride(0)), long(tensor.stride(1)))


def over_rows(vector: Tensor | None, like: Tensor) -> Tensor | None:
    """A vector [C], [B, C], [B, 1, C] or [B, T, C] of modulation as [B, T, C], without a copy."""
    if vector is None:
        return None
    if vector.ndim == 2:
        vector = vector.unsqueeze(1)
    return by_columns(vector).expand(like.shape)


def alike(*tensors: Tensor | None) -> tuple[int, tuple[Tensor | None, ...]]:
    """One element type for weights and modulation: their own where they agree, else float32."""
    kinds = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(kinds) > 1:
        tensors = tuple(None if tensor is None else tensor.float() for tensor in tensors)
    first = next((tensor for tensor in tensors if tensor is not None), None)
    return (0 if first is None else dtype_code(first)), tensors


def wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are worked out in."""
    return torch.promote_types(dtype, torch.float32)


def whole(value: int) -> ctypes.c_int:
    return c_int(value)


def long(value: int) -> ctypes.c_longlong:
    return c_longlong(value)


def real(value: float) -> ctypes.c_float:
    return c_float(value)
