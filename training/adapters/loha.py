"""LoHa (FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098): W + s (w1a w1b) * (w2a w2b), elementwise.

The update has no cheaper form than its matrix, so that is made for a product and dropped again: forward and
backward each make their own. Convolutions are flattened to [O, I x k x k], the form that every loader reads.
"""

from __future__ import annotations

from math import prod
from typing import Sequence

import torch
from torch import Tensor
from torch.autograd import Function

from ..config import AdapterConfig
from ..model import TrainableModel
from ..targets import Target
from .base import Adapter
from .start import StartPart

NAMES = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class LohaAdapter(Adapter):
    file_keys = NAMES

    def __init__(self, target: Target, config: AdapterConfig, model: TrainableModel):
        super().__init__(target, config, model)
        out, inputs = self.weight_shape[0], prod(self.weight_shape[1:])
        self.shapes = {
            "hada_w1_a": (out, self.rank), "hada_w1_b": (self.rank, inputs),
            "hada_w2_a": (out, self.rank), "hada_w2_b": (self.rank, inputs),
        }

    def initialise(self, generator: torch.Generator) -> None:
        """As LyCORIS: w2a zero, the others normal."""
        with torch.no_grad():
            for name, deviation in (("hada_w1_b", 1.0), ("hada_w1_a", 0.1), ("hada_w2_b", 1.0)):
                self.tensors[name].copy_(torch.empty(self.shapes[name]).normal_(0, deviation, generator=generator))
            self.tensors["hada_w2_a"].zero_()

    def begin_at(self, parts: Sequence[StartPart]) -> None:
        part = self.only_part(parts)
        factor = part.scale(part.tensors["hada_w1_b"].shape[0]) / self.scale
        with torch.no_grad():
            for name in NAMES:
                value = self.shaped(name, part.tensors[name], self.shapes[name])
                self.tensors[name].copy_(value * factor if name == "hada_w2_a" else value)

    def forward(self, x: Tensor, base) -> Tensor:
        y = self.frozen(x, base)
        return y + HadamardUpdate.apply(self.dropped(x).to(y.dtype), self, *(self.tensors[name] for name in NAMES))

    def delta(self) -> Tensor:
        """The update [O, I x k x k]."""
        w1_a, w1_b, w2_a, w2_b = (self.tensors[name].detach() for name in NAMES)
        return (w1_a @ w1_b).mul_(w2_a @ w2_b).mul_(self.scale)

    def gradients(self, d_delta: Tensor) -> tuple[Tensor, ...]:
        """Of the four tensors, from the update's."""
        w1_a, w1_b, w2_a, w2_b = (self.tensors[name].detach() for name in NAMES)
        d_delta = d_delta.to(w1_a.dtype) * self.scale
        d_first = d_delta * (w2_a @ w2_b)
        d_second = d_delta.mul_(w1_a @ w1_b)
        return d_first @ w1_b.t(), w1_a.t() @ d_first, d_second @ w2_b.t(), w2_a.t() @ d_second


class HadamardUpdate(Function):
    """delta x; keeps x alone. The tensors are arguments only so that autograd hands out their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, adapter: LohaAdapter, *tensors: Tensor) -> Tensor:
        ctx.adapter = adapter
        ctx.save_for_backward(x)
        delta = adapter.delta().to(x.dtype)
        if adapter.is_conv:
            return adapter.convolve(x, delta.view(adapter.weight_shape))
        return x @ delta.t()

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x,), adapter = ctx.saved_tensors, ctx.adapter
        delta = adapter.delta().to(dy.dtype)
        if adapter.is_conv:
            conv = adapter.module
            dx, d_delta, _ = torch.ops.aten.convolution_backward(
                dy, x, delta.view(adapter.weight_shape), None, conv.stride, conv.padding, conv.dilation, False, (0, 0), 1,
                (ctx.needs_input_grad[0], True, False),
            )
            d_delta = d_delta.flatten(1)
        else:
            dx = dy @ delta if ctx.needs_input_grad[0] else None
            d_delta = dy.reshape(-1, dy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        return dx, None, *adapter.gradients(d_delta)
