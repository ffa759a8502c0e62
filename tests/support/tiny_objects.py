"""Tiny MODELs of the families whose sizes ComfyUI's detection fixes, so that no small file of them can exist.

Each is an object of ComfyUI's own classes under its ModelPatcher, with captions of random numbers shaped as the family's
text encoder gives them. The sampling, latent format, conditions and LoRA names are therefore the real ones.
"""

from __future__ import annotations

import importlib
import inspect
import zlib
from dataclasses import dataclass, field
from typing import Any

import torch

from .tiny_models import Tiny
from .tiny_networks import FAMILIES, NEWER_FLUX, UNET, fill

TOKENS = 12
PADDED_TOKENS = 3  # of them, where the text encoder gives a mask


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFamily:
    config_class: str  # in comfy.supported_models
    network: dict  # arguments of the network's class
    latent_shape: tuple[int, ...]  # [1, C, (T,) h, w]
    caption_shape: tuple[int, ...]  # [1, tokens, width]
    pooled_width: int = 0
    mask: str = ""  # what the text encoder's attention mask looks like: "" (none), "ones" or "padded"
    extra_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # further tensors of the CONDITIONING
    newer: dict = field(default_factory=dict)  # arguments that the network gained after 0.3.75
    parameters: str = ""  # "module:class" of the dataclass that the arguments fill, where the network takes **kwargs
    marks: dict[str, tuple[float, ...]] = field(default_factory=dict)  # weights by which the file is told from its relatives


_WAN = FAMILIES["wan21"].network
_FLUX_CLASS = "comfy.ldm.flux.model:FluxParams"
_LUMINA = dict(image_model="lumina2", patch_size=2, in_channels=16, cap_feat_dim=64, n_layers=2, n_refiner_layers=1, qk_norm=True)
_COSMOS = dict(
    max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    concat_padding_mask=True, model_channels=64, num_blocks=2, num_heads=2, crossattn_emb_channels=32, pos_emb_cls="rope3d",
    pos_emb_interpolation="crop", use_adaln_lora=True, adaln_lora_dim=16,
)

OBJECT_FAMILIES = {
    "sd2_v": ObjectFamily(
        config_class="SD20", latent_shape=(1, 4, 8, 8), caption_shape=(1, 77, 1024),
        network=dict(UNET, model_channels=64, adm_in_channels=None, num_res_blocks=[1], channel_mult=[1], transformer_depth=[1],
                     transformer_depth_output=[1, 0], transformer_depth_middle=1, use_linear_in_transformer=True, context_dim=1024),
        marks={"output_blocks.11.1.transformer_blocks.0.norm1.bias": (1.0, -1.0)},  # the v-prediction file
    ),
    "flux_schnell": ObjectFamily(
        config_class="FluxSchnell", latent_shape=(1, 16, 8, 8), caption_shape=(1, TOKENS, 64), pooled_width=24,
        parameters=_FLUX_CLASS, newer=NEWER_FLUX,
        network=dict(image_model="flux", axes_dim=[8, 12, 12], num_heads=2, hidden_size=64, mlp_ratio=4.0, theta=10000, in_channels=16,
                     out_channels=16, patch_size=2, vec_in_dim=24, context_in_dim=64, depth=1, depth_single_blocks=1, qkv_bias=True,
                     guidance_embed=False),
    ),
    "flux2": ObjectFamily(
        config_class="Flux2", latent_shape=(1, 128, 4, 4), caption_shape=(1, 32, 64),
        parameters=_FLUX_CLASS, newer=dict(txt_ids_dims=[3], yak_mlp=False, txt_norm=False),
        network=dict(image_model="flux2", axes_dim=[32, 32, 32, 32], num_heads=1, mlp_ratio=3.0, theta=2000, out_channels=128,
                     global_modulation=True, mlp_silu_act=True, qkv_bias=False, ops_bias=False, default_ref_method="index",
                     ref_index_scale=10.0, in_channels=128, hidden_size=128, context_in_dim=64, patch_size=1, vec_in_dim=None,
                     depth=1, depth_single_blocks=1, guidance_embed=True),
    ),
    "chroma": ObjectFamily(
        config_class="Chroma", latent_shape=(1, 16, 8, 8), caption_shape=(1, TOKENS, 32),
        parameters="comfy.ldm.chroma.model:ChromaParams", newer=dict(txt_ids_dims=[], vec_in_dim=None),
        network=dict(image_model="chroma", in_channels=64, out_channels=64, context_in_dim=32, hidden_size=64, mlp_ratio=4.0, num_heads=2,
                     depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12], theta=10000, patch_size=2, qkv_bias=True, in_dim=64,
                     out_dim=64, hidden_dim=32, n_layers=2),
    ),
    "hidream": ObjectFamily(
        config_class="HiDream", latent_shape=(1, 16, 8, 8), caption_shape=(1, TOKENS, 32), pooled_width=24,
        extra_shapes={"conditioning_llama3": (1, 2, TOKENS, 32)},
        network=dict(image_model="hidream", attention_head_dim=16, num_attention_heads=2, axes_dims_rope=[8, 4, 4],
                     caption_channels=[32, 32], max_resolution=[128, 128], in_channels=16, out_channels=16, llama_layers=[0, 1],
                     num_routed_experts=4, num_activated_experts=2, num_layers=1, num_single_layers=1, patch_size=2, text_emb_dim=24),
    ),
    "hunyuan_video": ObjectFamily(
        config_class="HunyuanVideo", latent_shape=(1, 16, 2, 8, 8), caption_shape=(1, TOKENS, 32), pooled_width=24,
        parameters="comfy.ldm.hunyuan_video.model:HunyuanVideoParams", newer=dict(meanflow_sum=False),
        network=dict(image_model="hunyuan_video", in_channels=16, out_channels=16, patch_size=[1, 2, 2], vec_in_dim=24, context_in_dim=32,
                     hidden_size=64, mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=1, axes_dim=[8, 12, 12], theta=256,
                     qkv_bias=True, guidance_embed=True, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None),
    ),
    "ltxv": ObjectFamily(
        config_class="LTXV", latent_shape=(1, 128, 2, 4, 4), caption_shape=(1, TOKENS, 48), mask="padded",
        network=dict(image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
                     caption_channels=48, num_layers=2),
    ),
    "cosmos": ObjectFamily(
        config_class="CosmosT2V", latent_shape=(1, 16, 2, 8, 8), caption_shape=(1, TOKENS, 32),
        network=dict(_COSMOS, image_model="cosmos", block_config="FA-CA-MLP", block_x_format="THWBD", affline_emb_norm=True,
                     pos_emb_learnable=False, extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable",
                     rope_h_extrapolation_ratio=1.0, rope_w_extrapolation_ratio=1.0, rope_t_extrapolation_ratio=2.0),
    ),
    "cosmos_predict2": ObjectFamily(
        config_class="CosmosT2IPredict2", latent_shape=(1, 16, 1, 8, 8), caption_shape=(1, TOKENS, 32),
        network=dict(_COSMOS, image_model="cosmos_predict2", pos_emb_learnable=True, min_fps=1, max_fps=30,
                     extra_per_block_abs_pos_emb=False, rope_h_extrapolation_ratio=4.0, rope_w_extrapolation_ratio=4.0,
                     rope_t_extrapolation_ratio=1.0),
    ),
    "wan22_5b": ObjectFamily(
        config_class="WAN22_T2V", latent_shape=(1, 48, 1, 8, 8), caption_shape=(1, 512, 4096), network=dict(_WAN, in_dim=48, out_dim=48),
    ),
    "qwen_image": ObjectFamily(
        config_class="QwenImage", latent_shape=(1, 16, 1, 8, 8), caption_shape=(1, TOKENS, 64),
        network=dict(image_model="qwen_image", in_channels=64, num_layers=2, num_attention_heads=1, joint_attention_dim=64),
    ),
    "z_image": ObjectFamily(
        config_class="ZImage", latent_shape=(1, 16, 8, 8), caption_shape=(1, TOKENS, 64), mask="ones",
        network=dict(_LUMINA, dim=256, n_heads=2, n_kv_heads=2, axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0,
                     ffn_dim_multiplier=8.0 / 3.0, z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
    ),
    "lumina2": ObjectFamily(
        config_class="Lumina2", latent_shape=(1, 16, 8, 8), caption_shape=(1, TOKENS, 64), mask="ones",
        network=dict(_LUMINA, dim=96, n_heads=1, n_kv_heads=1, axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0,
                     ffn_dim_multiplier=4.0),
    ),
    "auraflow": ObjectFamily(
        config_class="AuraFlow", latent_shape=(1, 4, 8, 8), caption_shape=(1, TOKENS, 32),
        network=dict(cond_seq_dim=32, dim=64, n_layers=2, n_double_layers=1, n_heads=2, global_conddim=64, max_seq=64),
    ),
    "pixart_sigma": ObjectFamily(
        config_class="PixArtSigma", latent_shape=(1, 4, 40, 40), caption_shape=(1, TOKENS, 32),  # smaller divides by zero in the host
        network=dict(image_model="pixart_sigma", num_heads=2, patch_size=2, hidden_size=64, in_channels=4, depth=2, caption_channels=32,
                     model_max_length=TOKENS, micro_condition=False),
    ),
}


def why_missing(family: str) -> str | None:
    """A reason when this version of ComfyUI can't build the family."""
    import comfy.supported_models

    name = OBJECT_FAMILIES[family].config_class
    return None if hasattr(comfy.supported_models, name) else f"this ComfyUI has no {name}"


def model_config(definition: ObjectFamily, dtype: torch.dtype = torch.float32) -> Any:
    import comfy.supported_models

    arguments = dict(definition.network)
    if definition.parameters:
        module, name = definition.parameters.split(":")
        known = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        arguments |= {key: value for key, value in definition.newer.items() if key in known}
    config = getattr(comfy.supported_models, definition.config_class)(arguments)
    config.set_inference_dtype(dtype, torch.float32 if dtype.itemsize == 1 else None)  # 8-bit weights are for storing only
    return config


def build_patcher(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A MODEL as a loader gives it. `dtype`: in which the weights are kept."""
    import comfy.model_patcher

    definition = OBJECT_FAMILIES[family]
    marks = {name: torch.tensor(values) for name, values in definition.marks.items()}
    base = model_config(definition, dtype).get_model(marks, "", device=None)
    fill(base.diffusion_model, seed=seed)
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(base.eval(), load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def caption(definition: ObjectFamily, seed: int) -> list:
    """CONDITIONING, as a text node gives it."""
    generator = torch.Generator().manual_seed(seed)
    extra: dict = {name: torch.randn(shape, generator=generator) for name, shape in definition.extra_shapes.items()}
    extra["pooled_output"] = torch.randn(1, definition.pooled_width, generator=generator) if definition.pooled_width else None
    if definition.mask:
        extra["attention_mask"] = torch.ones(definition.caption_shape[:2], dtype=torch.long)
        if definition.mask == "padded":
            extra["attention_mask"][:, -PADDED_TOKENS:] = 0
    return [[torch.randn(definition.caption_shape, generator=generator), extra]]


def load(family: str, *, dtype: torch.dtype = torch.float32) -> Tiny:
    """As `tiny_models.load` gives the families that have files; a caption's numbers depend on its words alone."""
    definition = OBJECT_FAMILIES[family]
    with torch.inference_mode():
        patcher = build_patcher(family, dtype=dtype)
    return Tiny(
        family=family, model=patcher, clip=None, vae=None, latent_shape=definition.latent_shape,
        condition=lambda text: caption(definition, zlib.crc32(text.encode())),
    )
