"""Quantize Base: another MODEL in fewer bytes, right in generation and in training, and the given one as it was."""

import pytest
import torch
from support import tiny_objects

FORMATS = ("fp8-row", "int8-convrot", "nf4")
OUTPUT_ERROR = {"fp8-row": 0.04, "int8-convrot": 0.02, "nf4": 0.15}


@pytest.fixture(scope="module")
def made(host, tiny):
    """format -> (Tiny, the quantised MODEL, its report, the given MODEL's weights before), made once each."""
    from pistachio.bridge.quantize import quantize_base

    kept = {}

    def get(format):
        if format not in kept:
            wan = tiny("wan21")
            before = {name: tensor.clone() for name, tensor in wan.model.model.state_dict().items()}
            with torch.inference_mode():
                kept[format] = (wan, *quantize_base(wan.model, format), before)
        return kept[format]

    return get


def linears(patcher):
    from pistachio.bridge.quantize import is_linear_layer

    return {path: module for path, module in patcher.model.diffusion_model.named_modules() if is_linear_layer(module)}


def dense(module):
    """The dequantised weight, in fp64."""
    from pistachio.bridge.packed_linear import PackedLinear
    from pistachio.training.quantization.formats import dequantize

    weight = dequantize(module.packed()) if isinstance(module, PackedLinear) else module.weight.dequantize()
    return weight.double()


@pytest.mark.parametrize("format", FORMATS)
def test_the_given_model_is_as_it_was_and_the_other_takes_less(made, format):
    from pistachio.bridge.quantize import size_bytes

    wan, quantised, report, before = made(format)
    after = wan.model.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not set(map(id, wan.model.model.parameters())) & set(map(id, quantised.model.parameters()))
    ours = {p.data_ptr() for p in wan.model.model.parameters()}
    assert not ours & {p.data_ptr() for p in quantised.model.parameters()}
    assert report.size_bytes_before == size_bytes(wan.model.model) and report.size_bytes_after == size_bytes(quantised.model)
    assert quantised.model_size() <= report.size_bytes_after * 1.001  # what the host reckons with
    of_fp32 = {"fp8-row": 0.27, "int8-convrot": 0.27, "nf4": 0.16}[format]
    assert report.layer_bytes_after < report.layer_bytes_before * of_fp32


@pytest.mark.parametrize("format", FORMATS)
def test_the_report_names_every_layer(made, format):
    wan, quantised, report, _ = made(format)
    paths = [layer.path for layer in report.layers]
    assert paths == [path for path in linears(wan.model) if path.startswith("blocks.")]
    assert {path for path, _ in report.kept} == set(linears(wan.model)) - set(paths)
    for layer in report.layers:
        true = linears(wan.model)[layer.path].weight.double()
        assert layer.weight_error == pytest.approx(((dense(linears(quantised)[layer.path]) - true).norm() / true.norm()).item(), rel=1e-3)
        assert 0 < layer.output_error < OUTPUT_ERROR[format]
    text = report.text()
    assert report.worst()[0].output_error == max(layer.output_error for layer in report.layers)
    assert report.worst()[0].path in text and format in text and "outside the chosen blocks" in text


@pytest.mark.parametrize("format", FORMATS)
def test_the_gradient_of_each_layer_is_the_product_with_its_stored_weight(made, format):
    from pistachio.bridge.model import HostModel
    from pistachio.training.frozen import FrozenLinear

    _, quantised, report, _ = made(format)
    with torch.inference_mode():
        model = HostModel(quantised, precision="fp32")
    layers = linears(model.patcher)
    for scale in (1.0, 1e-6):
        for layer in report.layers[:7]:
            module = layers[layer.path]
            source = torch.Generator().manual_seed(5)
            x = torch.randn(3, module.in_features, generator=source).requires_grad_(True)
            dy = torch.randn(3, module.out_features, generator=source) * scale
            with model.training():
                FrozenLinear.apply(x, module.forward, module, model).backward(dy)
            expected = dy.double() @ dense(module)
            assert ((x.grad.double() - expected).norm() / expected.norm()).item() < 1e-6


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_of_a_lora_equal_finite_differences_of_the_quantised_network(made, format):
    from pistachio.bridge.conditions import prepare
    from pistachio.bridge.model import HostModel
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig
    from pistachio.training.objective import prediction_error

    wan, quantised, _, _ = made(format)
    with torch.inference_mode():
        model = HostModel(quantised, precision="fp32")
    native = any(hasattr(module, "quant_format") for module in linears(quantised).values())
    latents, noise = (torch.randn(wan.latent_shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    with model.training():
        condition = prepare(model.base_model, wan.condition("a red cat"), latents)
        with AdaptedNetwork(model, AdapterConfig(rank=4, alpha=4), seed=0) as network:
            def error():
                return prediction_error(model, latents, noise, model.sigma_at(torch.tensor([0.6])), [condition]).sum()

            with torch.no_grad():
                network.parameters.copy_(0.05 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3)))
            error().backward()
            gradient = network.gradients.clone()
            # The host's int8 layers round activations, which makes steps in the loss: the difference must be wide.
            direction, epsilon = gradient / gradient.norm(), 0.1 if native else 3e-3
            with torch.no_grad():
                network.parameters.add_(direction, alpha=epsilon)
                above = error().double().item()
                network.parameters.sub_(direction, alpha=2 * epsilon)
                below = error().double().item()
    numeric = (above - below) / (2 * epsilon)
    assert abs(gradient.norm().item() - numeric) / abs(numeric) < (0.05 if native else 2e-3)


def sampled(wan, patcher):
    import nodes

    latent = {"samples": torch.zeros(wan.latent_shape)}
    with torch.inference_mode():
        return nodes.common_ksampler(patcher, 7, 2, 1.0, "euler", "simple", wan.condition("a red cat"), wan.condition(""), latent)[0]["samples"]


@pytest.mark.parametrize("format", FORMATS)
def test_it_generates_and_takes_a_lora_by_the_stock_loader(made, format):
    """A LoRA as large as an 8-bit step of the weights: laid over them, not rounded into them."""
    import comfy.sd

    wan, quantised, _, _ = made(format)
    before = [p.detach().clone() for p in quantised.model.parameters()]
    plain, ours = sampled(wan, wan.model), sampled(wan, quantised)
    assert 0 < (ours - plain).norm() / plain.norm() < 3 * OUTPUT_ERROR[format]
    source, lora = torch.Generator().manual_seed(6), {}
    for path, module in linears(wan.model).items():
        lora[f"diffusion_model.{path}.lora_A.weight"] = 0.02 * torch.randn(2, module.in_features, generator=source)
        lora[f"diffusion_model.{path}.lora_B.weight"] = 0.05 * torch.randn(module.out_features, 2, generator=source)
    with torch.inference_mode():
        plain_lora, ours_lora = (comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0] for model in (wan.model, quantised))
    matched = len(ours_lora.patches)
    assert matched == len(plain_lora.patches) == len(linears(wan.model))
    change, expected = sampled(wan, ours_lora) - ours, sampled(wan, plain_lora) - plain
    rounded_in = format == "int8-convrot" and any(hasattr(module, "quant_format") for module in linears(quantised).values())
    assert expected.norm() / plain.norm() > 0.01
    assert torch.nn.functional.cosine_similarity(change.flatten(), expected.flatten(), dim=0) > (0.8 if rounded_in else 0.95)
    assert torch.equal(sampled(wan, quantised), ours)
    with torch.inference_mode():
        ours_lora.detach()
    after = list(quantised.model.parameters())
    from pistachio.bridge.quantize import stored_tensors

    for one, other in zip(before, after):
        for a, b in zip(stored_tensors(one), stored_tensors(other)):
            assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("format", ["int8-convrot", "nf4"])
def test_an_adapter_on_any_layer_is_seen_in_samples_of_a_run(made, format):
    """The host runs the second layer of Wan's MLP in int8 without calling it."""
    from pistachio.bridge.model import HostModel
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config import AdapterConfig

    wan, quantised, _, _ = made(format)
    with torch.inference_mode():
        model = HostModel(quantised, precision="fp32")
    with model.training():
        with AdaptedNetwork(model, AdapterConfig(rank=2, alpha=2, include=r"ffn\.2$"), seed=0) as network:
            with model.generating():
                before = sampled(wan, model.patcher)
            with torch.no_grad():
                network.parameters.add_(0.1)
            with model.generating():
                after = sampled(wan, model.patcher)
    assert (after - before).norm() / before.norm() > 1e-2


@pytest.mark.parametrize("format", ["fp8-row"])
def test_a_model_that_is_loaded_in_part_is_the_same(made, format):
    import comfy.sd

    wan, quantised, _, _ = made(format)
    source = torch.Generator().manual_seed(6)
    lora = {}
    for path, module in linears(wan.model).items():
        lora[f"diffusion_model.{path}.lora_A.weight"] = 0.02 * torch.randn(2, module.in_features, generator=source)
        lora[f"diffusion_model.{path}.lora_B.weight"] = 0.05 * torch.randn(module.out_features, 2, generator=source)
    with torch.inference_mode():
        patcher = comfy.sd.load_lora_for_models(quantised, None, lora, 1.0, 0.0)[0]
    whole = sampled(wan, patcher)
    with torch.inference_mode():
        patcher.partially_unload(torch.device("cpu"), patcher.model_size() // 20)
        layers = [module for path, module in linears(patcher).items() if path.startswith("blocks.")]
        assert any(layer.weight_function for layer in layers) and not all(layer.weight_function for layer in layers)
    x = torch.randn(2, 128)
    layer = next(layer for layer in layers if layer.weight_function)
    assert layer.beside is not None and not torch.equal(layer.dense_weight(x), dense(layer).float())
    torch.testing.assert_close(sampled(wan, patcher), whole)
    with torch.inference_mode():
        patcher.detach()


def test_the_hosts_int8_is_saved_and_loaded_by_stock_nodes(made, host, tmp_path):
    import comfy.sd
    from pistachio.bridge.quantize import host_has_int8_convrot
    from pistachio.training.errors import PistachioError

    wan, quantised, _, _ = made("int8-convrot")
    with torch.inference_mode():
        if not host_has_int8_convrot():
            with pytest.raises(PistachioError, match="Save Model"):
                comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), quantised)
            return
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), quantised)
        again = comfy.sd.load_diffusion_model(str(tmp_path / "saved.safetensors"))
    for path, module in linears(quantised).items():
        if path.startswith("blocks."):
            other = linears(again)[path]
            assert torch.equal(other.weight._qdata, module.weight._qdata) and other.weight._params.convrot
    ours, theirs = sampled(wan, quantised), sampled(wan, again)
    assert (ours - theirs).norm() / ours.norm() < 0.02


def test_other_formats_are_not_saved(made, tmp_path):
    import comfy.sd
    from pistachio.training.errors import PistachioError

    with torch.inference_mode(), pytest.raises(PistachioError, match="Save the model that Quantize Base was given"):
        comfy.sd.save_checkpoint(str(tmp_path / "saved.safetensors"), made("nf4")[1])
    assert not (tmp_path / "saved.safetensors").exists()


def test_blocks_and_layers_that_are_kept(made, tiny):
    from pistachio.bridge.quantize import quantize_base
    from pistachio.training.errors import PistachioError

    wan = tiny("wan21")
    with torch.inference_mode():
        _, report = quantize_base(wan.model, "fp8-row", blocks="1", keep="ffn\nself_attn.o$")
        paths = [layer.path for layer in report.layers]
        assert paths and all(path.startswith("blocks.1.") and "ffn" not in path and not path.endswith("self_attn.o") for path in paths)
        for settings, told in (
            ({"blocks": "0-9"}, "outside this model's 2 blocks"), ({"blocks": "first"}, "no number and no range"),
            ({"keep": "nothing_here"}, "finds no linear layer"), ({"keep": "["}, "no regular expression"),
        ):
            with pytest.raises(PistachioError, match=told):
                quantize_base(wan.model, "fp8-row", **settings)
        quantised = made("fp8-row")[1]
        with pytest.raises(PistachioError, match="stored in fewer bits already"):
            quantize_base(quantised, "nf4")


def test_a_lora_on_the_given_model_stays_a_lora(made):
    """The host has laid it into the weights by then; they are stored without it."""
    import comfy.model_management
    from pistachio.bridge.quantize import quantize_base

    wan, bare, _, before = made("fp8-row")
    key = "diffusion_model.blocks.0.ffn.0.weight"
    with torch.inference_mode():
        patched = wan.model.clone()
        patched.add_patches({key: (torch.full((256, 128), 0.05),)})
        comfy.model_management.load_models_gpu([patched])
        assert not torch.equal(patched.model.state_dict()[key], before[key])
        quantised, _ = quantize_base(patched, "fp8-row")
    one, other = (model.model.get_submodule(key.removesuffix(".weight")) for model in (bare, quantised))
    assert torch.equal(one.weight.view(torch.uint8), other.weight.view(torch.uint8))
    assert set(quantised.patches) == {key} and torch.equal(wan.model.model.state_dict()[key], before[key])
    assert (sampled(wan, quantised) - sampled(wan, bare)).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["qwen_image", "hunyuan_video"])
def test_models_of_other_families(host, family):
    from pistachio.bridge.quantize import quantize_base

    tiny = tiny_objects.load(family)
    quantised, report = quantize_base(tiny.model, "int8-convrot")  # outside of a node's inference mode
    plain, ours = sampled(tiny, tiny.model), sampled(tiny, quantised)
    assert len(report.layers) >= 10
    assert (ours - plain).norm() / plain.norm() < 0.1


def test_the_node(host, tiny):
    import nodes as _  # noqa: F401  the host's
    from pistachio.nodes.quantize import QuantizeBase

    wan = tiny("wan21")
    with torch.inference_mode():
        output = QuantizeBase.execute(wan.model)
    model, report = output.args
    assert model.model is not wan.model.model and "int8-convrot" in report
