"""Captions as the network takes them.

A stored CONDITIONING becomes, per picture, the keyword arguments of `apply_model`, through the
host's own `extra_conds`; pictures whose arguments have equal shapes share a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import comfy.sampler_helpers
import comfy.samplers

from ..training.errors import PistachioError
from ..training.transfer import on_device
from . import padding
from .families import guidance_of


@dataclass(frozen=True)
class HostCondition:
    arguments: dict  # name -> COND object of one sample, on the CPU
    group: str  # of the arguments as the host gave them
    num_rows_whole: int | None = None  # of the caption before its padding was cut; None where it may not be


@dataclass(frozen=True, eq=False)
class JoinedConditions:
    """Of a whole batch, on the device."""

    arguments: dict
    padding: padding.SharedPadding | None = None


def prepare(base_model, conditioning: list, latents: torch.Tensor) -> HostCondition:
    """`conditioning`: the host's [[tensor, dict]]; `latents`: [1, C, ...], whose size SDXL is told."""
    with torch.no_grad():
        arguments = host_arguments(base_model, _normal(conditioning[:1]), latents)
    arguments = {name: _normal_cond(value) for name, value in arguments.items()}
    group = group_of(arguments)
    # With anything else to attend to, keys couldn't be told from captions by their number.
    if set(arguments) != {padding.CAPTION} or not padding.pads_with_zeros(base_model.diffusion_model):
        return HostCondition(arguments=arguments, group=group)
    caption = arguments[padding.CAPTION]
    return HostCondition(
        arguments={padding.CAPTION: caption._copy_with(padding.cut(caption.cond))}, group=group, num_rows_whole=caption.cond.shape[1],
    )


def host_arguments(base_model, conditioning: list, latents: torch.Tensor) -> dict:
    """Name -> COND object for one sample; differentiable with respect to the conditioning's tensors."""
    guidance = guidance_of(base_model)
    converted = comfy.sampler_helpers.convert_cond([[tensor, {"guidance": guidance, **extra}] for tensor, extra in conditioning])
    noise = torch.zeros_like(latents)
    try:
        processed = comfy.samplers.process_conds(
            base_model, noise, {"positive": converted}, torch.device("cpu"),
            latent_image=torch.zeros_like(latents), denoise_mask=None, seed=0, latent_shapes=[list(noise.shape)],
        )
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise PistachioError(
            f"This model can't use the encoded captions ({type(error).__name__}: {error}). They were encoded with another "
            "model's text encoder: connect the CLIP that belongs to this MODEL to Encode Dataset."
        ) from error
    return {name: value.process_cond(batch_size=1, area=None) for name, value in processed["positive"][0]["model_conds"].items()}


def group_of(arguments: dict) -> str:
    """Samples whose arguments have one signature can be concatenated."""
    return ";".join(f"{name}={_signature(value)}" for name, value in sorted(arguments.items()))


def join(conditions: list[HostCondition], device: torch.device, *, dtype: torch.dtype, shares_padding: bool) -> JoinedConditions:
    """Keyword arguments of `apply_model` for the whole batch. `dtype`: of the network's computing."""
    arguments, shared, num_rows_whole = [condition.arguments for condition in conditions], None, conditions[0].num_rows_whole
    if num_rows_whole is not None:
        captions = [each[padding.CAPTION] for each in arguments]
        if shares_padding:
            shared = padding.padding_of([caption.cond for caption in captions], num_rows_whole, dtype=dtype, device=device)
        num_rows = num_rows_whole if shared is None else shared.num_rows
        arguments = [{padding.CAPTION: caption._copy_with(padding.filled_up(caption.cond, num_rows))} for caption in captions]
    return JoinedConditions(concatenate_arguments(arguments, device), shared)


def concatenate_arguments(arguments: list[dict], device: torch.device) -> dict:
    joined = comfy.samplers.cond_cat(arguments)
    return {name: _to(value, device) for name, value in joined.items()}


def _signature(value) -> str:
    cond = value.cond
    if torch.is_tensor(cond):
        return f"{type(value).__name__}{tuple(cond.shape)}"
    if isinstance(cond, (list, tuple)) and all(torch.is_tensor(c) for c in cond):
        return f"{type(value).__name__}{[tuple(c.shape) for c in cond]}"
    return f"{type(value).__name__}:{cond!r}"


def _normal_cond(value):
    """Inference tensors can't enter a training graph; a clone made outside inference mode can."""
    return value._copy_with(_normal(value.cond))


def _normal(value):
    if torch.is_tensor(value):
        return value.detach().clone() if value.is_inference() else value.detach()
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_normal(item) for item in value)
    return value


def _to(value, device):
    if torch.is_tensor(value):
        return on_device(value, device)
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, device) for item in value)
    return value
