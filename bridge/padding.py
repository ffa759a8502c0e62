"""A caption's padding, computed once instead of hundreds of times.

Wan's text encoder fills every caption up to 512 rows with zeros, and the network puts its text layers, keys and values over
all of them. A zero row is a zero row: whatever becomes of one becomes of all, and attention over m equal keys with equal
values is attention over a single one whose logit is larger by log m. So a caption is cut behind its last word, and the
rows that are left of the padding stand for all of it. The result is the same but for rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import comfy.ldm.wan.model
import torch
from torch import Tensor
from torch.nn.functional import pad

CAPTION = "c_crossattn"  # the argument of `apply_model`
# Networks that pad with zeros and read the caption row by row and by cross-attention alone. A subclass may do more with it.
NETWORKS = (comfy.ldm.wan.model.WanModel,)
ROWS = 64  # captions are cut at its multiples: a few shapes, for recorded graphs and raced attention
# In bfloat16 log m is off by up to 1.5 %. Three rows whose logits add up to m in turn are off by less than a hundred-thousandth.
STANDING = 3
NOTHING = -30.0  # exp of it is lost beside 1, and unlike -inf it has a gradient


@dataclass(frozen=True, eq=False)
class SharedPadding:
    num_rows: int  # of the caption as it is passed on
    num_rows_whole: int
    bias: Tensor  # [1, 1, 1, num_rows] to be added to cross-attention's logits


def pads_with_zeros(network: torch.nn.Module) -> bool:
    # With pictures in front of the words (img_emb) the caption isn't the first of cross-attention's keys.
    return type(network) in NETWORKS and network.img_emb is None


def cut(caption: Tensor) -> Tensor:
    """[1, T, C] without the zero rows at its end, up to a multiple of ROWS with room for those that stand for them; the same tensor if nothing is to be gained."""
    used = caption.ne(0).any(-1).nonzero()
    num_used = int(used[-1, 1]) + 1 if len(used) else 0
    num_rows = math.ceil((num_used + STANDING) / ROWS) * ROWS
    return caption if num_rows >= caption.shape[1] else caption[:, :num_rows].clone()


def filled_up(caption: Tensor, num_rows: int) -> Tensor:
    return pad(caption, (0, 0, 0, num_rows - caption.shape[1])) if num_rows > caption.shape[1] else caption


def padding_of(captions: Sequence[Tensor], num_rows_whole: int, *, dtype: torch.dtype, device: torch.device) -> SharedPadding | None:
    """For captions that are filled up to the longest of them; None where that one is whole."""
    num_rows = max(caption.shape[1] for caption in captions)
    if num_rows >= num_rows_whole:
        return None
    logits = [0.0] * (num_rows - STANDING) + standing_logits(num_rows_whole - num_rows + STANDING, dtype)
    return SharedPadding(num_rows=num_rows, num_rows_whole=num_rows_whole, bias=torch.tensor(logits, dtype=dtype, device=device).view(1, 1, 1, -1))


def standing_logits(count: int, dtype: torch.dtype) -> list[float]:
    """STANDING logits that `dtype` can hold, whose exponentials add up to `count`."""
    logits, left = [], float(count)
    for _ in range(STANDING):
        logit = _rounded_down(math.log(left), dtype) if left > math.exp(NOTHING) else NOTHING
        logits.append(logit)
        left -= math.exp(logit)
    return logits


def _rounded_down(value: float, dtype: torch.dtype) -> float:
    nearest = torch.tensor(value, dtype=dtype)
    if nearest.item() > value:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf, dtype=dtype))
    return nearest.item()


def attention_with(attention: Callable, padding: SharedPadding) -> Callable:
    """For `optimized_attention_override`: cross-attention is told by its number of keys, which no self-attention of the pass may have."""

    def biased(original, q, k, v, heads, mask=None, **kwargs):
        if mask is None and k.shape[-2] == padding.num_rows:
            mask = padding.bias.to(q.dtype)
        return attention(original, q, k, v, heads, mask=mask, **kwargs)

    return biased
