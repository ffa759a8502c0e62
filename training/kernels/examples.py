"""Arguments for every operation at a given size: what a self-test calls small, and a measurement at the size of a model.

Each operation of the table has one or more. Knows what an operation takes and which of it is overwritten; calls nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from . import adamw
from .activation import keep
from .table import OPERATIONS

RANK = 32
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    tokens: int
    width: int  # of a block; heads are of 128
    mlp: int
    adapter_weights: int


SMALL = Sizes(tokens=6, width=256, mlp=512, adapter_weights=1000)
WAN_14B = Sizes(tokens=4096, width=5120, mlp=13824, adapter_weights=153_000_000)  # 1024 x 1024, rank 32 on every linear


class Numbers:
    """Random numbers on a device, the same each time; the global generators are left alone."""

    def __init__(self, device: torch.device, seed: int = 0):
        self.device = torch.device(device)
        self.source = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = BF16, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.source).mul_(scale).to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.source)

    def integers(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int8) -> Tensor:
        return torch.randint(low, high, shape, device=self.device, generator=self.source, dtype=dtype)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    name: str
    operation: str
    arguments: Callable[[Numbers, Sizes], tuple]
    writes: tuple[int, ...] = ()  # places of the arguments that are overwritten
    flop: Callable[[Sizes], int] | None = None  # of a matrix product; what moves bytes alone has none
    codes: str = ""  # what a product multiplies: "int8" or "fp8"


# ---- arguments -----------------------------------------------------------


def _rows(n: Numbers, s: Sizes) -> Tensor:
    return n.normal(1, s.tokens, s.width)


def _norm(n, s):
    return _rows(n, s), None, None, n.normal(1, s.width, scale=0.1), n.normal(1, s.width, scale=0.1), 1e-6, True


def _norm_codes(n, s):
    given = _norm(n, s)
    # Scales are of the rounded result: small, where they are compared with float64's, nothing is rounded.
    return *(a.float() if s == SMALL and isinstance(a, Tensor) else a for a in given), False, 256


def _norm_backward(n, s):
    x = _rows(n, s)
    values = x.float()
    rstd = torch.rsqrt(values.var(-1, unbiased=False) + 1e-6)
    return _rows(n, s), x, values.mean(-1), rstd, None, n.normal(1, s.width, scale=0.1), True


def _sums(n, s):
    dy, x, mean, rstd, *_ = _norm_backward(n, s)
    return dy, x, mean, rstd, None, None


def _heads(n, s):
    x = n.normal(1, s.tokens, s.width // 128, 128)
    angles = n.uniform(1, s.tokens, 64) * 6
    table = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    return x, (1 + n.normal(s.width, dtype=torch.float32, scale=0.1)).to(BF16), table


def _rope(n, s):
    return (*_heads(n, s), 1e-6, True)


def _rope_backward(n, s):
    z, weight, table = _heads(n, s)
    return n.normal(*z.shape), z, weight, table, n.uniform(1, s.tokens) + 0.5, True


def _gelu_backward(n, s):
    return n.normal(s.tokens, s.mlp), *keep(n.normal(s.tokens, s.mlp)), True


def _swiglu_backward(n, s):
    return n.normal(s.tokens, s.mlp), *keep(n.normal(s.tokens, s.mlp)), *keep(n.normal(s.tokens, s.mlp))


def _geglu_backward(n, s):
    codes, scales = zip(*(keep(n.normal(s.tokens, s.mlp)) for _ in range(2)))
    return n.normal(s.tokens, s.mlp), torch.cat(codes, 1), torch.cat(scales, 1)


def _knobs(n):
    return adamw.knobs(n.device, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, step=3)


def _half(n):
    return torch.tensor(0.5, device=n.device)


def _adamw(n, s):
    count = s.adapter_weights
    p, g = (n.normal(count, dtype=torch.float32) for _ in range(2))
    return p, g, n.zeros(count), n.zeros(count).add_(1), _knobs(n), _half(n)


def _adamw8(n, s):
    from ..optimizers.eight_bit import dynamic_codes  # which stands above the layers that stand above this

    count, padded = s.adapter_weights, -(-s.adapter_weights // adamw.BLOCK) * adamw.BLOCK
    codes, scales = n.zeros(padded, dtype=torch.uint8), n.zeros(padded // adamw.BLOCK)
    grids = dynamic_codes(True).to(n.device), dynamic_codes(False).square().to(n.device)
    p, g = (n.normal(count, dtype=torch.float32) for _ in range(2))
    return (
        p, g, codes, scales, codes.clone(), scales.clone(), n.zeros(count, dtype=BF16), *grids, _knobs(n), _half(n), adamw.keys(n.device, 5),
    )


def _sums_int32(n, s):
    return n.integers(-(2**20), 2**20, s.tokens, s.width, dtype=torch.int32)


def _codes(n, rows, cols):
    return n.integers(-127, 128, rows, cols)


def _fp8(n, s, outputs):
    a, b = n.normal(s.tokens, s.width, scale=30.0).to(E4M3), n.normal(outputs, s.width, scale=30.0).to(E4M3)
    return a, b, n.uniform(s.tokens) * 0.01, n.uniform(outputs) * 0.01, BF16


def _lora(n, s, *, fp8=False, backward=False):
    """Forward: a weight's scales and a bias; backward: the weight on its side, rotated where it is int8."""
    inputs, outputs = (s.mlp, s.width) if backward else (s.width, s.mlp)
    draw = (lambda rows: n.normal(rows, inputs, scale=30.0).to(E4M3)) if fp8 else (lambda rows: _codes(n, rows, inputs))
    ends = (None, None) if backward else (n.uniform(outputs) * 0.01, n.normal(outputs))
    group = 256 if backward and not fp8 else 0
    return draw(s.tokens), draw(outputs), n.uniform(s.tokens) * 0.01, *ends, n.normal(s.tokens, RANK), n.normal(outputs, RANK), 0.5, group, BF16


def _product_flop(outputs: str) -> Callable[[Sizes], int]:
    return lambda s: 2 * s.tokens * s.width * getattr(s, outputs)


EXAMPLES = (
    Example(name="norm + modulate", operation="norm_modulate", arguments=_norm),
    Example(
        name="norm + modulate, to int8 too", operation="norm_modulate_codes", arguments=_norm_codes,
    ),
    Example(name="norm + modulate backward", operation="norm_modulate_backward", arguments=_norm_backward),
    Example(name="sums over tokens", operation="column_sums", arguments=_sums),
    Example(name="gated residual", operation="gated_residual", arguments=lambda n, s: (_rows(n, s), _rows(n, s), n.normal(1, s.width))),
    Example(name="GELU kept in 8 bits", operation="gelu8", arguments=lambda n, s: (n.normal(s.tokens, s.mlp), True)),
    Example(name="GELU backward from 8 bits", operation="gelu8_backward", arguments=_gelu_backward),
    Example(name="SwiGLU kept in 8 bits", operation="swiglu8", arguments=lambda n, s: (n.normal(s.tokens, s.mlp), n.normal(s.tokens, s.mlp))),
    Example(name="SwiGLU backward from 8 bits", operation="swiglu8_backward", arguments=_swiglu_backward),
    Example(name="GEGLU kept in 8 bits", operation="geglu8", arguments=lambda n, s: (n.normal(s.tokens, 2 * s.mlp),)),
    Example(name="GEGLU backward from 8 bits", operation="geglu8_backward", arguments=_geglu_backward),
    Example(name="RMSNorm + RoPE", operation="rms_rope_", arguments=_rope, writes=(0,)),
    Example(name="RMSNorm + RoPE backward", operation="rms_rope_backward", arguments=_rope_backward),
    Example(name="rows to int8, rotated", operation="quantise_rows", arguments=lambda n, s: (n.normal(s.tokens, s.width), None, False, 256)),
    Example(name="rows to int8, folded", operation="quantise_rows", arguments=lambda n, s: (n.normal(s.tokens, s.width), n.uniform(s.width), False, 0)),
    Example(name="rows to e4m3", operation="quantise_rows", arguments=lambda n, s: (n.normal(s.tokens, s.width), None, True, 0)),
    Example(
        name="sums to bf16, both scales", operation="rescale_rows",
        arguments=lambda n, s: (_sums_int32(n, s), n.uniform(s.tokens), n.uniform(s.width), None, 0, BF16),
    ),
    Example(
        name="sums to bf16, rotated", operation="rescale_rows", arguments=lambda n, s: (_sums_int32(n, s), n.uniform(s.tokens), None, None, 256, BF16),
    ),
    Example(
        name="weights to bf16", operation="rescale_rows", arguments=lambda n, s: (_codes(n, s.width, s.width), n.uniform(s.width), None, None, 256, BF16),
    ),
    Example(name="weights on their side", operation="transpose_bytes", arguments=lambda n, s: (_codes(n, s.width, s.width),)),
    Example(
        name="int8 product, to the width", operation="product_int8", codes="int8", flop=_product_flop("width"),
        arguments=lambda n, s: (_codes(n, s.tokens, s.width), _codes(n, s.width, s.width)),
    ),
    Example(
        name="int8 product, to the MLP", operation="product_int8", codes="int8", flop=_product_flop("mlp"),
        arguments=lambda n, s: (_codes(n, s.tokens, s.width), _codes(n, s.mlp, s.width)),
    ),
    Example(
        name="fp8 product, to the width", operation="product_fp8", codes="fp8", flop=_product_flop("width"), arguments=lambda n, s: _fp8(n, s, s.width),
    ),
    Example(name="fp8 product, to the MLP", operation="product_fp8", codes="fp8", flop=_product_flop("mlp"), arguments=lambda n, s: _fp8(n, s, s.mlp)),
    *(
        Example(
            name=f"LoRA linear in {codes}{', backward' if backward else ''}", operation=f"product_lora_{codes}", codes=codes, flop=_product_flop("mlp"),
            arguments=lambda n, s, fp8=codes == "fp8", backward=backward: _lora(n, s, fp8=fp8, backward=backward),
        ) for codes in ("int8", "fp8") for backward in (False, True)
    ),
    Example(name="AdamW", operation="adamw_", arguments=_adamw, writes=(0, 2, 3)),
    Example(name="AdamW 8-bit with Kahan", operation="adamw8_", arguments=_adamw8, writes=(0, 2, 3, 4, 5, 6)),
)


def without_example() -> list[str]:
    """Operations of the table that nothing here calls: an error of whoever added them."""
    return sorted(set(OPERATIONS) - {example.operation for example in EXAMPLES})
