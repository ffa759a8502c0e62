"""What differs between the host's architectures: where their blocks are, and which objects can't be trained."""

from __future__ import annotations

import torch

# Attribute of the network -> its repeated blocks, in the order they run.
BLOCK_LISTS = (
    ("joint_blocks",),  # SD3
    ("double_blocks", "single_blocks"),  # Flux, Chroma, HunyuanVideo
    ("double_stream_blocks", "single_stream_blocks"),  # HiDream
    ("double_layers", "single_layers"),  # AuraFlow
    ("transformer_blocks",),  # Qwen-Image, LTX-Video
    ("noise_refiner", "context_refiner", "layers"),  # Lumina2, Z-Image
    ("blocks",),  # Wan, Cosmos, PixArt
)
BLOCK_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)
UNET_BLOCKS = {"BasicTransformerBlock", "ResBlock"}  # SD1.5, SDXL

# model_type names of the host whose objective is not "denoise this latent".
UNTRAINABLE_TYPES = {
    "IMG_TO_IMG": "it turns one picture into another",
    "IMG_TO_IMG_FLOW": "it turns one picture into another",
    "V_PREDICTION_DDPM": "its objective is not supported",
}


def blocks_of(network: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    for names in BLOCK_LISTS:
        lists = [(name, getattr(network, name)) for name in names if isinstance(getattr(network, name, None), BLOCK_CONTAINERS)]
        if lists:
            return [(f"{name}.{key}", block) for name, blocks in lists for key, block in blocks.named_children()]
    return [(path, module) for path, module in network.named_modules() if type(module).__name__ in UNET_BLOCKS]
