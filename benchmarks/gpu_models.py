"""Networks for the GPU suite: every family small, and three at full size, with random weights made on the device.

They are objects of ComfyUI's own classes under its ModelPatcher, with captions of random numbers, so that neither files
nor text encoders are needed. Knows sizes; knows nothing of what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

CAPTION_TOKENS = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    config_class: str  # in comfy.supported_models
    arguments: dict  # of the network's class
    latent_shape: tuple[int, ...]  # [1, C, (T,) h, w]
    caption_shape: tuple[int, ...]  # [1, tokens, width]
    pooled_width: int = 0
    has_mask: bool = False


def small_networks() -> dict[str, Network]:
    """The five families that tests train from files, and those whose sizes ComfyUI fixes, which exist small as objects only."""
    from support.tiny_networks import FAMILIES, NEWER_FLUX

    captions = {"sd15": ((1, 77, 768), 768), "sdxl": ((1, 77, 2048), 1280), "sd3": ((1, 77, 4096), 2048),
                "flux": ((1, 32, 4096), 768), "wan21": ((1, 512, 4096), 0)}
    networks = {
        name: Network(
            config_class=family.config_class, latent_shape=family.latent_shape,
            arguments=dict(family.network) | (NEWER_FLUX if name == "flux" else {}),
            caption_shape=captions[name][0], pooled_width=captions[name][1],
        ) for name, family in FAMILIES.items()
    }
    wan = dict(FAMILIES["wan21"].network)
    lumina = dict(
        image_model="lumina2", patch_size=2, in_channels=16, cap_feat_dim=64, n_layers=2, n_refiner_layers=1, qk_norm=True,
    )
    return networks | {
        "wan22_5b": Network(
            config_class="WAN22_T2V", arguments=wan | dict(in_dim=48, out_dim=48), latent_shape=(1, 48, 1, 8, 8), caption_shape=(1, 512, 4096),
        ),
        "qwen_image": Network(
            config_class="QwenImage", latent_shape=(1, 16, 1, 8, 8), caption_shape=(1, CAPTION_TOKENS, 64),
            arguments=dict(image_model="qwen_image", in_channels=64, num_layers=2, num_attention_heads=1, joint_attention_dim=64),
        ),
        "z_image": Network(
            config_class="ZImage", latent_shape=(1, 16, 8, 8), caption_shape=(1, CAPTION_TOKENS, 64), has_mask=True,
            arguments=lumina | dict(
                dim=256, n_heads=2, n_kv_heads=2, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0,
                ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32,
            ),
        ),
        "lumina2": Network(
            config_class="Lumina2", latent_shape=(1, 16, 8, 8), caption_shape=(1, CAPTION_TOKENS, 64), has_mask=True,
            arguments=lumina | dict(
                dim=96, n_heads=1, n_kv_heads=1, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0,
                ffn_dim_multiplier=4.0,
            ),
        ),
        "flux2": Network(
            config_class="Flux2", latent_shape=(1, 128, 4, 4), caption_shape=(1, 32, 64),
            arguments=dict(
                image_model="flux2", axes_dim=[32, 32, 32, 32], num_heads=1, mlp_ratio=3.0, theta=2000, out_channels=128,
                global_modulation=True, mlp_silu_act=True, qkv_bias=False, ops_bias=False, default_ref_method="index",
                ref_index_scale=10.0, in_channels=128, hidden_size=128, context_in_dim=64, patch_size=1, vec_in_dim=None,
                depth=1, depth_single_blocks=1, guidance_embed=True, txt_ids_dims=[3], yak_mlp=False, txt_norm=False,
            ),
        ),
    }


def full_networks() -> dict[str, Network]:
    """The published sizes at 1024 x 1024."""
    return {
        "sdxl": Network(
            config_class="SDXL", latent_shape=(1, 4, 128, 128), caption_shape=(1, 77, 2048), pooled_width=1280,
            arguments=dict(
                use_checkpoint=False, image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2, 2, 2],
                channel_mult=(1, 2, 4), num_head_channels=64, use_spatial_transformer=True, transformer_depth=[0, 0, 2, 2, 10, 10],
                transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], transformer_depth_middle=10, context_dim=2048,
                use_linear_in_transformer=True, adm_in_channels=2816, num_classes="sequential", legacy=False,
                use_temporal_attention=False, use_temporal_resblock=False,
            ),
        ),
        "flux": Network(
            config_class="Flux", latent_shape=(1, 16, 128, 128), caption_shape=(1, 512, 4096), pooled_width=768,
            arguments=dict(
                image_model="flux", in_channels=16, out_channels=16, vec_in_dim=768, context_in_dim=4096, hidden_size=3072,
                mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56], theta=10000, patch_size=2,
                qkv_bias=True, guidance_embed=True, txt_ids_dims=[], yak_mlp=False, txt_norm=False,
            ),
        ),
        "wan14b": Network(
            config_class="WAN21_T2V", latent_shape=(1, 16, 1, 128, 128), caption_shape=(1, 512, 4096),
            arguments=dict(
                image_model="wan2.1", model_type="t2v", dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, in_dim=16, out_dim=16,
                patch_size=(1, 2, 2), freq_dim=256, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
            ),
        ),
    }


# What a rehearsal puts in a full-size network's place.
REHEARSED_BY = {"sdxl": "sdxl", "flux": "flux", "wan14b": "wan21"}


def is_known(network: Network) -> bool:
    """False where this version of ComfyUI has no such architecture."""
    import comfy.supported_models

    return hasattr(comfy.supported_models, network.config_class)


def build_patcher(network: Network, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A MODEL as a loader gives it. Equal seeds give equal weights on the CPU alone: copy the state for another device."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models

    arguments = dict(network.arguments)
    if "flux" in str(arguments.get("image_model")):
        # 0.3.75 has fewer of these.
        known = comfy.ldm.flux.model.FluxParams.__dataclass_fields__
        arguments = {name: value for name, value in arguments.items() if name in known or name == "image_model"}
    config = getattr(comfy.supported_models, network.config_class)(arguments)
    config.set_inference_dtype(dtype, None)
    base = config.get_model({}, "", device=device)
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
    conditioning = []
    for i in range(count):
        generator = torch.Generator().manual_seed(1000 + i)
        extra: dict = {"pooled_output": torch.randn(1, network.pooled_width, generator=generator)} if network.pooled_width else {}
        if network.has_mask:
            extra["attention_mask"] = torch.ones(network.caption_shape[:2], dtype=torch.long)
        if not network.pooled_width and network.config_class == "Flux2":
            extra["pooled_output"] = None
        conditioning.append([[torch.randn(network.caption_shape, generator=generator), extra]])
    return conditioning


def latents(network: Network, count: int) -> list[torch.Tensor]:
    return [torch.randn(network.latent_shape, generator=torch.Generator().manual_seed(2000 + i)) for i in range(count)]
