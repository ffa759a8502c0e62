"""One backward before a run writes anything, for families that nobody has proved.

A network that ComfyUI can only generate with fails here with a reason, not at step 1 of a run with a traceback.
"""

from __future__ import annotations

import torch

from ..training.adapted import AdaptedNetwork
from ..training.batches import TrainItem
from ..training.config import TrainConfig
from ..training.errors import PistachioError
from ..training.objective import prediction_error
from .model import HostModel


def try_backward(model: HostModel, item: TrainItem, config: TrainConfig, *, keep: str) -> None:
    """Inside `model.training()`. PistachioError when no adapter gets a gradient, or one that is not finite."""
    latents = item.latents.to(model.device, torch.float32)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    try:
        with AdaptedNetwork(model, config.adapter, seed=config.seed, keep=keep) as network:
            prediction_error(model, latents, noise, model.sigma_at(torch.tensor([0.5])), [item.condition]).sum().backward()
            size = network.gradients.norm().item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise PistachioError(
            f"ComfyUI's {model.family} network can't be trained: its backward fails ({error}). "
            "Choose a model of a family in docs/families.md."
        ) from error
    if not 0 < size < float("inf"):
        raise PistachioError(
            f"ComfyUI's {model.family} network gives the adapters a gradient of size {size}, so nothing could be learned. "
            "Choose a model of a family in docs/families.md, or precision 'fp32' on Train LoRA."
        )
