"""LoKr (Edalati et al. 2022, arXiv 2212.10650; LyCORIS): W + s kron(w1, w2), with w2 whole or w2a w2b.

kron(w1, w2) x is w1 X w2^T for x folded to X [i1, i2], so the update's matrix is never made.
Convolutions put the kernel into w2.
"""

from __future__ import annotations

from math import prod
from typing import Sequence

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..messages import message
from ..model import TrainableModel
from ..targets import Target
from .base import Adapter, kaiming_uniform
from .start import StartPart


def factorize(size: int, factor: int) -> tuple[int, int]:
    """(m, n) with m n = size and m <= n: m is `factor` where that divides, else the largest divisor up to it; -1: up to sqrt(size).

    LyCORIS's rule, so that its loaders and PEFT expect these shapes.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = size if factor < 0 else factor
    m = max(d for d in range(1, min(limit, int(size**0.5)) + 1) if size % d == 0)
    return m, size // m


class LokrAdapter(Adapter):
    file_keys = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")

    def __init__(self, target: Target, config: AdapterConfig, model: TrainableModel):
        super().__init__(target, config, model)
        out, inputs, *kernel = self.weight_shape
        (self.o1, self.o2), (self.i1, self.i2) = (factorize(size, config.lokr_factor) for size in (out, inputs))
        self.kernel = tuple(kernel)
        self.shapes = {"lokr_w1": (self.o1, self.i1)}
        self.is_decomposed = self.rank < max(self.o2, self.i2) / 2
        if self.is_decomposed:
            self.shapes |= {"lokr_w2_a": (self.o2, self.rank), "lokr_w2_b": (self.rank, self.i2 * prod(kernel))}
        else:
            self.shapes["lokr_w2"] = (self.o2, self.i2, *kernel)
            self.scale = 1.0  # a whole w2 has no rank, and loaders don't scale it

    @classmethod
    def notes(cls, adapters: Sequence[LokrAdapter]) -> tuple[str, ...]:
        whole = [adapter for adapter in adapters if not adapter.is_decomposed]
        if not whole:
            return ()
        return (message(
            "note.lokr",
            "LoKr: in {whole} of {layers} layers the larger factor ({height} x {width} at '{path}') is so small that it is whole: "
            "rank and alpha have no effect there. A smaller lokr_factor, such as 8, makes it larger.",
            whole=len(whole), layers=len(adapters), height=whole[0].o2, width=whole[0].i2, path=whole[0].path,
        ),)

    def initialise(self, generator: torch.Generator) -> None:
        """As LyCORIS: the last of w2 zero, the others as torch.nn.Linear is initialised."""
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                if name in ("lokr_w2", "lokr_w2_b"):
                    tensor.zero_()
                else:
                    tensor.copy_(kaiming_uniform(self.shapes[name], generator))

    def begin_at(self, parts: Sequence[StartPart]) -> None:
        part = self.only_part(parts)
        given = dict(part.tensors)
        rank = next((given[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in given), None)
        if "lokr_w1" not in given:
            given["lokr_w1"] = given.pop("lokr_w1_a") @ given.pop("lokr_w1_b")
        if not self.is_decomposed and "lokr_w2" not in given:
            product = given.pop("lokr_w2_a") @ given.pop("lokr_w2_b")
            given["lokr_w2"] = product.unflatten(1, (-1, *self.kernel)) if self.is_conv else product
        factor = (1.0 if rank is None else part.scale(rank)) / self.scale
        with torch.no_grad():
            for name, shape in self.shapes.items():
                # A file whose w2 is whole has no w2_a: its shape, (0,), is then what the error shows.
                value = self.shaped(name, given.get(name, torch.zeros(0)), shape)
                self.tensors[name].copy_(value * factor if name == "lokr_w1" else value)

    def forward(self, x: Tensor, base) -> Tensor:
        y = self.frozen(x, base)
        given = self.dropped(x).to(y.dtype)
        return y + (self._convolved(given) if self.is_conv else self._multiplied(given))

    def _multiplied(self, x: Tensor) -> Tensor:
        linear = torch.nn.functional.linear
        w = {name: tensor.to(x.dtype) for name, tensor in self.tensors.items()}
        h = x.reshape(-1, self.i1, self.i2)
        h = linear(linear(h, w["lokr_w2_b"]), w["lokr_w2_a"]) if self.is_decomposed else linear(h, w["lokr_w2"])
        h = linear(h.transpose(1, 2), w["lokr_w1"] * self.scale)  # [N, o2, o1]
        return h.transpose(1, 2).reshape(*x.shape[:-1], self.o1 * self.o2)

    def _convolved(self, x: Tensor) -> Tensor:
        w = {name: tensor.to(x.dtype) for name, tensor in self.tensors.items()}
        h = x.reshape(-1, self.i2, *x.shape[2:])
        if self.is_decomposed:
            h = self.convolve(h, w["lokr_w2_b"].view(-1, self.i2, *self.kernel))
            h = torch.nn.functional.conv2d(h, w["lokr_w2_a"].view(self.o2, -1, 1, 1))
        else:
            h = self.convolve(h, w["lokr_w2"])
        h = h.unflatten(0, (x.shape[0], self.i1))  # [B, i1, o2, h, w]
        h = torch.einsum("oi,bichw->bochw", w["lokr_w1"] * self.scale, h)
        return h.flatten(1, 2)
