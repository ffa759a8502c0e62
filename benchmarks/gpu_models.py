"""Networks for the GPU suite: every family small, and four at full size, with random weights made on the device.

They are objects of ComfyUI's own classes under its ModelPatcher, with captions of random numbers, so that neither files
nor text encoders are needed. Knows sizes; knows nothing of what is measured.
"""

from __future__ import annotations

from typing import Any

import torch
from support.tiny_networks import FAMILIES, NEWER_FLUX
from support.tiny_objects import OBJECT_FAMILIES, model_config
from support.tiny_objects import ObjectFamily as Network
from support.tiny_objects import caption as caption_of

FLUX_PARAMETERS = "comfy.ldm.flux.model:FluxParams"
# Of the families that tests load from files: shape of a caption, width of its pooled vector.
CAPTIONS = {
    "sd15": ((1, 77, 768), 768), "sdxl": ((1, 77, 2048), 1280), "sd3": ((1, 77, 4096), 2048), "flux": ((1, 32, 4096), 768),
    "wan21": ((1, 512, 4096), 0),
}


def small_networks() -> dict[str, Network]:
    """The families that the tests prove, in the tests' own sizes."""
    with_files = {
        name: Network(
            config_class=family.config_class, latent_shape=family.latent_shape, network=family.network,
            newer=NEWER_FLUX if name == "flux" else {}, parameters=FLUX_PARAMETERS if name == "flux" else "",
            caption_shape=CAPTIONS[name][0], pooled_width=CAPTIONS[name][1],
        ) for name, family in FAMILIES.items()
    }
    return with_files | OBJECT_FAMILIES


def full_networks() -> dict[str, Network]:
    """The published sizes at 1024 x 1024."""
    return {
        "sdxl": Network(
            config_class="SDXL", latent_shape=(1, 4, 128, 128), caption_shape=(1, 77, 2048), pooled_width=1280,
            network=dict(
                use_checkpoint=False, image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2],
                channel_mult=(1, 2, 4), num_head_channels=64, use_spatial_transformer=True, transformer_depth=[0, 0, 2, 2, 10, 10],
                transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, context_dim=2048,
                use_linear_in_transformer=True, adm_in_channels=2816, num_classes="sequential", legacy=False,
                use_temporal_attention=False, use_temporal_resblock=False,
            ),
        ),
        "flux": Network(
            config_class="Flux", latent_shape=(1, 16, 128, 128), caption_shape=(1, 512, 4096), pooled_width=768,
            parameters=FLUX_PARAMETERS, newer=NEWER_FLUX,
            network=dict(
                image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072,
                mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
                qkv_bias=True, guidance_embed=True,
            ),
        ),
        # SD3.5 large: the width is 64 x depth.
        "sd35": Network(
            config_class="SD3", latent_shape=(1, 16, 128, 128), caption_shape=(1, 154, 4096), pooled_width=2048,
            network=dict(
                in_channels=16, out_channels=16, patch_size=2, depth=38, input_size=None, adm_in_channels=2048, num_patches=36864,
                pos_embed_max_size=192, pos_embed_scaling_factor=None, qk_norm="rms", x_block_self_attn_layers=[],
                context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 2432}},
            ),
        ),
        "wan14b": Network(
            config_class="WAN21_T2V", latent_shape=(1, 16, 1, 128, 128), caption_shape=(1, 512, 4096),
            network=dict(
                image_model="wan2.1", model_type="t2v", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16,
                patch_size=(1, 2, 2), freq_dim=256, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
            ),
        ),
    }


# What a rehearsal puts in a full-size network's place.
REHEARSED_BY = {"sdxl": "sdxl", "flux": "flux", "sd35": "sd3", "wan14b": "wan21"}


def is_known(network: Network) -> bool:
    """False where this version of ComfyUI has no such architecture."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, network.config_class)


def build_patcher(network: Network, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A MODEL as a loader gives it. Equal seeds give equal weights on the CPU alone: copy the state for another device."""
    import comfy.model_patcher

    marks = {name: torch.tensor(values) for name, values in network.marks.items()}
    base = model_config(network, dtype).get_model(marks, "", device=device)
    _fill(base.diffusion_model, torch.Generator(device).manual_seed(seed))
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    patcher = kind(base.eval(), load_device=device, offload_device=device)
    # Newer hosts' trainer loads the file again for a copy of its own; here the model is its own already.
    patcher.cached_patcher_init = (lambda disable_dynamic=False: patcher, ())
    return patcher


def _fill(module: torch.nn.Module, generator: torch.Generator) -> None:
    """Unit gain, nothing zero. Random numbers, not zeros: a card multiplies zeros faster.

    SD3 keeps its position table as a buffer, whose memory the host leaves uninitialised like its layers'.
    """
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *((n, b) for n, b in module.named_buffers() if n == "pos_embed")):
            leaf = name.rsplit(".", 1)[-1]
            if tensor.ndim >= 2 and leaf not in ("modulation", "pad_token", "x_pad_token", "cap_pad_token"):
                tensor.normal_(0.0, tensor[0].numel() ** -0.5, generator=generator)
            elif tensor.ndim >= 2 or leaf == "bias":
                tensor.normal_(0.0, 0.02, generator=generator)
            else:
                tensor.normal_(1.0, 0.02, generator=generator)


def captions(network: Network, count: int) -> list:
    """CONDITIONING, one a picture, as a text node gives it."""
    return [caption_of(network, 1000 + i) for i in range(count)]


def latents(network: Network, count: int) -> list[torch.Tensor]:
    return [torch.randn(network.latent_shape, generator=torch.Generator().manual_seed(2000 + i)) for i in range(count)]
