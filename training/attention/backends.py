"""The implementations of attention that have a backward, and what each can't do.

Knows PyTorch's and two packages' functions; nothing of a host or a model. Tensors are [B, H, T, D]; keys and values may
have fewer heads than queries (grouped queries).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AMPERE = (8, 0)
FLASH_WIDTH = 256  # of a head, at most
SCORES_BYTES = 2 * 2**30  # of a score matrix that is written out, at most
MASK_ALIGNMENT = 8  # elements; xformers reads masks in such steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a call of attention asks for."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    width: int  # of a head
    dtype: str
    mask: str = ""  # its dtype, or ""

    @property
    def work(self) -> int:
        return self.batch * self.heads * self.queries * self.keys * self.width

    def __str__(self) -> str:
        return f"{self.queries}x{self.keys}, {self.heads} heads of {self.width}{', masked' if self.mask else ''}"


def shape_of(q: Tensor, k: Tensor, mask: Tensor | None) -> Shape:
    return Shape(
        batch=q.shape[0], heads=q.shape[1], key_heads=k.shape[1], queries=q.shape[2], keys=k.shape[2], width=q.shape[3],
        dtype=str(q.dtype).removeprefix("torch."), mask="" if mask is None else str(mask.dtype).removeprefix("torch."),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    name: str
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]
    # (shape, compute capability) -> a reason, or None
    why_not: Callable[[Shape, tuple[int, int]], str | None]


def _every_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    repeats = q.shape[1] // k.shape[1]
    return (k, v) if repeats == 1 else (k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1))


def _sdpa(backend: SDPBackend, *, native_groups: bool) -> Callable:
    def run(q, k, v, mask, scale):
        is_grouped = q.shape[1] != k.shape[1]
        if is_grouped and not native_groups:
            k, v = _every_head(q, k, v)
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=scale, enable_gqa=is_grouped and native_groups
            )

    return run


def _xformers(q, k, v, mask, scale):
    import xformers.ops

    k, v = _every_head(q, k, v)
    bias = None
    if mask is not None:
        bias = _aligned(additive(mask, q.dtype).expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
    out = xformers.ops.memory_efficient_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_bias=bias, scale=scale)
    return out.transpose(1, 2)


def _flash_attn(q, k, v, mask, scale):
    import flash_attn

    return flash_attn.flash_attn_func(*(t.transpose(1, 2) for t in (q, k, v)), softmax_scale=scale).transpose(1, 2)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of truths as numbers to add to the scores."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, float("-inf"))


def _aligned(mask: Tensor) -> Tensor:
    """The same numbers in rows that begin where xformers can read them."""
    keys = mask.shape[-1]
    room = mask.new_empty(*mask.shape[:-1], -(-keys // MASK_ALIGNMENT) * MASK_ALIGNMENT)
    room[..., :keys] = mask
    return room[..., :keys]


def _half_only(shape: Shape, capability: tuple[int, int]) -> str | None:
    if shape.dtype not in ("float16", "bfloat16"):
        return f"is for 16-bit numbers, and these are {shape.dtype}"
    return None if capability >= AMPERE else f"needs compute capability 8.0, and this is {capability[0]}.{capability[1]}"


def _flash_why_not(shape: Shape, capability: tuple[int, int]) -> str | None:
    if shape.mask:
        return "takes no mask"
    if shape.width > FLASH_WIDTH:
        return f"takes heads of up to {FLASH_WIDTH}"
    return _half_only(shape, capability)


def _math_why_not(shape: Shape, capability: tuple[int, int]) -> str | None:
    size_bytes = 4 * shape.batch * shape.heads * shape.queries * shape.keys
    return f"would write {size_bytes / 1e9:.1f} GB of scores" if size_bytes > SCORES_BYTES else None


def _package_why_not(package: str, further: Callable) -> Callable:
    def why_not(shape, capability):
        missing = _missing(package)
        return missing or further(shape, capability)

    return why_not


def _missing(package: str) -> str | None:
    try:
        if package == "xformers":
            import xformers.ops  # noqa: F401
        else:
            import flash_attn  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: built for another PyTorch
        return f"isn't installed ({error})"
    return None


def _nothing(shape: Shape, capability: tuple[int, int]) -> None:
    return None


# In the order in which equals are preferred.
BACKENDS = (
    Backend(name="cudnn", run=_sdpa(SDPBackend.CUDNN_ATTENTION, native_groups=True), why_not=_half_only),
    Backend(name="flash", run=_sdpa(SDPBackend.FLASH_ATTENTION, native_groups=True), why_not=_flash_why_not),
    Backend(name="flash-attn", run=_flash_attn, why_not=_package_why_not("flash_attn", _flash_why_not)),
    Backend(name="efficient", run=_sdpa(SDPBackend.EFFICIENT_ATTENTION, native_groups=False), why_not=_nothing),
    Backend(name="xformers", run=_xformers, why_not=_package_why_not("xformers", _nothing)),
    Backend(name="math", run=_sdpa(SDPBackend.MATH, native_groups=True), why_not=_math_why_not),
)
