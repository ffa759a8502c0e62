"""What there is to train on, as the checks ask for it: free disk, device memory, sizes of the model and of a LoRA.

Counts and asks; loads and moves nothing.
"""

from __future__ import annotations

import comfy.model_management
import torch

from ..dataset.files import free_bytes
from ..dataset.quality_checks import Machine
from ..training.config import AdapterConfig
from .folders import runs_folder

LORA_ITEM_BYTES = 4  # fp32


def machine_for(model=None) -> Machine:
    """`model`: the host's MODEL, or None where it is not known yet."""
    try:
        free_disk_bytes = free_bytes(runs_folder())
    except OSError:
        free_disk_bytes = None  # a network drive that does not tell
    device = comfy.model_management.get_torch_device()
    return Machine(
        free_disk_bytes=free_disk_bytes,
        device="GPU" if device.type != "cpu" else "computer",
        device_bytes=int(comfy.model_management.get_total_memory(device)),
        model_bytes=int(model.model_size()) if model is not None else None,
        lora_bytes=_lora_bytes(model.model.diffusion_model) if model is not None else None,
    )


def _lora_bytes(network: torch.nn.Module) -> int:
    """Of a LoRA at the default rank on every linear layer."""
    rank = AdapterConfig().rank
    layers = (m for m in network.modules() if isinstance(m, torch.nn.Linear))
    return sum(rank * (layer.in_features + layer.out_features) * LORA_ITEM_BYTES for layer in layers)
