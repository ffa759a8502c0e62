"""Bases that are not plain weights on the device: trained with right gradients, or refused where the host misreads them."""

from __future__ import annotations

import json

import pytest
import torch
from support import tiny_networks, tiny_objects

OBJECTS = ("qwen_image", "z_image", "hunyuan_video")  # besides Wan, which has a file


def _save(models, fmt: str):
    """A tiny Wan whose block weights are fp8 with a scale, as the formats in circulation store it."""
    from safetensors.torch import save_file

    source = tiny_networks.build_network("wan21")
    stored, layers = {}, {}
    for name, tensor in source.items():
        if name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2:
            layer = name.removesuffix(".weight")
            scale = tensor.float().abs().max() / 448
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stored[layer + (".scale_weight" if fmt == "scaled_fp8" else ".weight_scale")] = scale.reshape(())
            layers[layer] = {"format": "float8_e4m3fn"}
        else:
            stored[name] = tensor.to(torch.bfloat16)
    metadata = None
    if fmt == "scaled_fp8":
        stored["scaled_fp8"] = torch.tensor([], dtype=torch.float8_e4m3fn)
    elif fmt == "metadata":
        metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    elif fmt == "comfy_quant":
        for layer, how in layers.items():
            stored[layer + ".comfy_quant"] = torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
    folder = models / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / f"wan_{fmt}.safetensors", metadata=metadata)
    plain = {k: v.float() for k, v in stored.items() if v.dtype != torch.uint8 and not k.endswith(("scale", "scale_weight", "scaled_fp8"))}
    for layer in layers:
        suffix = ".scale_weight" if fmt == "scaled_fp8" else ".weight_scale"
        plain[layer + ".weight"] = stored[layer + ".weight"].float() * stored[layer + suffix]
    return f"wan_{fmt}.safetensors", plain


def _gradient(model, conditioning, shape, kind="lora"):
    from pistachio.bridge.conditions import prepare
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig
    from pistachio.training.objective import prediction_error

    latents, noise = (torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    with model.training():
        condition = prepare(model.base_model, conditioning, latents)
        with AdaptedNetwork(model, AdapterConfig(kind=kind, rank=4, alpha=4), seed=0) as network:
            away = 0.05 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3))
            with torch.no_grad():
                network.parameters.copy_(away if kind == "lora" else network.parameters + away)
            prediction_error(model, latents, noise, model.sigma_at(torch.tensor([0.6])), [condition]).sum().backward()
            return network.gradients.clone()


@pytest.mark.parametrize("fmt", ["scaled_fp8", "metadata", "comfy_quant"])
def test_a_quantised_base_trains_or_is_refused(host, tiny, fmt):
    import nodes
    from pistachio.bridge.model import HostModel
    from pistachio.training.errors import PistachioError

    name, plain = _save(host.models, fmt)
    wan = tiny("wan21")
    with torch.inference_mode():
        loaded = nodes.UNETLoader().load_unet(name, "default")[0]
        if fmt == "comfy_quant" and host.version < (0, 4):
            with pytest.raises(PistachioError, match="misread"):
                HostModel(loaded)
            return
        quantised = HostModel(loaded, precision="fp32")
        reference = HostModel(wan.model.clone(), precision="fp32")
    found = _gradient(quantised, wan.condition("a red cat"), wan.latent_shape)
    own = {k: v.clone() for k, v in reference.network.state_dict().items()}
    try:
        with torch.inference_mode():
            reference.network.load_state_dict(plain, strict=False)
        expected = _gradient(reference, wan.condition("a red cat"), wan.latent_shape)
    finally:
        with torch.inference_mode():
            reference.network.load_state_dict(own)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
def test_a_base_cast_to_fp8_trains(host, tiny, kind):
    import nodes
    from pistachio.bridge.model import HostModel

    wan = tiny("wan21")
    with torch.inference_mode():
        cast = HostModel(nodes.UNETLoader().load_unet("tiny_wan21.safetensors", "fp8_e4m3fn")[0], precision="fp32")
        plain = HostModel(wan.model, precision="fp32")
    condition = wan.condition("a red cat")
    found, expected = (_gradient(model, condition, wan.latent_shape, kind) for model in (cast, plain))
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.98


@pytest.mark.parametrize("family", OBJECTS)
def test_weights_kept_in_fp8_train(host, family):
    from pistachio.bridge.model import HostModel

    tiny, plain = tiny_objects.load(family, dtype=torch.float8_e4m3fn), tiny_objects.load(family)
    with torch.inference_mode():
        kept = HostModel(tiny.model, precision="fp32")
        assert torch.float8_e4m3fn in {weight.dtype for weight in kept.network.parameters()}
        weights = {name: tensor.float() for name, tensor in kept.network.state_dict().items()}
        plain.model.model.diffusion_model.load_state_dict(weights)
        reference = HostModel(plain.model, precision="fp32")
    condition = tiny.condition("a red cat")
    found, expected = (_gradient(model, condition, tiny.latent_shape) for model in (kept, reference))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-4


@pytest.mark.parametrize("family", OBJECTS)
def test_a_model_that_is_loaded_in_part_trains(host, family):
    """Half of it stays off the device, with a LoRA that is applied to each weight as it arrives."""
    from pistachio.bridge.model import HostModel

    tiny = tiny_objects.load(family)
    patcher, generator = tiny.model, torch.Generator().manual_seed(4)
    linears = {
        f"diffusion_model.{name}.weight": module.weight for name, module in patcher.model.diffusion_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    with torch.inference_mode():
        patches = {key: (0.02 * torch.randn(weight.shape, generator=generator),) for key, weight in linears.items()}
        bare = HostModel(patcher, precision="fp32")
        patcher.add_patches(patches)
        model = HostModel(patcher, precision="fp32")
    condition = tiny.condition("a red cat")
    whole = _gradient(model, condition, tiny.latent_shape)
    with torch.inference_mode():
        model.patcher.detach()
        model.patcher.load(torch.device("cpu"), lowvram_model_memory=model.patcher.model_size() // 2)
    waiting = [module for module in model.network.modules() if getattr(module, "weight_function", None)]
    assert len(waiting) >= 4 and len(waiting) < len(linears)
    in_part = _gradient(model, condition, tiny.latent_shape)
    with torch.inference_mode():
        model.patcher.detach()
    assert ((in_part - whole).norm() / whole.norm()).item() < 1e-5
    assert bare.network is model.network
    assert ((_gradient(bare, condition, tiny.latent_shape) - whole).norm() / whole.norm()).item() > 1e-3  # the LoRA counted


def test_an_image_to_video_model_is_refused(host, tiny):
    """Wan's image-to-video network: 20 more input channels for the picture and its mask."""
    import comfy.model_patcher
    from pistachio.bridge.model import HostModel
    from pistachio.training.errors import PistachioError

    wan = tiny("wan21").model.model
    config = tiny_networks.model_config("wan21")
    config.unet_config = {**config.unet_config, "in_dim": 36, "model_type": "i2v"}
    with torch.inference_mode():
        model = type(wan)(config, image_to_video=True, device=None)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        with pytest.raises(PistachioError, match="needs a picture as input"):
            HostModel(patcher)
