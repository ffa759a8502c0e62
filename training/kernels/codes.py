"""Rows that were made codes last, for whoever multiplies the same rows next: q, k and v read x once, and a norm may hand its own over.

One entry a device, found by the memory itself: its storage must be alive, unwritten since, and seen from the same place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Kept(NamedTuple):
    storage: StorageWeakRef  # while it is held no other memory gets this one's identity
    place: tuple
    codes: Tensor
    scales: Tensor


_last: dict[torch.device, _Kept] = {}


def place_of(x: Tensor) -> tuple | None:
    """What tells these rows, unwritten, from any other while their storage lives; None where nothing does."""
    if x.is_inference() or x.device.type == "meta" or type(x) not in (Tensor, torch.nn.Parameter):
        return None  # no count of writes, or no memory
    # A captured graph must hold all that it reads.
    captured = x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    return x.untyped_storage()._cdata, x._version, x.storage_offset(), x.numel() // max(1, x.shape[-1]), x.shape[-1], x.dtype, captured


def _place(x: Tensor, fp8: bool, group: int) -> tuple | None:
    place = place_of(x) if x.is_contiguous() else None
    return None if place is None else (*place, fp8, group)


def remember(x: Tensor, codes: Tensor, scales: Tensor, fp8: bool, group: int) -> None:
    """`codes` and `scales` are of the rows of x, which lies without gaps."""
    place = _place(x, fp8, group)
    if place is not None:
        _last[x.device] = _Kept(StorageWeakRef(x.untyped_storage()), place, codes, scales)


def codes_of(x: Tensor, fp8: bool, group: int) -> tuple[Tensor, Tensor]:
    """Of the rows of x [N, C]."""
    kept, place = _last.get(x.device), _place(x, fp8, group)
    if kept is not None and place is not None and kept.place == place and not kept.storage.expired():
        return kept.codes, kept.scales
    codes, scales = torch.ops.pistachio.quantise_rows(x, None, fp8, group)
    remember(x, codes, scales, fp8, group)
    return codes, scales


def forget() -> None:
    _last.clear()
