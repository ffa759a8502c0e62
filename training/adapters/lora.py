"""LoRA (Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank) B A x, for linear layers and convolutions."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import PistachioError
from ..frozen import LoraLinear, LoraSite
from ..model import TrainableModel
from ..targets import Target
from .base import Adapter, kaiming_uniform
from .start import StartPart


class LoraAdapter(Adapter):
    """One layer's pair (A, B)."""

    def __init__(self, target: Target, config: AdapterConfig, model: TrainableModel):
        super().__init__(target, config, model)
        module = target.module
        if self.is_conv:
            # A keeps the kernel, B is 1x1: the form that every loader reads.
            self.shapes = {
                "lora_A": (self.rank, module.in_channels // module.groups, *module.kernel_size),
                "lora_B": (module.out_channels, self.rank, 1, 1),
            }
        else:
            # A layer narrower than the rank keeps the asked scale.
            self.rank = min(self.rank, module.in_features, module.out_features)
            self.shapes = {"lora_A": (self.rank, module.in_features), "lora_B": (module.out_features, self.rank)}
        self._site: LoraSite | None = None

    def view(self, name: str, flat: Tensor) -> Tensor:
        """B of a linear layer lies transposed, rank first:

        both products with it, and its gradient's, then run along rows, which is up to five times as fast.
        """
        shape = self.shapes[name]
        if name == "lora_B" and not self.is_conv:
            return flat.view(shape[1], shape[0]).t()
        return flat.view(shape)

    def initialise(self, generator: torch.Generator) -> None:
        """A as torch.nn.Linear is initialised, B zero."""
        with torch.no_grad():
            self.tensors["lora_A"].copy_(kaiming_uniform(self.shapes["lora_A"], generator))
            self.tensors["lora_B"].zero_()

    def begin_at(self, parts: Sequence[StartPart]) -> None:
        """Ranks left over stay as initialised: A random, B zero."""
        needed = sum(part.tensors["down"].shape[0] for part in parts)
        if needed > self.rank:
            raise PistachioError(
                f"The file to start from needs rank {needed} at '{self.path}', and this adapter has {self.rank}. "
                f"Set the rank to {needed} in Adapter Settings, or give this layer its own in rank_pattern."
            )
        a, b = self.tensors["lora_A"], self.tensors["lora_B"]
        with torch.no_grad():
            b.zero_()
            used = 0
            for part in parts:
                down, up = part.tensors["down"], part.tensors["up"]
                rank = down.shape[0]
                start, count = part.rows or (0, b.shape[0])
                a[used : used + rank] = self.shaped("A", down, (rank, *a.shape[1:]))
                scaled = self.shaped("B", up, (count, rank, *b.shape[2:])) * (part.scale(rank) / self.scale)
                b[start : start + count, used : used + rank] = scaled
                used += rank

    def forward(self, x: Tensor, base) -> Tensor:
        given = self.dropped(x)
        if not self.is_conv and given is x:
            site = self._site
            if site is None or site.base is not base:
                site = self._site = LoraSite(base, self.module, self.model, self.tensors["lora_A"], self.tensors["lora_B"], self.scale)
            return LoraLinear.apply(x, self.tensors["lora_A"], site)
        y = self.frozen(x, base)
        return y + self.update(given.to(y.dtype))

    def update(self, x: Tensor) -> Tensor:
        """scale B A x."""
        a, b = self.tensors["lora_A"].to(x.dtype), self.tensors["lora_B"].to(x.dtype)
        if self.is_conv:
            return torch.nn.functional.conv2d(self.convolve(x, a), b) * self.scale
        return torch.nn.functional.linear(torch.nn.functional.linear(x, a), b) * self.scale

    def state(self) -> dict[str, Tensor]:
        return {
            "lora_A.weight": self.tensors["lora_A"],
            "lora_B.weight": self.tensors["lora_B"],
            "alpha": torch.tensor(self.alpha, dtype=torch.float32),
        }
