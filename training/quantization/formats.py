"""How a frozen weight matrix is stored in 8 or 4 bits: the layouts, and the plain torch that makes and reads them.

It is the reference that faster code is held against, on any device. Which layers are stored so, and what multiplies
by them, is not known here.

Shape suffixes: O out, I in, G groups of the input axis, R the group's size, B blocks of the flattened matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import PistachioError

E4M3_MAX = 448.0
INT8_MAX = 127.0
TINY = 1e-30  # a scale for a row of zeros

# Powers of four: a regular Hadamard matrix (equal row sums) exists for those, and ComfyUI's format takes no other.
ROTATION_GROUPS = (256, 64, 16)

NF4_BLOCK = 64
# Dettmers et al. 2023 (arXiv 2305.14314), as bitsandbytes stores them: quantiles of the normal distribution, with zero and both ends.
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedWeight:
    """One matrix [O, I], stored.

    | format       | codes                                  | scale       | group                      | W                           |
    |--------------|----------------------------------------|-------------|----------------------------|-----------------------------|
    | fp8-row      | float8_e4m3fn [O, I]                   | fp32 [O]    | 0                          | codes * scale               |
    | int8-convrot | int8 [O, I], of the rotated matrix     | fp32 [O]    | R, of the rotation         | rotate(codes * scale, R)    |
    | nf4          | uint8 [O * I / 2], first value in the  | fp32 [B]    | 64, values to a block of   | NF4_VALUES[codes] * scale   |
    |              | high four bits                         |             | the flattened matrix       |                             |
    """

    format: str
    codes: Tensor
    scale: Tensor
    shape: tuple[int, int]
    group: int = 0

    @property
    def size_bytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes


def rotation_group(in_features: int) -> int | None:
    """The largest of ROTATION_GROUPS that divides the input axis."""
    return next((group for group in ROTATION_GROUPS if in_features % group == 0), None)


@lru_cache(maxsize=16)
def hadamard(group: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[R, R], orthogonal, symmetric and so its own inverse; every row sums to the same (ConvRot: one outlier channel spreads evenly)."""
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    matrix = four
    while len(matrix) < group:
        matrix = torch.kron(matrix, four)
    return (matrix / group**0.5).to(device, dtype)


def rotate(values: Tensor, group: int) -> Tensor:
    """The last axis, group by group. Of weights and of activations alike, and its own inverse: rotate(x) rotate(W)^T = x W^T."""
    grouped = values.unflatten(-1, (-1, group))
    with torch.inference_mode(False):  # a cached tensor outlives the mode it was made in
        matrix = hadamard(group, values.device, values.dtype)
    return (grouped @ matrix).flatten(-2)


def why_not(shape: tuple[int, ...], format: str) -> str | None:
    """The reason that a weight of this shape can't be stored so, or None."""
    if len(shape) != 2:
        return f"it has {len(shape)} axes"
    if format == "int8-convrot" and rotation_group(shape[1]) is None:
        return f"its {shape[1]} inputs are no multiple of {ROTATION_GROUPS[-1]}"
    if format == "nf4" and shape[0] * shape[1] % NF4_BLOCK:
        return f"its {shape[0]} x {shape[1]} weights are no multiple of {NF4_BLOCK}"
    return None


def quantize(weight_OI: Tensor, format: str) -> PackedWeight:
    """Rounded to the nearest code. Raises PistachioError for weights that can't be stored so."""
    reason = why_not(tuple(weight_OI.shape), format)
    if reason:
        raise PistachioError(f"These weights can't be stored as {format}: {reason}. Keep the layer as it is, or choose another format.")
    return _QUANTIZE[format](weight_OI.float())


def dequantize(packed: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """[O, I]; worked out in float32."""
    return _DEQUANTIZE[packed.format](packed).to(dtype)


def rounding_bound(packed: PackedWeight) -> Tensor:
    """How far a stored value is from the true one at most, as a bound [O, I] on what was rounded (int8-convrot: the rotated matrix)."""
    if packed.format == "fp8-row":
        # Half a step of a float with three bits of mantissa; below the smallest normal number, half of the last step. The
        # relative part is of the true value, which is at most 1 + 1/16 times what is stored.
        stored = dequantize(packed).abs()
        return torch.maximum(stored / 15, packed.scale[:, None] * 2.0**-10)
    if packed.format == "int8-convrot":
        return (packed.scale[:, None] / 2).expand(packed.shape)
    widest = max(b - a for a, b in zip(NF4_VALUES, NF4_VALUES[1:])) / 2
    return (packed.scale * widest).repeat_interleave(NF4_BLOCK).view(packed.shape)


# ---- fp8-row -------------------------------------------------------------


def _quantize_fp8(weight_OI: Tensor) -> PackedWeight:
    scale_O = (weight_OI.abs().amax(1) / E4M3_MAX).clamp_(min=TINY)
    codes = (weight_OI / scale_O[:, None]).clamp_(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return PackedWeight(format="fp8-row", codes=codes, scale=scale_O, shape=tuple(weight_OI.shape))


def _dequantize_fp8(packed: PackedWeight) -> Tensor:
    return packed.codes.float() * packed.scale[:, None]


# ---- int8-convrot --------------------------------------------------------


def _quantize_int8(weight_OI: Tensor) -> PackedWeight:
    group = rotation_group(weight_OI.shape[1])
    rotated = rotate(weight_OI, group)
    scale_O = (rotated.abs().amax(1) / INT8_MAX).clamp_(min=TINY)
    codes = (rotated / scale_O[:, None]).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
    return PackedWeight(format="int8-convrot", codes=codes, scale=scale_O, shape=tuple(weight_OI.shape), group=group)


def _dequantize_int8(packed: PackedWeight) -> Tensor:
    return rotate(packed.codes.float() * packed.scale[:, None], packed.group)


# ---- nf4 -----------------------------------------------------------------


def _quantize_nf4(weight_OI: Tensor) -> PackedWeight:
    values = torch.tensor(NF4_VALUES, device=weight_OI.device)
    blocks = weight_OI.reshape(-1, NF4_BLOCK)
    scale_B = blocks.abs().amax(1)
    unit = blocks / scale_B.clamp(min=TINY)[:, None]
    codes = torch.bucketize(unit, (values[1:] + values[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return PackedWeight(
        format="nf4", codes=(codes[:, 0] << 4) | codes[:, 1], scale=scale_B, shape=tuple(weight_OI.shape), group=NF4_BLOCK
    )


def _dequantize_nf4(packed: PackedWeight) -> Tensor:
    values = torch.tensor(NF4_VALUES, device=packed.codes.device)
    codes = torch.stack([packed.codes >> 4, packed.codes & 15], -1).flatten()
    return (values.index_select(0, codes.int()).view(-1, NF4_BLOCK) * packed.scale[:, None]).view(packed.shape)


_QUANTIZE = {"fp8-row": _quantize_fp8, "int8-convrot": _quantize_int8, "nf4": _quantize_nf4}
_DEQUANTIZE = {"fp8-row": _dequantize_fp8, "int8-convrot": _dequantize_int8, "nf4": _dequantize_nf4}
FORMATS = tuple(_QUANTIZE)
