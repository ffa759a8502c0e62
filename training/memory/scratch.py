"""What a convolution takes and gives back inside itself, which no count of tensors sees.

oneDNN copies its input and its weight into layouts of its own, the plain kernel unfolds its input, and our backward hands
an input without numbers that is spread out again. Measured at PyTorch's CPU allocator; a card's own workspace is not known here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _like(tensor: Tensor) -> Tensor:
    """Its shape on the CPU, without its memory."""
    return torch.empty(1, dtype=tensor.dtype).expand(tensor.shape)


def _backend(x: Tensor, weight: Tensor, stride, padding, dilation, transposed, output_padding, groups) -> str:
    chosen = torch._C._select_conv_backend(_like(x), _like(weight), None, stride, padding, dilation, transposed, output_padding, groups)
    return str(chosen).rsplit(".", 1)[-1]


def _forward(args: tuple, y: Tensor) -> int:
    x, weight, _bias, *rest = args
    if _backend(x, weight, *rest).startswith("Mkldnn"):
        return max(_bytes(x) + _bytes(weight), _bytes(y))
    size = weight.shape[2:].numel()
    return 0 if size == 1 else x.shape[0] * x.shape[1] * size * y.shape[2:].numel() * x.element_size()


def _backward(args: tuple, _result) -> int:
    dy, x, weight, _bias_sizes, *rest = args
    if _backend(x, weight, *rest[:-1]).startswith("Mkldnn"):
        return _bytes(x) + _bytes(dy) + _bytes(weight)
    return _bytes(x)


SCRATCH: dict[object, Callable[[tuple, object], int]] = {
    torch.ops.aten.convolution.default: _forward,
    torch.ops.aten.convolution_backward.default: _backward,
}


def scratch_bytes(function: object, args: tuple, result: object) -> int:
    """Of one operation on the CPU."""
    found = SCRATCH.get(function)
    return found(args, result) if found else 0
