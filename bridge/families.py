"""What differs between the host's architectures: which are proved, which can't be trained, and where their blocks are.

docs/families.md shows these tables; tests/nodes/test_families.py holds the two against each other.
"""

from __future__ import annotations

import torch

from ..training.messages import message

# Class of the host's configuration -> the family's name. tests/nodes/test_engine.py proves each over the host's own classes.
PROVED = {
    "SD15": "SD1.5",
    "SD20": "SD2.x",
    "SDXL": "SDXL", "SSD1B": "SDXL", "Segmind_Vega": "SDXL", "KOALA_700M": "SDXL", "KOALA_1B": "SDXL",  # one network, other depths
    "SD3": "SD3, SD3.5",
    "Flux": "Flux.1 dev",
    "FluxSchnell": "Flux.1 schnell",
    "Flux2": "Flux.2",
    "Chroma": "Chroma",
    "HiDream": "HiDream-I1",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "Lumina2": "Lumina Image 2.0",
    "AuraFlow": "AuraFlow",
    "PixArtSigma": "PixArt-Sigma",
    "WAN21_T2V": "Wan 2.1 T2V, Wan 2.2 T2V 14B",
    "WAN22_T2V": "Wan 2.2 TI2V 5B",
    "HunyuanVideo": "HunyuanVideo",
    "LTXV": "LTX-Video",
    "CosmosT2V": "Cosmos 1 T2W",
    "CosmosT2IPredict2": "Cosmos Predict2 T2I",
}

_PICTURE = "it needs a picture as input (image-to-video, control or upscaling)"
_SOUND = "it makes sound"
_SHAPES = "it makes three-dimensional shapes"
_RECOGNITION = "it recognises what is in a picture"
_CASCADE = "it works in two stages with latents of their own"

# Class of the host's configuration, its subclasses too -> why it can't be trained. Models that ask for a picture
# through the host's `concat_cond` (Wan I2V, Flux Fill, Hunyuan I2V, ...) are told by that, not by this table.
REFUSED = {
    "SVD_img2vid": _PICTURE, "Stable_Zero123": _PICTURE, "SD_X4Upscaler": _PICTURE, "SD21UnclipL": _PICTURE, "SD21UnclipH": _PICTURE,
    "SeedVR2": _PICTURE, "PiD": _PICTURE, "WAN21_Vace": _PICTURE, "WAN21_HuMo": _PICTURE, "WAN22_S2V": _PICTURE,
    "WAN22_Animate": _PICTURE, "WAN_Animate2": _PICTURE, "WAN21_SCAIL": _PICTURE, "WAN21_SCAIL2": _PICTURE, "WAN22_WanDancer": _PICTURE,
    "SDXLRefiner": "it only finishes the pictures of another model",
    "Stable_Cascade_C": _CASCADE, "Stable_Cascade_B": _CASCADE,
    "StableAudio": _SOUND, "ACEStep": _SOUND, "ACEStep15": _SOUND, "MiniMaxMusic3": _SOUND,
    "LTXAV": "it makes sound together with video", "MiniMaxH3": "it makes sound together with video",
    "Hunyuan3Dv2": _SHAPES, "Trellis2": _SHAPES, "TripoSplat": _SHAPES,
    "RT_DETR_v4": _RECOGNITION, "DepthAnything3": _RECOGNITION, "SAM3": _RECOGNITION,
}
# model_type names of the host whose objective is not "denoise this latent".
REFUSED_TYPES = {
    "IMG_TO_IMG": "it turns one picture into another",
    "IMG_TO_IMG_FLOW": "it turns one picture into another",
    "V_PREDICTION_DDPM": "its objective is not supported",
    "FLOW_AV": "it makes sound together with video",
}

# Guidance that a distilled network is told while training. Chroma has no distilled guidance: the host samples it at 0.
GUIDANCE = {"Chroma": 0.0}
DISTILLED_GUIDANCE = 1.0

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
UNET_BLOCKS = {"BasicTransformerBlock", "ResBlock"}  # SD1.5, SD2.x, SDXL


def blocks_of(network: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    for names in BLOCK_LISTS:
        lists = [(name, getattr(network, name)) for name in names if isinstance(getattr(network, name, None), BLOCK_CONTAINERS)]
        if lists:
            return [(f"{name}.{key}", block) for name, blocks in lists for key, block in blocks.named_children()]
    return [(path, module) for path, module in network.named_modules() if type(module).__name__ in UNET_BLOCKS]


def _names(model_config) -> list[str]:
    return [cls.__name__ for cls in type(model_config).__mro__]


def family_of(base_model) -> str:
    """The family's name for a person; of one that nobody has proved, the host's own."""
    name = type(base_model.model_config).__name__
    return PROVED.get(name, name)


def why_refused(base_model) -> str | None:
    """The reason, after "it can't be trained:", or None."""
    for name in _names(base_model.model_config):
        if name in REFUSED:
            return REFUSED[name]
    return REFUSED_TYPES.get(base_model.model_type.name)


def note_of(base_model) -> str | None:
    """What the run's report says of a family that nobody has proved."""
    name = type(base_model.model_config).__name__
    if name in PROVED:
        return None
    return message(
        "note.family",
        "{family} is not among the proved families (docs/families.md): it trains by the general path, and passed the checks at the "
        "start of the run, but its gradients were never compared with finite differences. Look at the samples early.",
        family=name,
    )


def guidance_of(base_model) -> float:
    """What a caption without a guidance of its own is given."""
    given = [GUIDANCE[name] for name in _names(base_model.model_config) if name in GUIDANCE]
    return given[0] if given else DISTILLED_GUIDANCE
