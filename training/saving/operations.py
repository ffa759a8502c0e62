"""What an operation costs to run again, told from its kind and its shapes alone.

Knows PyTorch's operations; knows neither blocks nor models. An operation that is not named here is never run again:
its output is kept when something needs it.
"""

from __future__ import annotations

from enum import Enum
from math import prod

import torch
from torch import Tensor

# Cards do about 75 (RTX 3090) to 150 (H200, RTX 4090) bf16 FLOPs in the time of a byte. A product with fewer for each byte
# that it moves, as an adapter's with its rank are, is bound by memory and costs no more than an elementwise operation does.
DEAR_FLOPS_PER_BYTE = 75.0


class Kind(Enum):
    VIEW = "the same memory"
    CHEAP = "elementwise, a norm or a copy"
    PRODUCT = "a matrix product or a convolution"
    ATTENTION = "attention with its statistics"
    CHEAP_WRITE = "elementwise, in place"
    WRITE = "changes memory, and is not run again"
    OTHER = "not run again"


_CHEAP = {
    "add", "sub", "rsub", "mul", "div", "neg", "pow", "rsqrt", "sqrt", "reciprocal", "exp", "log", "sin", "cos", "tanh", "sigmoid", "silu",
    "gelu", "relu", "leaky_relu", "elu", "softplus", "hardtanh", "clamp", "clamp_min", "clamp_max", "abs", "square", "maximum", "minimum",
    "addcmul", "addcdiv", "lerp", "where", "masked_fill", "nan_to_num", "mean", "sum", "native_layer_norm", "native_group_norm",
    "_fused_rms_norm", "_softmax", "cat", "stack", "clone", "_to_copy", "constant_pad_nd", "repeat", "roll", "flip", "index_select",
    "upsample_nearest2d", "glu", "logical_not", "linalg_vector_norm",
}
_CHEAP_WRITES = {f"{name}_" for name in _CHEAP} | {"copy_", "addmm_", "baddbmm_"}
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "linear"}
OWN = "pistachio"  # namespace of this pack's kernels: products by name, else row work
_kinds: dict = {}


def kind_of(operation) -> Kind:
    kind = _kinds.get(operation)
    if kind is None:
        kind = _kinds[operation] = _find(operation)
    return kind


def _find(operation) -> Kind:
    namespace, _, name = operation._schema.name.partition("::")
    known = namespace == "aten"
    returns = [each.alias_info for each in operation._schema.returns]
    if operation._schema.is_mutable:
        in_place = len(returns) == 1 and returns[0] is not None and returns[0].is_write
        return Kind.CHEAP_WRITE if known and in_place and name in _CHEAP_WRITES else Kind.WRITE
    if name == "_unsafe_view" or (returns and all(info is not None for info in returns)):
        return Kind.VIEW
    if namespace == OWN:
        return Kind.PRODUCT if "product" in name else Kind.CHEAP
    if torch.Tag.nondeterministic_seeded in operation.tags:
        return Kind.ATTENTION if "scaled_dot_product" in name else Kind.OTHER
    if known and name in _CHEAP:
        return Kind.CHEAP
    if known and name in _PRODUCTS:
        return Kind.PRODUCT
    if "attention" in name:
        return Kind.ATTENTION
    return Kind.OTHER


def product_flops(operation, args: tuple, out: Tensor) -> int:
    """Of one run of a `Kind.PRODUCT` operation."""
    name = operation._schema.name.partition("::")[2]
    if name == "convolution":
        return convolution_flops(args[1].shape, out)
    inner = args[1 if name in ("addmm", "baddbmm") else 0].shape[-1]
    return 2 * inner * out.numel()


def convolution_flops(weight_shape: tuple[int, ...], out: Tensor) -> int:
    return 2 * prod(weight_shape[1:]) * out.numel()


def flops_per_byte(operation, args: tuple, out: Tensor) -> float:
    """FLOPs of a `Kind.PRODUCT` operation for each byte that it reads or writes."""
    if operation._schema.name.startswith(OWN):
        return float("inf")
    moved = sum(each.numel() * each.element_size() for each in args if torch.is_tensor(each)) + out.numel() * out.element_size()
    return product_flops(operation, args, out) / max(1, moved)
