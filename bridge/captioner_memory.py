"""A loaded JoyCaption as one of ComfyUI's models: it makes room like any other, and is evicted when another model needs the room.

Weights in bf16 or fp32 move to the CPU's memory and come back. Quantised ones are made on the device and can't be moved by
every version of bitsandbytes, and those of a GGUF file are llama.cpp's: evicting drops them, and the next batch loads them
anew. Knows nothing of captions.
"""

from __future__ import annotations

import gc
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

from ..dataset.joycaption.lazy import Loaded


class _Holder(nn.Module):
    """The host sets attributes such as `device`, which are read-only on a transformers model."""

    def __init__(self, model: nn.Module | None, device: torch.device):
        super().__init__()
        self.joycaption = model  # None: another library holds the weights
        self.device = device if model is None else next(model.parameters()).device

    def get_dtype(self) -> torch.dtype:
        return torch.float32 if self.joycaption is None else self.joycaption.dtype


class _Patcher(comfy.model_patcher.ModelPatcher):
    """On the device whole or not at all: transformers' layers can't fetch a weight when they need it, as the host's can."""

    def partially_unload(self, *arguments: Any, **named: Any) -> int:
        return 0  # the host then unloads all of it


class _DroppedWhenEvicted(_Patcher):
    residence: "HostResidence"

    def detach(self, unpatch_all: bool = True) -> Any:
        if unpatch_all:  # False: only taken off the host's list, to be put on again
            self.residence.drop()
            return self.model
        return super().detach(unpatch_all)


class HostResidence:
    """`dataset.joycaption.lazy.Residence` over the host's memory management."""

    def __init__(self) -> None:
        self.device = comfy.model_management.get_torch_device()
        self.offload_device = comfy.model_management.text_encoder_offload_device()
        self._patcher: _Patcher | None = None
        self._captioner: Loaded | None = None

    def loading_device(self, *, quantized: bool) -> torch.device:
        return self.device if quantized else self.offload_device

    def before_load(self, size_bytes: int) -> None:
        comfy.model_management.free_memory(size_bytes + comfy.model_management.minimum_inference_memory(), self.device)

    def admit(self, captioner: Loaded) -> None:
        kind = _DroppedWhenEvicted if captioner.quantized else _Patcher
        load_device = self.device
        offload_device = self.device if captioner.quantized else self.offload_device
        self._patcher = kind(_Holder(captioner.model, self.device), load_device=load_device, offload_device=offload_device)
        if captioner.quantized:
            self._patcher.residence = self
        self._captioner = captioner

    def enter(self, working_bytes: int) -> None:
        comfy.model_management.load_models_gpu([self._patcher], memory_required=working_bytes, force_full_load=True)

    def leave(self) -> None:
        self._patcher = self._captioner = None
        gc.collect()
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache()

    def drop(self) -> None:
        """The host takes the room of quantised weights back."""
        # the empty patcher stays: the host is about to take it off its list, and must find it there
        self._patcher.model.joycaption = None
        self._captioner.free()
