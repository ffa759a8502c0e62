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
    expected = _gradient_with(plain, reference, wan.condition("a red cat"), wan.latent_shape)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.999


# Format of the host's files -> (layout in comfy_kitchen, how to quantise, what the layer's comfy_quant says beside the format).
KITCHEN = {
    "int8_tensorwise": ("TensorWiseINT8Layout", {}, {}),
    "int8_convrot": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True, "convrot_groupsize": 64}, {"convrot": True, "convrot_groupsize": 64}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}, {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}, {}),
    "convrot_w4a4": ("TensorCoreConvRotW4A4Layout", {"convrot_groupsize": 64}, {"convrot_groupsize": 64}),
    "asym_w4a8_int8": ("AsymW4A8Int8Layout", {"convrot_groupsize": 64}, {"group_size": 16, "convrot_groupsize": 64}),
}
# These round activations as well as weights, also on a CPU, which the reference does not.
ROUNDED_INPUTS = {"int8_tensorwise": 0.9995, "int8_convrot": 0.9995, "convrot_w4a4": 0.99, "asym_w4a8_int8": 0.9995}
GRADIENT_ERROR = 1e-5


def _save_kitchen(models, fmt: str):
    """A tiny Wan in one of comfy_kitchen's layouts, and what its weights are when read."""
    tensor = pytest.importorskip("comfy_kitchen.tensor")
    from safetensors.torch import save_file

    layout, how, conf = KITCHEN[fmt]
    stored, plain = {}, {}
    for name, weight in tiny_networks.build_network("wan21").items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            packed = tensor.QuantizedTensor.from_float(weight.float(), layout, **how)
            stored |= packed.state_dict(name)
            conf_text = json.dumps({"format": "int8_tensorwise" if fmt == "int8_convrot" else fmt, **conf})
            stored[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(conf_text.encode()), dtype=torch.uint8)
            plain[name] = packed.dequantize().float()
        else:
            stored[name] = weight.to(torch.bfloat16)
            plain[name] = stored[name].float()
    folder = models / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in stored.items()}, folder / f"wan_{fmt}.safetensors")
    return f"wan_{fmt}.safetensors", plain


def _gradient_with(weights, model, conditioning, shape):
    own = {k: v.clone() for k, v in model.network.state_dict().items()}
    try:
        with torch.inference_mode():
            model.network.load_state_dict(weights, strict=False)
        return _gradient(model, conditioning, shape)
    finally:
        with torch.inference_mode():
            model.network.load_state_dict(own)


@pytest.mark.parametrize("fmt", KITCHEN)
def test_a_file_in_one_of_the_hosts_newer_formats_trains_or_is_refused(host, tiny, fmt):
    """0.3.75 knows none of them, and reads codes as weights."""
    import nodes
    from pistachio.bridge.model import HostModel
    from pistachio.training.errors import PistachioError
    from pistachio.training.frozen import FrozenLinear

    name, plain = _save_kitchen(host.models, fmt)
    wan = tiny("wan21")
    with torch.inference_mode():
        if host.version < (0, 4):
            with pytest.raises((PistachioError, RuntimeError), match="misread|size mismatch"):
                HostModel(nodes.UNETLoader().load_unet(name, "default")[0])
            return
        quantised = HostModel(nodes.UNETLoader().load_unet(name, "default")[0], precision="fp32")
        reference = HostModel(wan.model.clone(), precision="fp32")
    found = _gradient(quantised, wan.condition("a red cat"), wan.latent_shape)
    expected = _gradient_with(plain, reference, wan.condition("a red cat"), wan.latent_shape)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > ROUNDED_INPUTS.get(fmt, 0.999)
    for path in ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2"):
        module, source = quantised.network.get_submodule(path), torch.Generator().manual_seed(5)
        x = torch.randn(3, module.in_features, generator=source).requires_grad_(True)
        dy = 1e-6 * torch.randn(3, module.out_features, generator=source)
        with quantised.training():
            FrozenLinear.apply(x, module.forward, module, quantised).backward(dy)
        product = dy.double() @ plain[f"{path}.weight"].double()
        assert ((x.grad.double() - product).norm() / product.norm()).item() < GRADIENT_ERROR


def test_inputs_that_are_scaled_before_the_product_are_refused(host):
    import nodes
    from pistachio.bridge.model import HostModel
    from pistachio.training.errors import PistachioError
    from safetensors.torch import load_file, save_file

    if host.version < (0, 4):
        return  # it reads no such file
    name, _ = _save_kitchen(host.models, "nvfp4")
    stored = load_file(host.models / "diffusion_models" / name)
    stored["blocks.0.ffn.0.pre_quant_scale"] = torch.full((128,), 0.5)
    save_file(stored, host.models / "diffusion_models" / "wan_scaled_inputs.safetensors")
    with torch.inference_mode(), pytest.raises(PistachioError, match="'blocks.0.ffn.0' scales its inputs"):
        HostModel(nodes.UNETLoader().load_unet("wan_scaled_inputs.safetensors", "default")[0])


@pytest.mark.parametrize("fmt", ["fp8", "metadata", "comfy_quant", "nvfp4"])
def test_a_weight_seen_in_use_is_the_one_that_the_host_casts(host, tiny, fmt):
    """How layers of other packs are trained through, on the host's own: what they multiply by is watched, whatever it is made of."""
    import nodes
    from pistachio.bridge.model import HostModel
    from pistachio.bridge.weight_in_use import weight_in_use

    tiny("wan21")
    if fmt in KITCHEN or fmt == "comfy_quant":
        if host.version < (0, 4):
            return
        name = (_save_kitchen if fmt in KITCHEN else _save)(host.models, fmt)[0]
    else:
        name = "tiny_wan21.safetensors" if fmt == "fp8" else _save(host.models, fmt)[0]
    with torch.inference_mode():
        patcher = nodes.UNETLoader().load_unet(name, "fp8_e4m3fn" if fmt == "fp8" else "default")[0]
        patcher.add_patches({"diffusion_model.blocks.0.ffn.0.weight": (torch.full((256, 128), 0.01),)})
        model = HostModel(patcher, precision="fp32")
        like = torch.zeros(1, dtype=torch.float32)
        for path in ("blocks.0.self_attn.q", "blocks.0.ffn.0"):
            module = model.network.get_submodule(path)
            with model.weight_for_backward(module, like) as expected:
                torch.testing.assert_close(weight_in_use(module, like), expected.float())


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
