"""Kernels: what a training step may run faster than plain torch does, behind one door (door.py).

The functions here are what the rest of the engine calls. Where the door chose torch they are plain torch, differentiable by
autograd; else autograd Functions over torch operators of the namespace `pistachio`, which have meta implementations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import activation, codes, gate, neighbours, norm, rope
from .door import Door, door_of, open_door, shut_doors
from .operators import define_operators

define_operators()


def norm_modulate(
    x: Tensor, weight=None, bias=None, shift=None, scale=None, *, eps: float, centred: bool, plus: float = 1.0, codes_for: tuple[bool, int] | None = None,
) -> Tensor:
    """LayerNorm (`centred`) or RMSNorm of [B, T, C] with its frozen affine part, times (plus + scale), plus shift.

    `codes_for`: (fp8, group) of the 8-bit product that takes the result next; where the door chose so, it finds its codes made.
    """
    frozen, door = not any(v is not None and v.requires_grad for v in (weight, bias)), door_of(x.device)
    if frozen and door.implementation("norm_modulate") == "cuda":
        if door.implementation("norm_modulate_codes") != "cuda":
            codes_for = None
        return norm.NormModulate.apply(x, weight, bias, shift, scale, eps, centred, codes_for, plus)
    return norm.reference(x, weight, bias, shift, scale, eps=eps, centred=centred, plus=plus)


def gated_residual(x: Tensor, y: Tensor, gate_vector: Tensor) -> Tensor:
    """x + y gate; x and y [B, T, C], the gate [B, C], [B, 1, C] or [B, T, C]."""
    if door_of(x.device).implementation("gated_residual") == "cuda":
        return gate.GatedResidual.apply(x, y, gate_vector)
    return gate.reference(x, y, gate_vector)


def gelu(x: Tensor, *, tanh: bool) -> Tensor:
    if door_of(x.device).implementation("gelu8") == "cuda":
        return activation.Gelu8.apply(x, tanh)
    return activation.gelu_reference(x, tanh)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    """silu(a) b"""
    if door_of(a.device).implementation("swiglu8") == "cuda":
        return activation.SwiGlu8.apply(a, b)
    return activation.swiglu_reference(a, b)


def geglu(both: Tensor) -> Tensor:
    """Of [..., 2 C]: the first half of the columns times GELU, by erf, of the second."""
    if door_of(both.device).implementation("geglu8") == "cuda":
        return activation.GeGlu8.apply(both)
    return activation.geglu_reference(both)


def rms_rope(x: Tensor, weight: Tensor, table: Tensor, *, eps: float, whole_row: bool) -> Tensor:
    """x [B, T, H, D] may be overwritten. The weight must pass `rope.safe_weight`, asked once a layer."""
    if door_of(x.device).implementation("rms_rope_") == "cuda" and not weight.requires_grad:
        return rope.RmsRope.apply(x, weight, table, eps, whole_row)
    return rope.reference(x, weight, table, eps=eps, whole_row=whole_row)


def forget_inputs() -> None:
    """A run is over: what was kept of its last layers' inputs goes."""
    codes.forget()
    neighbours.forget()


__all__ = ["Door", "door_of", "open_door", "shut_doors", "norm_modulate", "gated_residual", "gelu", "swiglu", "geglu", "rms_rope", "forget_inputs"]
