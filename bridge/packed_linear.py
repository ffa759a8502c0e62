"""A linear layer whose weight is stored in 8 or 4 bits, and the patcher that lays LoRAs over it, in formats that the host has not.

The codes and their scale are ordinary parameters, so that the host moves, offloads and counts them as any other. A LoRA is
added to the weight each time it is read: rounded into the codes, most of it would be lost.
"""

from __future__ import annotations

import comfy.model_patcher
import comfy.ops
import torch
from torch import Tensor

from ..training.errors import PistachioError
from ..training.kernels.door import eight_bit_products
from ..training.kernels.linear import product
from ..training.quantization.formats import NF4_BLOCK, PackedWeight, dequantize

_nf4_values: dict[torch.device, Tensor] = {}


class PackedLinear(torch.nn.Module, comfy.ops.CastWeightBiasOp):
    """Computes in its input's dtype: y = x W^T + b, with W read from its codes."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None):
        super().__init__()
        self.format, self.group = packed.format, packed.group
        self.out_features, self.in_features = packed.shape
        self.weight_function, self.bias_function = [], []
        self.beside = None  # the LoRA's patch, when the host loads the layer as a whole
        # [O, I], nf4: [O, I / 2] or flat. The name `weight` is what LoRA keys are matched with.
        rows = packed.codes.numel() % self.out_features == 0
        self.weight = _parameter(packed.codes.view(self.out_features, -1) if rows else packed.codes)
        self.weight_scale = _parameter(packed.scale)
        self.bias = None if bias is None else _parameter(bias)

    def packed(self) -> PackedWeight:
        codes = self.weight.flatten() if self.format == "nf4" else self.weight
        return PackedWeight(
            format=self.format, codes=codes, scale=self.weight_scale, shape=(self.out_features, self.in_features), group=self.group
        )

    def dense_weight(self, like: Tensor) -> Tensor:
        """[O, I] in `like`'s dtype and device, with what the host lays over it. Fresh memory."""
        packed = self.packed()
        if packed.codes.device != like.device:
            packed = PackedWeight(
                format=packed.format, codes=packed.codes.to(like.device), scale=packed.scale.to(like.device), shape=packed.shape, group=packed.group
            )
        weight = _by_bitsandbytes(packed, like.dtype) if packed.format == "nf4" else dequantize(packed, like.dtype)
        for function in self._functions():
            weight = function(weight)
        return weight.to(like.dtype)

    def _functions(self) -> list:
        # The host adds the same patch itself when it moves the layer off the device.
        if self.beside is None or any(getattr(function, "key", None) == self.beside.key for function in self.weight_function):
            return self.weight_function
        return [self.beside, *self.weight_function]

    def multiplied(self, like: Tensor) -> PackedWeight | None:
        """The codes, where a product may be taken with them as they are: on `like`'s device, with nothing laid over them."""
        return self.packed() if self.weight.device == like.device and not self._functions() else None

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        bias = self.bias
        if bias is not None:
            bias = bias.to(x.device, x.dtype)
            for function in self.bias_function:
                bias = function(bias)
        if eight_bit_products(x.device, self.format):
            packed = self.multiplied(x)
            if packed is not None:
                return product(x.reshape(-1, x.shape[-1]), packed, bias).view(*x.shape[:-1], self.out_features)
        return torch.nn.functional.linear(x, self.dense_weight(x), bias)


def _parameter(tensor: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)


# ---- nf4 by bitsandbytes -------------------------------------------------


def bitsandbytes_functional():
    """Its module of kernels. PistachioError where it is not installed."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise PistachioError(
            f"nf4 needs the package bitsandbytes ({error}). Install it into ComfyUI's Python with 'pip install bitsandbytes', or choose another format."
        ) from error
    return bitsandbytes.functional


def pack_nf4(weight_OI: Tensor) -> PackedWeight:
    codes, state = bitsandbytes_functional().quantize_4bit(weight_OI.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
    return PackedWeight(format="nf4", codes=codes.flatten(), scale=state.absmax, shape=tuple(weight_OI.shape), group=NF4_BLOCK)


def _by_bitsandbytes(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    functional = bitsandbytes_functional()
    device = packed.codes.device
    if device not in _nf4_values:
        with torch.inference_mode(False):
            _nf4_values[device] = functional.get_4bit_type("nf4", device=device)
    state = functional.QuantState(
        absmax=packed.scale, shape=torch.Size(packed.shape), code=_nf4_values[device], blocksize=packed.group, quant_type="nf4", dtype=dtype
    )
    return functional.dequantize_4bit(packed.codes.unsqueeze(1), state)


# ---- LoRAs over it -------------------------------------------------------


class PackedPatcher(comfy.model_patcher.ModelPatcher):
    """The host's patcher, but that patches of a packed weight stay beside it."""

    def _packed_layer(self, key: str) -> PackedLinear | None:
        path, _, name = key.rpartition(".")
        if name != "weight":
            return None
        module = self.model.get_submodule(path)
        return module if isinstance(module, PackedLinear) else None

    def patch_weight_to_device(self, key, *args, **kwargs):
        layer = self._packed_layer(key)
        if layer is None:
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key in self.patches:
            layer.beside = comfy.model_patcher.LowVramPatch(key, self.patches)
        return layer.weight

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, *args, **kwargs):
        if self._packed_layer(key) is not None and key in combined_patches:
            raise PistachioError(
                "A LoRA given by hooks can't change weights that are stored in 8 or 4 bits. Use a LoRA loader node, or the model as it was before Quantize Base."
            )
        return super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        if unpatch_weights:
            for module in self.model.modules():
                if isinstance(module, PackedLinear):
                    module.beside, module.weight_function, module.bias_function = None, [], []
        return super().unpatch_model(device_to, unpatch_weights)
