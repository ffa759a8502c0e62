"""What the engine asks of a diffusion model.

The engine knows no host: `bridge.model.HostModel` implements this over ComfyUI's MODEL,
and the unit tests implement it over a few lines of torch.

Shapes: B batch; latents are [B, C, H, W] or [B, C, T, H, W].
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol, Sequence

import torch
from torch import Tensor

from .quantization.formats import PackedWeight

# What a text encoder gave for one caption, in the host's own form. The engine only carries it.
Condition = Any


class TrainableModel(Protocol):
    family: str  # the host's name for the architecture, e.g. "WAN21_T2V"
    network: torch.nn.Module  # module paths under it are the LoRA key names
    key_prefix: str  # "diffusion_model."
    device: torch.device
    is_flow: bool  # sigma in [0, 1] and velocity output
    patch_size: int  # latent pixels on a side of a token; asked for by a shift by resolution alone
    shares_padding: bool  # equal rows of a caption's padding are computed once; put to False where adapters treat equal rows differently

    def sigma_at(self, t_B: Tensor) -> Tensor:
        """Sigma [B] for t in (0, 1], 1 is pure noise; includes the model's shift."""

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        """The network's input scale aside, x_t of the host's own sampler."""

    def predict(self, x_t: Tensor, sigma_B: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Denoised latents x0_hat, float32, differentiable with respect to the adapters only."""

    def output_scale(self, sigma_B: Tensor) -> Tensor:
        """c_out [B]: d x0_hat / d network output. |x0_hat - x0|^2 / c_out^2 is the loss in the network's output space."""

    def skip_scale(self, sigma_B: Tensor) -> Tensor:
        """c_skip [B]: d x0_hat / d x_t at a fixed network output. Asked for by input perturbation alone."""

    def joined(self, conditions: Sequence[Condition]) -> Any:
        """A batch's conditions for `predict` to take in their place: every tensor of them on the device, what else is in them equal within a group."""

    @property
    def has_fixed_conditions(self) -> bool:
        """False where `predict` still makes something of a condition that depends on more than its tensors."""

    def condition_group(self, condition: Condition) -> str:
        """Conditions with equal groups can share one forward pass."""

    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        """The repeated blocks that may be checkpointed, in order; empty when the family has no recipe."""

    def is_linear(self, module: torch.nn.Module) -> bool:
        """True for every kind of linear layer the host uses, quantised ones included."""

    def is_conv(self, module: torch.nn.Module) -> bool:
        """True for a 2-D convolution."""

    def packed_weight(self, module: torch.nn.Module, like: Tensor) -> PackedWeight | None:
        """The codes of a linear layer on `like`'s device, where products may be taken with them. Asked for where a run wants products in 8 bits."""

    def packed_bias(self, module: torch.nn.Module, like: Tensor) -> Tensor | None:
        """The bias of a layer that has a packed weight, on `like`'s device and in its dtype."""

    def weight_for_backward(self, module: torch.nn.Module, like: Tensor) -> AbstractContextManager[Tensor]:
        """The frozen weight in `like`'s dtype and device, valid inside the context only (it may be a staging buffer)."""

    def row_kernels(self) -> AbstractContextManager[None]:
        """Norms, gates and activations of the blocks by the kernels that the door chose, around the adapters' forwards."""

    def row_kernels_left_out(self, reason: str) -> None:
        """They would be there, but for the reason."""

    def training(self) -> AbstractContextManager[None]:
        """Everything that must be switched for gradients to be right; restores the caller's model on exit, whatever happens."""

    def weights_on_host(self) -> AbstractContextManager[None]:
        """Inside `training()`: the network's weights wait in host memory, as they compute, and the host leaves the device to its caller."""
