"""LoRA (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x, for linear layers and convolutions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..frozen import FrozenConv, LoraLinear, LoraSite
from ..model import TrainableModel


class LoraAdapter:
    """One layer's pair (A, B). Their storage belongs to the run's flat buffer."""

    def __init__(self, module: torch.nn.Module, config: AdapterConfig, *, is_conv: bool):
        self.is_conv = is_conv
        self.module = module
        if is_conv:
            # A keeps the kernel, B is 1x1: the form that every loader reads.
            self.shapes = {
                "lora_A": (config.rank, module.in_channels // module.groups, *module.kernel_size),
                "lora_B": (module.out_channels, config.rank, 1, 1),
            }
        else:
            rank = min(config.rank, module.in_features, module.out_features)
            self.shapes = {"lora_A": (rank, module.in_features), "lora_B": (module.out_features, rank)}
        self.rank = self.shapes["lora_A"][0]
        # A layer narrower than the rank keeps the asked scale.
        self.scale = config.alpha / config.rank
        self.alpha = self.scale * self.rank
        self.tensors: dict[str, Tensor] = {}
        self._site: LoraSite | None = None

    def view(self, name: str, flat: Tensor) -> Tensor:
        """A stretch of a flat buffer as the tensor `name`. B of a linear layer lies transposed there, rank first:

        both products with it, and its gradient's, then run along rows, which is up to five times as fast.
        """
        shape = self.shapes[name]
        if name == "lora_B" and not self.is_conv:
            return flat.view(shape[1], shape[0]).t()
        return flat.view(shape)

    def initialise(self, generator: torch.Generator) -> None:
        """A as torch.nn.Linear is initialised, B zero: at step 0 the adapter is exactly the base."""
        a, b = self.tensors["lora_A"], self.tensors["lora_B"]
        bound = 1 / math.sqrt(a[0].numel())
        with torch.no_grad():
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
            b.zero_()

    def forward(self, x: Tensor, base, model: TrainableModel) -> Tensor:
        a, b = self.tensors["lora_A"], self.tensors["lora_B"]
        if not self.is_conv:
            site = self._site
            if site is None or site.base is not base:
                site = self._site = LoraSite(base, self.module, model, a, b, self.scale)
            return LoraLinear.apply(x, a, site)
        y = FrozenConv.apply(x, base, self.module, model) if x.requires_grad else base(x)
        m = self.module
        h = torch.nn.functional.conv2d(x.to(y.dtype), a.to(y.dtype), None, m.stride, m.padding, m.dilation)
        return y + torch.nn.functional.conv2d(h, b.to(y.dtype)) * self.scale

    def state(self) -> dict[str, Tensor]:
        """Key suffix -> tensor, as the stock loader reads them."""
        return {
            "lora_A.weight": self.tensors["lora_A"],
            "lora_B.weight": self.tensors["lora_B"],
            "alpha": torch.tensor(self.alpha, dtype=torch.float32),
        }
