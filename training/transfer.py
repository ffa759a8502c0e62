"""Small tensors on their way to the device, without anybody waiting for them."""

from __future__ import annotations

import torch
from torch import Tensor


def on_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """As `tensor.to`, but that the caller goes on at once: from ordinary memory a card's driver would wait for all that was asked of it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.to(dtype=dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype)
