"""The smallest diffusion networks and VAEs of each family, built with ComfyUI's own classes and filled with seeded noise.

Knows the sizes that ComfyUI's detection fixes and those it reads from a file; knows nothing of files or text encoders.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    config_class: str  # in comfy.supported_models
    network: dict  # arguments of the network's class
    latent_shape: tuple[int, ...]  # [1, C, (T,) h, w] for a 64 x 64 picture
    vae: str  # one of VAES
    weight_dtype: torch.dtype = torch.float32  # as stored in the file
    checkpoint: bool = False  # network, text encoder and VAE in one file, as these families are published


UNET = dict(
    use_checkpoint=False, image_size=32, use_spatial_transformer=True, legacy=False, in_channels=4, out_channels=4,
    model_channels=320,  # fixed by detection, as are the context sizes
    use_temporal_resblock=False, use_temporal_attention=False,
)

FAMILIES = {
    "sd15": Family(
        config_class="SD15", latent_shape=(1, 4, 8, 8), vae="taesd_4", weight_dtype=torch.float16, checkpoint=True,
        network=dict(
            **UNET, adm_in_channels=None, num_res_blocks=[1], channel_mult=[1], transformer_depth=[1],
            transformer_depth_output=[1, 0], transformer_depth_middle=1, use_linear_in_transformer=False, context_dim=768,
        ),
    ),
    # The subclass of SDXL that is told by the depths [0, 2, 5]; SDXL proper needs [0, 0, 2, 2, 10, 10].
    "sdxl": Family(
        config_class="KOALA_700M", latent_shape=(1, 4, 8, 8), vae="taesd_4", weight_dtype=torch.float16, checkpoint=True,
        network=dict(
            **UNET, num_classes="sequential", adm_in_channels=2816, num_res_blocks=[1, 1, 1], channel_mult=[1, 1, 1],
            transformer_depth=[0, 2, 5], transformer_depth_output=[0] * 6, transformer_depth_middle=-1,
            use_linear_in_transformer=True, context_dim=2048,
        ),
    ),
    "sd3": Family(
        config_class="SD3", latent_shape=(1, 16, 8, 8), vae="taesd_16",
        network=dict(
            in_channels=16, out_channels=16, patch_size=2, depth=2,  # the width is 64 x depth
            input_size=None, adm_in_channels=2048, num_patches=1024, pos_embed_max_size=32, pos_embed_scaling_factor=None,
            qk_norm="rms", x_block_self_attn_layers=[],
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
        ),
    ),
    "flux": Family(
        config_class="Flux", latent_shape=(1, 16, 8, 8), vae="taesd_16",
        network=dict(
            image_model="flux", axes_dim=[16, 56, 56], num_heads=1, hidden_size=128, mlp_ratio=4.0, theta=10000,
            in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096, depth=1,
            depth_single_blocks=1, qkv_bias=True, guidance_embed=True,
        ),
    ),
    "wan21": Family(
        config_class="WAN21_T2V", latent_shape=(1, 16, 1, 8, 8), vae="wan",
        network=dict(
            image_model="wan2.1", model_type="t2v", dim=128, ffn_dim=256, num_heads=1, num_layers=2, in_dim=16, out_dim=16,
            patch_size=(1, 2, 2), freq_dim=256, window_size=(-1, -1), qk_norm=True, cross_attn_norm=True, eps=1e-6,
        ),
    ),
}

# Arguments that the Flux class gained after 0.3.75; its own defaults differ from what detection gives.
NEWER_FLUX = dict(txt_ids_dims=[], yak_mlp=False, txt_norm=False)

VAES = ("taesd_4", "taesd_16", "wan")


def fill(module: torch.nn.Module, *, seed: int = 0) -> torch.nn.Module:
    """Seeded weights of unit gain: ComfyUI's layers leave their memory uninitialised.

    Nothing is zero, output layers included, so that every layer has a gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.named_parameters():
            leaf = name.rsplit(".", 1)[-1]
            noise = torch.randn(tensor.shape, generator=generator)
            if leaf == "modulation":  # Wan's additive table
                value = noise * 0.02
            elif tensor.ndim >= 2:
                value = noise / tensor[0].numel() ** 0.5
            elif leaf == "bias":
                value = noise * 0.02
            else:  # the scale of a norm
                value = 1 + noise * 0.02
            tensor.copy_(value)
        for name, tensor in module.named_buffers():
            if name.rsplit(".", 1)[-1] == "pos_embed":  # SD3's: read from the file, so left uninitialised too
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.02)
    return module


def _accepts(function, name: str) -> bool:
    import inspect

    return name in inspect.signature(function).parameters


def model_config(family: str):
    import comfy.ldm.flux.model
    import comfy.supported_models

    definition = FAMILIES[family]
    network = dict(definition.network)
    if family == "flux":
        known = {field for field in comfy.ldm.flux.model.FluxParams.__dataclass_fields__}
        network.update({name: value for name, value in NEWER_FLUX.items() if name in known})
    config = getattr(comfy.supported_models, definition.config_class)(network)
    config.set_inference_dtype(torch.float32, None)
    return config


def build_network(family: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of the network under its module paths (no prefix), in the family's stored dtype."""
    model = model_config(family).get_model({}, "", device=None)
    fill(model.diffusion_model, seed=seed)
    dtype = FAMILIES[family].weight_dtype
    return {name: tensor.to(dtype) for name, tensor in model.diffusion_model.state_dict().items()}


def build_vae(kind: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """State dict of a VAE that VAELoader accepts."""
    if kind == "wan":
        from comfy.ldm.wan.vae import WanVAE

        extra = {"image_channels": 3} if _accepts(WanVAE.__init__, "image_channels") else {}
        vae = WanVAE(
            dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True],
            dropout=0.0, **extra,
        )
        return dict(fill(vae, seed=seed).state_dict())
    from comfy.taesd.taesd import TAESD

    vae = fill(TAESD(latent_channels={"taesd_4": 4, "taesd_16": 16}[kind]), seed=seed)
    return {**vae.state_dict(), "vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
