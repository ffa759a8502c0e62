"""A MODEL without its memory: the same modules over tensors that have a shape and no numbers.

What the engine does with a model can be tried on its shadow, to count what it would need. The model itself is not touched:
modules are copied, weights are not.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from typing import Callable, Iterator

import comfy.model_management
import comfy.model_sampling
import torch
from torch import Tensor

from .differentiable import attribute
from .families import note_of
from .model import HostModel

META = torch.device("meta")
PLENTY_BYTES = 1 << 40
FLASH_WIDTH = 256  # of a head, at most


def shadow_of(module: torch.nn.Module, dtype: torch.dtype, known: dict[int, torch.nn.Module] | None = None) -> torch.nn.Module:
    """`module` and all below it, each tensor on `meta`. `dtype`: of weights in a form that only the host can read."""
    known = {} if known is None else known
    if id(module) in known:
        return known[id(module)]
    shadow = copy.copy(module)
    known[id(module)] = shadow
    state = shadow.__dict__
    for name, value in list(state.items()):
        if isinstance(value, Tensor):
            state[name] = _meta(value, dtype)
    state["_parameters"] = {
        name: None if tensor is None else torch.nn.Parameter(_meta(tensor, dtype), requires_grad=False) for name, tensor in module._parameters.items()
    }
    state["_buffers"] = {name: None if tensor is None else _meta(tensor, dtype) for name, tensor in module._buffers.items()}
    state["_modules"] = {name: None if child is None else shadow_of(child, dtype, known) for name, child in module._modules.items()}
    for name in ("weight_function", "bias_function"):  # patches of the caller's LoRAs, over real tensors
        if state.get(name):
            state[name] = []
    state.pop("_v", None)  # the place of a weight in newer hosts' dynamic memory
    return shadow


def _meta(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    plain = type(tensor) in (Tensor, torch.nn.Parameter)
    with torch.inference_mode(False):
        return torch.empty(tensor.shape, dtype=tensor.dtype if plain else dtype, device=META)


class ShadowModel(HostModel):
    """`HostModel` over a shadow, as it would run on `device`. Nothing is loaded and nothing is computed."""

    def __init__(self, patcher, *, device: torch.device, precision: str = "auto"):
        self.patcher = patcher
        self.runs_on = device
        self.device = META
        base = patcher.model
        self.compute_dtype = self._compute_dtype(precision)
        self.base_model = shadow_of(base, self.compute_dtype)
        self.network = self.base_model.diffusion_model
        self.family = type(base.model_config).__name__
        self.model_sampling = patcher.get_model_object("model_sampling")  # the real one: it says sigmas
        sampling = shadow_of(self.model_sampling, torch.float32) if isinstance(self.model_sampling, torch.nn.Module) else self.model_sampling
        self.base_model.model_sampling = sampling
        self.is_flow = isinstance(self.model_sampling, comfy.model_sampling.CONST)
        self.notes = tuple(filter(None, [note_of(base)]))
        self.latent_channels = base.latent_format.latent_channels

    def _compute_dtype(self, precision: str) -> torch.dtype:
        if precision == "auto":
            return torch.float32 if self.runs_on.type == "cpu" else torch.bfloat16
        return super()._compute_dtype(precision)

    @contextmanager
    def training(self) -> Iterator[None]:
        # For the backward too: blocks run again there.
        with (
            super().training(), attribute(torch.nn.functional, "scaled_dot_product_attention", _attention_of(self.runs_on.type)),
            attribute(comfy.model_management, "get_free_memory", _plenty),
        ):
            yield


def _plenty(_device=None, torch_free_too: bool = False):
    """The host's chunked attention, which some networks use on a CPU, asks what is free on the device it runs on."""
    return (PLENTY_BYTES, PLENTY_BYTES) if torch_free_too else PLENTY_BYTES


def _attention_of(device_type: str) -> Callable[..., Tensor]:
    """PyTorch's attention as a device would run it: on `meta` alone it would fall back to keeping all scores."""

    def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if enable_gqa:
            k, v = (tensor.repeat_interleave(q.shape[-3] // tensor.shape[-3], -3) for tensor in (k, v))
        if device_type == "cpu":
            return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
        if attn_mask is None and q.shape[-1] <= FLASH_WIDTH and q.dtype is not torch.float32:
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
        mask = attn_mask if attn_mask is None else attn_mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, mask, True, dropout_p, is_causal, scale=scale)[0]

    return attention
