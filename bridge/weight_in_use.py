"""The weight that a layer multiplies by, seen as it does so.

For layers of other packs, which keep weights in forms of their own and decode them in their forward (GGUF files): nothing
need be known of the form. The layer is called with no rows, so that nothing but the decoding is done.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..training.errors import PistachioError

PRODUCTS = (torch.nn.functional.linear, torch.nn.functional.conv2d)


class _Watch(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.weight: Tensor | None = None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in PRODUCTS:
            self.weight = kwargs["weight"] if "weight" in kwargs else args[1]
        return function(*args, **kwargs)


def weight_in_use(module: torch.nn.Module, like: Tensor) -> Tensor:
    """In `like`'s dtype and device. `module` must make its weight anew in each forward, or leave it alone."""
    if isinstance(module, torch.nn.Conv2d):
        x = like.new_zeros(0, module.in_channels, *module.kernel_size)
    else:
        x = like.new_zeros(0, module.in_features)
    with torch.no_grad(), _Watch() as watch:
        type(module).forward(module, x)  # the class's own: an adapter may stand on the instance
    if watch.weight is None:
        raise PistachioError(
            f"Layers of {type(module).__module__} can't be trained through: they don't multiply by torch's own linear or convolution. "
            "Load the model with one of ComfyUI's own loaders."
        )
    return watch.weight.detach().to(like.device, like.dtype)
