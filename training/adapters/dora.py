"""DoRA (Liu et al. 2024, arXiv 2402.09353): c (W + s B A) x with c = m / |W + s B A|, a factor for each output row.

As in the paper (section 4.3) and PEFT the norm takes no gradient. The host divides `dora_scale` by
|W| instead, so what is saved for it is m (|W| + eps) / |W + s B A|, which at strength 1 gives the trained weight.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import PistachioError
from ..model import TrainableModel
from ..targets import Target
from .lora import LoraAdapter
from .start import StartPart

# Saved beside `dora_scale` for PEFT, whose norm is |W + s B A|; loaders of images don't know it.
PEFT_MAGNITUDE = "lora_magnitude_vector"
HOST_EPSILON = torch.finfo(torch.float32).eps  # added to |W| by the host, which patches in float32


class DoraAdapter(LoraAdapter):
    def __init__(self, target: Target, config: AdapterConfig, model: TrainableModel):
        super().__init__(target, config, model)
        self.shapes = {**self.shapes, "magnitude": (self.weight_shape[0],)}
        self._base_square: Tensor | None = None

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        with torch.no_grad():
            self.tensors["magnitude"].copy_(self.base_square().sqrt())

    def begin_at(self, parts: Sequence[StartPart]) -> None:
        part = self.only_part(parts)
        super().begin_at(parts)
        out = self.weight_shape[0]
        if "dora_scale" in part.tensors:
            scale = part.tensors["dora_scale"]
            if scale.shape[0] != out or scale.numel() != out:
                raise PistachioError(
                    f"The DoRA file to start from scales the inputs of '{self.path}', and this adapter scales outputs. Choose another file."
                )
            # As ComfyUI applies the file, whatever its trainer meant.
            magnitude = self.shaped("dora_scale", scale, (out,)) * self.row_norm() / (self.base_square().sqrt() + HOST_EPSILON)
        else:
            magnitude = self.shaped("magnitude", part.tensors["magnitude"], (out,))
        with torch.no_grad():
            self.tensors["magnitude"].copy_(magnitude)

    def forward(self, x: Tensor, base) -> Tensor:
        y = self.frozen(x, base)
        update = self.update(self.dropped(x).to(y.dtype))
        change = (self.tensors["magnitude"] / self.row_norm(y) - 1).to(y.dtype)
        bias = self.module.bias
        if self.is_conv:
            change = change.view(-1, 1, 1)
        without_bias = y if bias is None else y - bias.detach().to(y).view(-1, *[1] * (change.ndim - 1))
        # Written as changes to y: at step 0 both are zero, and y is the base's to the bit.
        return y + change * (without_bias + update) + update

    @torch.no_grad()
    def row_norm(self, like: Tensor | None = None) -> Tensor:
        """|W + s B A| [O], without making B A: |W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B, each dot over a row.

        `like`: gives the dtype of the one product with W; the default is the tensors' own.
        """
        a, b = self.tensors["lora_A"].flatten(1), self.tensors["lora_B"].flatten(1)
        with self.model.weight_for_backward(self.module, a if like is None else like) as weight:
            product = (weight.flatten(1) @ a.t().to(weight.dtype)).to(a.dtype)
        square = self.base_square() + 2 * self.scale * (product * b).sum(1) + self.scale**2 * ((b @ (a @ a.t())) * b).sum(1)
        # A row of zeros has no direction; it stays zero.
        return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()

    @torch.no_grad()
    def base_square(self) -> Tensor:
        """|W|^2 [O]; a vector, so it may be kept."""
        like = self.tensors["magnitude"]
        if self._base_square is None or self._base_square.dtype != like.dtype:
            with self.model.weight_for_backward(self.module, like.detach()) as weight:
                self._base_square = weight.flatten(1).square().sum(1)
        return self._base_square

    def state(self) -> dict[str, Tensor]:
        magnitude = self.tensors["magnitude"].detach().to(self.model.device)
        host = magnitude * (self.base_square().sqrt() + HOST_EPSILON) / self.row_norm()
        out = magnitude.shape[0]
        return super().state() | {
            "dora_scale": host.view(out, *[1] * (len(self.weight_shape) - 1)),
            PEFT_MAGNITUDE: magnitude.view(1, out, 1, 1) if self.is_conv else magnitude,
        }
