"""Where the host's blocks do what a row kernel does, family by family, and the kernels put there while a network trains.

A block's own code runs; its norms, gated layers and activations answer otherwise (training/kernels/pending.py). Only in passes
that autograd records, and only for operations that the door gave to a kernel: elsewhere nothing is replaced.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable, Iterator

import comfy.ldm.flux.math
import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import comfy.ops
import torch
from torch import Tensor, nn

from ..training import kernels
from ..training.kernels.door import eight_bit_products, opened
from ..training.kernels.pending import Heads, Joined, Norm, Product, settled
from ..training.kernels.rope import safe_weight
from ..training.patching import replaced_attribute, replaced_forward

log = logging.getLogger("pistachio")


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Paths within a block; a block without one of them is passed over."""

    modulated: dict[str, str] = field(default_factory=dict)  # a norm whose result is modulated -> the linear that reads it then
    norms: tuple[str, ...] = ()  # that stand alone
    heads: tuple[str, ...] = ()  # norms of queries and keys before their rotation
    whole_row: bool = False  # such a norm covers all heads
    gated: tuple[str, ...] = ()  # layers whose result a gate multiplies before it is added
    gelus: tuple[str, ...] = ()  # by tanh
    swiglus: tuple[str, ...] = ()
    geglus: tuple[str, ...] = ()  # by erf, with the projection before them
    adds_in_place: bool = False  # to what its norms were given, unless a kernel takes that addition


def _both(sides: tuple[str, ...], *paths: str) -> tuple[str, ...]:
    return tuple(f"{side}{path}" for side in sides for path in paths)


_SD3 = ("x_block.", "context_block.")
# Class of the network -> its blocks' places.
PLACES = {
    "WanModel": Places(
        modulated={"norm1": "self_attn.q", "norm2": "ffn.0"}, norms=("norm3", "cross_attn.norm_q", "cross_attn.norm_k"),
        heads=("self_attn.norm_q", "self_attn.norm_k"), whole_row=True, gated=("self_attn", "ffn"), gelus=("ffn.1",),
    ),
    "Flux": Places(
        modulated={"img_norm1": "img_attn.qkv", "img_norm2": "img_mlp.0", "txt_norm1": "txt_attn.qkv", "txt_norm2": "txt_mlp.0", "pre_norm": "linear1"},
        heads=(*_both(("img_attn.", "txt_attn.", ""), "norm.query_norm", "norm.key_norm"),),
        gated=("img_attn.proj", "img_mlp", "txt_attn.proj", "txt_mlp", "linear2"), gelus=("img_mlp.1", "txt_mlp.1", "mlp_act"),
        swiglus=("img_mlp.1", "txt_mlp.1", "mlp_act"), adds_in_place=True,
    ),
    "OpenAISignatureMMDITWrapper": Places(
        modulated={f"{side}{norm}": f"{side}{reader}" for side in _SD3 for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"))},
        gated=_both(_SD3, "attn.proj", "attn2.proj", "mlp"), gelus=_both(_SD3, "mlp.act"),
    ),
    "UNetModel": Places(norms=("norm1", "norm2", "norm3"), geglus=("ff.net.0", "ff_in.net.0")),
}
OPERATIONS = ("norm_modulate", "gated_residual", "gelu8", "swiglu8", "geglu8", "rms_rope_")


def _chosen(device: torch.device) -> set[str]:
    door = opened(device)
    return {name for name in OPERATIONS if door is not None and door.implementation(name) == "cuda"}


def note_left_out(device: torch.device, reason: str) -> None:
    chosen = _chosen(device)
    if chosen:
        opened(device).note(f"The kernels {', '.join(sorted(chosen))} are not called: {reason}.")


@contextmanager
def row_kernels(model) -> Iterator[None]:
    """Around a network whose adapters are on. `model`: HostModel."""
    door, chosen = opened(model.device), _chosen(model.device)
    if not chosen:
        yield
        return
    places = PLACES.get(type(model.network).__name__)
    if places is None:
        door.note(f"{model.family} computes its norms, gates and activations itself: Pistachio knows no place in its blocks for {', '.join(sorted(chosen))}.")
        yield
        return
    with ExitStack() as stack:
        count = sum(_replace(stack, model, block, places, chosen) for _, block in model.blocks())
        if "rms_rope_" in chosen and places.heads:
            if places.whole_row:
                stack.enter_context(replaced_attribute(comfy.ldm.wan.model, "apply_rope1", _rotation_of_one(comfy.ldm.wan.model.apply_rope1)))
            else:
                stack.enter_context(replaced_attribute(comfy.ldm.flux.math, "apply_rope", _rotation_of_two(comfy.ldm.flux.math.apply_rope)))
        if "gelu8" in chosen and places.gelus:
            count += _replace_folded_gelu(stack)
        log.info("Row kernels stand in %d places of %s.", count, model.family)
        yield


def _replace(stack: ExitStack, model, block: nn.Module, places: Places, chosen: set[str]) -> int:
    """How many places of this block have a kernel now."""
    modules = dict(block.named_modules())
    found: list[tuple[nn.Module, Callable]] = []
    if "norm_modulate" in chosen:
        for path, reader in places.modulated.items():
            if path in modules and _form(modules[path]) is not None:
                copied = places.adds_in_place and ("gated_residual" not in chosen or _adds_by_name(type(block)))
                found.append((modules[path], _modulated_norm(modules[path], model, modules.get(reader), copied)))
        found += [(modules[path], _norm(modules[path])) for path in places.norms if path in modules and _form(modules[path]) is not None]
    if "rms_rope_" in chosen:
        for path in places.heads:
            form = _form(modules[path]) if path in modules else None
            if form is not None and form.weight is not None and not form.centred and safe_weight(form.weight):
                found.append((modules[path], _heads(modules[path], places.whole_row)))
    if "gated_residual" in chosen and not _adds_by_name(type(block)):
        found += [(modules[path], _gated(modules[path])) for path in places.gated if path in modules]
    if "gelu8" in chosen:
        found += [(modules[path], _gelu(modules[path])) for path in places.gelus if isinstance(modules.get(path), nn.GELU) and modules[path].approximate == "tanh"]
    if "swiglu8" in chosen:
        found += [(modules[path], _swiglu(modules[path])) for path in places.swiglus if type(modules.get(path)).__name__ == "SiLUActivation"]
    if "geglu8" in chosen:
        found += [(modules[path], _geglu(modules[path])) for path in places.geglus if isinstance(modules.get(path), comfy.ldm.modules.attention.GEGLU)]
    for module, forward in found:
        stack.enter_context(replaced_forward(module, forward))
    return len(found)


@lru_cache(maxsize=None)
def _adds_by_name(block: type) -> bool:
    """`x.add_(y)` writes into x, where a waiting `x += y` gives another tensor: the two look alike to it."""
    try:
        return ".add_(" in inspect.getsource(block)
    except OSError:  # a host without its sources: nothing is known of the block
        return True


# ---- norms ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    weight: Tensor | None
    bias: Tensor | None
    eps: float | None  # None: of the input's type
    centred: bool


def _form(module: nn.Module) -> _Form | None:
    """None: another norm than the kernels'."""
    if getattr(module, "weight_function", None) or getattr(module, "bias_function", None):  # the caller's LoRA lies over it
        return None
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _Form(weight=module.weight, bias=module.bias, eps=module.eps, centred=True)
    if isinstance(module, nn.RMSNorm) and len(module.normalized_shape) == 1:
        return _Form(weight=module.weight, bias=None, eps=module.eps, centred=False)
    if type(module).__name__ == "RMSNorm" and set(module._parameters) == {"scale"}:  # of Flux, in hosts before it had the general one
        return _Form(weight=module.scale, bias=None, eps=1e-6, centred=False)
    return None


def _fits(x: Tensor, form: _Form) -> bool:
    tensors = [t for t in (form.weight, form.bias) if t is not None]
    return torch.is_grad_enabled() and type(x) is Tensor and x.is_floating_point() and all(t.device == x.device for t in tensors)


def _eps(form: _Form, x: Tensor) -> float:
    return torch.finfo(x.dtype).eps if form.eps is None else form.eps


def _norm(module: nn.Module) -> Callable:
    plain = module.forward

    def forward(x, *args, **kwargs):
        x, form = settled(x), _form(module)
        if args or kwargs or x.ndim != 3 or form is None or not _fits(x, form):
            return plain(x, *args, **kwargs)
        return kernels.norm_modulate(x, form.weight, form.bias, eps=_eps(form, x), centred=form.centred)

    return forward


def _modulated_norm(module: nn.Module, model, reader: nn.Module | None, copied: bool) -> Callable:
    plain = module.forward

    def forward(x, *args, **kwargs):
        x, form = settled(x), _form(module)
        if args or kwargs or x.ndim != 3 or form is None or not _fits(x, form):
            return plain(x, *args, **kwargs)

        def modulated(shift: Tensor, one_and_scale: Tensor) -> Tensor:
            kept = x.clone() if copied and x.requires_grad else x
            return kernels.norm_modulate(
                kept, form.weight, form.bias, shift, one_and_scale, eps=_eps(form, x), centred=form.centred, plus=0.0,
                codes_for=_codes_for(model, reader, x),
            )

        return Norm(x, lambda: plain(x), modulated)

    return forward


def _codes_for(model, reader: nn.Module | None, x: Tensor) -> tuple[bool, int] | None:
    """The form in which `reader` multiplies, where it does so in 8 bits."""
    if reader is None or not eight_bit_products(x.device):
        return None
    packed = model.packed_weight(reader, x)
    if packed is None or not eight_bit_products(x.device, packed.format):
        return None
    return (True, 0) if packed.format == "fp8-row" else (False, packed.group)


def _heads(module: nn.Module, whole_row: bool) -> Callable:
    plain = module.forward

    def forward(x, *args, **kwargs):
        x, form = settled(x), _form(module)
        if args or kwargs or form is None or not _fits(x, form):
            return plain(x, *args, **kwargs)

        def turned(x: Tensor, table: Tensor) -> Tensor:
            if whole_row:  # [B, T, H, D], the layer's own fresh result
                return kernels.rms_rope(x, form.weight, table, eps=_eps(form, x), whole_row=True)
            # [B, H, T, D], one of three views of a product: what is overwritten must be its own memory.
            own = x.transpose(1, 2).clone(memory_format=torch.contiguous_format)
            return kernels.rms_rope(own, form.weight, table, eps=_eps(form, x), whole_row=False).transpose(1, 2)

        return Heads(x, plain, turned)

    return forward


def _rotation_of_one(original: Callable) -> Callable:
    """Of Wan: x [B, T, H, D], its table [B or 1, T, 1, D / 2, 2, 2]."""

    def rotate(x, freqs):
        if isinstance(x, Heads) and x.new_shape is not None and freqs.ndim == 6 and freqs.shape[2] == 1 and freqs.shape[1] == x.new_shape[1]:
            return x.turn(freqs.squeeze(2))
        return original(settled(x), freqs)

    return rotate


def _rotation_of_two(original: Callable) -> Callable:
    """Of Flux: queries and keys [B, H, T, D], their table [B or 1, 1, T, D / 2, 2, 2]."""

    def rotate(q, k, freqs):
        if all(isinstance(x, (Heads, Joined)) for x in (q, k)) and freqs.ndim == 6 and freqs.shape[1] == 1:
            return tuple(x.turn(freqs.squeeze(1)) if isinstance(x, Heads) else x.turn(freqs.squeeze(1), 1) for x in (q, k))
        return original(settled(q), settled(k), freqs)

    return rotate


# ---- gates and activations -----------------------------------------------


def _gated(module: nn.Module) -> Callable:
    plain = module.forward

    def forward(*args, **kwargs):
        y = plain(*map(settled, args), **kwargs)
        if not torch.is_grad_enabled() or type(y) is not Tensor or y.ndim != 3:
            return y
        return Product(y, kernels.gated_residual)

    return forward


def _gelu(module: nn.Module) -> Callable:
    plain = module.forward

    def forward(x):
        x = settled(x)
        return kernels.gelu(x, tanh=True) if _activates(x) else plain(x)

    return forward


def _swiglu(module: nn.Module) -> Callable:
    plain = module.forward

    def forward(x):
        x = settled(x)
        return kernels.swiglu(*x.chunk(2, dim=-1)) if _activates(x) else plain(x)

    return forward


def _geglu(module: nn.Module) -> Callable:
    """The host's own: its projection, then a half of the columns times GELU of the other."""
    plain = module.forward

    def forward(x):
        x = settled(x)
        if not torch.is_grad_enabled():
            return plain(x)
        both = module.proj(x)
        if _activates(both):
            return kernels.geglu(both)
        value, gate = both.chunk(2, dim=-1)
        return value * nn.functional.gelu(gate)

    return forward


def _activates(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad and type(x) is Tensor and x.is_floating_point()


def _replace_folded_gelu(stack: ExitStack) -> int:
    """Newer hosts' Wan asks this table for the activation before its second layer."""
    table = getattr(comfy.ops, "INPUT_ACT_EAGER", None)
    if table is None or "gelu_tanh" not in table:
        return 0
    plain = table["gelu_tanh"]
    stack.callback(table.__setitem__, "gelu_tanh", plain)
    table["gelu_tanh"] = lambda x: kernels.gelu(x, tanh=True) if _activates(x) else plain(x)
    return 1
