"""The host's attention in training: what its networks call, answered by the backend that the run's race chose.

Knows the host's signature of `optimized_attention` in both of its forms; which backend is fast is `training.attention`'s.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from typing import Callable, Iterator

import comfy.ldm.modules.attention
import torch
from torch import Tensor

from ..training.attention import AUTO, AttentionTable, Dispatcher, Shape, choose, shape_of
from ..training.run import RunFolder

log = logging.getLogger("pistachio")

FILE = "attention.json"  # RunFolder.attention reads it
# The host splits larger batches: CUDA's grids end there.
LARGEST_BATCH = 2**15


def pytorch_attention(original, *args, **kwargs):
    """PyTorch's own choice: every backend it picks has a backward, unlike some that the host may have chosen."""
    return comfy.ldm.modules.attention.attention_pytorch(*args, **kwargs)


def attention_by(dispatcher: Dispatcher) -> Callable:
    """For `optimized_attention_override`."""

    def attention(original, q, k, v, heads, mask=None, attn_precision=None, skip_reshape=False, skip_output_reshape=False, **kwargs):
        if q.shape[0] <= LARGEST_BATCH:
            split_q, split_k, split_v, whole_mask = in_heads(q, k, v, heads, mask, skip_reshape=skip_reshape, grouped=kwargs.get("enable_gqa", False))
            backend = dispatcher.backend(split_q, split_k, whole_mask)
            if backend is not None:
                out = backend.run(split_q, split_k, split_v, whole_mask, kwargs.get("scale"))
                return out if skip_output_reshape else out.transpose(1, 2).flatten(2)
        return pytorch_attention(
            original, q, k, v, heads, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape,
            skip_output_reshape=skip_output_reshape, **kwargs,
        )

    return attention


def in_heads(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, *, skip_reshape: bool, grouped: bool):
    """[B, H, T, D] each, and the mask with as many axes."""
    if not skip_reshape:
        width = q.shape[-1] // heads
        q = q.reshape(q.shape[0], -1, heads, width).transpose(1, 2)
        # Grouped queries: keys and values have the heads that their width holds.
        k, v = (t.reshape(t.shape[0], -1, t.shape[-1] // width if grouped else heads, width).transpose(1, 2) for t in (k, v))
    while mask is not None and mask.ndim < 4:
        mask = mask.unsqueeze(1 if mask.ndim == 3 else 0)
    return q, k, v, mask


@contextmanager
def observed(model) -> Iterator[list[Shape]]:
    """The shapes of a forward's attention, in their order."""
    shapes: list[Shape] = []

    def attention(original, q, k, v, heads, mask=None, **kwargs):
        split = in_heads(q, k, v, heads, mask, skip_reshape=kwargs.get("skip_reshape", False), grouped=kwargs.get("enable_gqa", False))
        shapes.append(shape_of(split[0], split[1], split[3]))
        return pytorch_attention(original, q, k, v, heads, mask=mask, **kwargs)

    before, model.attention = model.attention, attention
    try:
        yield shapes
    finally:
        model.attention = before


def settle_attention(model, shapes: list[Shape], folder: RunFolder, *, batch_size: int, wanted: str = AUTO) -> str | None:
    """Race, or read what the run raced for before; from now on the model uses it. Returns the sentence for the report.

    `shapes`: of one picture; a step has `batch_size` of them at once.

    On a CPU PyTorch has one implementation: there is nothing to choose.
    """
    if model.device.type != "cuda" or not shapes:
        return None
    known = folder.attention()
    table = choose(
        [replace(shape, batch=batch_size * shape.batch) for shape in shapes], model.device, device_name=torch.cuda.get_device_name(model.device), capability=torch.cuda.get_device_capability(model.device),
        wanted=wanted, before=None if known is None else AttentionTable.from_json(known),
    )
    return use_table(model, table, folder)


def use_table(model, table: AttentionTable, folder: RunFolder) -> str:
    folder.write_json(FILE, table.to_json())
    model.attention = attention_by(Dispatcher(table))
    log.info("%s", table.note)
    return table.note
