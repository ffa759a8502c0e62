"""What every adapter of one layer shares: its tensors in the run's flat buffer, its scale, its input in training.

An adapter knows its layer through `TrainableModel` alone and never keeps a weight of it.
"""

from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor

from ..config import AdapterConfig
from ..errors import PistachioError
from ..frozen import FrozenConv, FrozenLinear
from ..model import TrainableModel
from ..targets import Target
from .start import StartPart


def whole_input(x: Tensor) -> Tensor:
    """The adapter's input where nothing is dropped."""
    return x


class Adapter:
    """The tensors of one adapted layer. Their storage belongs to the run's flat buffer."""

    shapes: dict[str, tuple[int, ...]]  # name -> shape, in their order in the flat buffer
    file_keys: tuple[str, ...] = ()  # names whose tensor is saved under the name itself

    def __init__(self, target: Target, config: AdapterConfig, model: TrainableModel):
        self.path, self.module, self.is_conv, self.model = target.path, target.module, target.is_conv, model
        self.rank, self.scale = target.rank, target.scale
        self.tensors: dict[str, Tensor] = {}
        self.dropped = whole_input  # the network puts its dropout here

    @property
    def alpha(self) -> float:
        """As saved: loaders scale by alpha / rank."""
        return self.scale * self.rank

    def view(self, name: str, flat: Tensor) -> Tensor:
        """A stretch of a flat buffer as the tensor `name`."""
        return flat.view(self.shapes[name])

    def initialise(self, generator: torch.Generator) -> None:
        """At step 0 the adapter is exactly the base."""
        raise NotImplementedError

    def begin_at(self, parts: Sequence[StartPart]) -> None:
        """Take the weights of a file instead, so that the forward is the file's at strength 1."""
        raise NotImplementedError

    def forward(self, x: Tensor, base) -> Tensor:
        """The adapted layer. `base`: the layer as the host runs it."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Key suffix -> tensor, as the stock loader reads them."""
        return {name: self.tensors[name] for name in self.file_keys if name in self.tensors} | {"alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    @classmethod
    def notes(cls, adapters: Sequence[Adapter]) -> tuple[str, ...]:
        """What the user should know of settings that had no effect in some layers."""
        return ()

    def frozen(self, x: Tensor, base) -> Tensor:
        """The layer alone, for gradients that pass through it."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return base(x)
        return (FrozenConv if self.is_conv else FrozenLinear).apply(x, base, self.module, self.model)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """With the layer's stride, padding and dilation."""
        m = self.module
        return torch.nn.functional.conv2d(x, weight, None, m.stride, m.padding, m.dilation)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        m = self.module
        return (m.out_channels, m.in_channels, *m.kernel_size) if self.is_conv else (m.out_features, m.in_features)

    # ---- weights of a file -----------------------------------------------

    def only_part(self, parts: Sequence[StartPart]) -> StartPart:
        if len(parts) != 1 or parts[0].rows is not None:
            raise PistachioError(
                f"The file to start from splits '{self.path}' into several layers, which only 'lora' can join. "
                "Choose another file, or the kind 'lora', in Adapter Settings."
            )
        return parts[0]

    def shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The file's tensor in our shape; 1 x 1 kernels may be written or left out."""
        squeezed = tuple(size for size in tensor.shape if size != 1)
        if tensor.numel() != math.prod(shape) or squeezed != tuple(size for size in shape if size != 1):
            raise PistachioError(
                f"'{name}' of '{self.path}' in the file to start from is {tuple(tensor.shape)}, and this adapter's is {tuple(shape)}. "
                "Set the rank (and the LoKr factor) of the file in Adapter Settings, or choose a file made for this model."
            )
        return tensor.to(self.tensors[next(iter(self.shapes))]).reshape(shape)


def kaiming_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """As torch.nn.Linear is initialised."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
