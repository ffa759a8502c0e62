"""The noise scale of ComfyUI's MODEL: what the engine asks of `model_sampling`, without loading or running the network."""

from __future__ import annotations

import comfy.model_sampling
import torch
from torch import Tensor

from ..training.errors import PistachioError
from ..training.transfer import on_device

# Attributes in which the host's transformers keep the latent pixels on a side of a token.
PATCH_ATTRIBUTES = ("patch_size", "patch_spatial")


class HostNoise:
    def __init__(self, patcher, *, device: torch.device):
        self.device = device
        self.base_model = patcher.model
        self.network = self.base_model.diffusion_model
        self.family = type(self.base_model.model_config).__name__
        self.model_sampling = patcher.get_model_object("model_sampling")
        self.is_flow = isinstance(self.model_sampling, comfy.model_sampling.CONST)

    def sigma_at(self, t_B: Tensor) -> Tensor:
        # float64 keeps 1 - t exact enough near t = 1, where the schedules are steep.
        sigmas = [float(self.model_sampling.percent_to_sigma(1.0 - float(t))) for t in t_B.double()]
        return on_device(torch.tensor(sigmas, dtype=torch.float32), self.device)

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        # noise_scaling adds into the noise it is given.
        return self.model_sampling.noise_scaling(sigma_B, noise.clone(), latents, False)

    def output_scale(self, sigma_B: Tensor) -> Tensor:
        ones = torch.ones(sigma_B.shape[0], 1, 1, 1, device=sigma_B.device)
        return self.model_sampling.calculate_denoised(sigma_B, ones, torch.zeros_like(ones)).flatten()

    def skip_scale(self, sigma_B: Tensor) -> Tensor:
        ones = torch.ones(sigma_B.shape[0], 1, 1, 1, device=sigma_B.device)
        return self.model_sampling.calculate_denoised(sigma_B, torch.zeros_like(ones), ones).flatten()

    @property
    def patch_size(self) -> int:
        for name in PATCH_ATTRIBUTES:
            size = getattr(self.network, name, None)
            if size is not None:
                return size if isinstance(size, int) else int(size[-1])
        raise PistachioError(
            f"{self.family} does not say how many tokens a picture has. Choose shift 'model' or 'given' in Objective Settings."
        )

    def latent_shape(self, width: int, height: int) -> tuple[int, ...]:
        """Of a picture of this size in pixels, as far as tokens are counted."""
        # Older hosts don't say how much their VAEs shrink a picture: by 8, or by 16 where a token is one latent pixel.
        ratio = getattr(self.base_model.latent_format, "spacial_downscale_ratio", 16 if self._has_small_tokens() else 8)
        return 1, self.base_model.latent_format.latent_channels, height // ratio, width // ratio

    def _has_small_tokens(self) -> bool:
        return any(getattr(self.network, name, None) == 1 for name in PATCH_ATTRIBUTES)
