"""The engine over every named family's own classes: right gradients, right batches, files the stock loader reads, nothing left behind."""

from __future__ import annotations

import functools

import pytest
import torch
from support import tiny_objects
from support.prepared import BOTH, Prepared, relative, snapshot, unchanged
from support.tiny_models import FILES

FAMILIES = (*FILES, *tiny_objects.OBJECT_FAMILIES)


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, host, tiny):
    """One for all tests of a family: none of them may leave it changed."""
    if request.param in FILES:
        return Prepared(tiny(request.param))
    missing = tiny_objects.why_missing(request.param)
    if missing:
        pytest.skip(missing)
    return Prepared(tiny_objects.load(request.param))


def test_gradients_equal_finite_differences(prepared):
    """Those with block checkpointing too, since they are the same; the slope is taken along the gradient."""
    gradient = prepared.plain_gradient
    direction, epsilon = gradient / gradient.norm(), 3e-3
    with prepared.model.training(), prepared.network(keep="blocks") as network:
        found = prepared.gradient(network)
        with torch.no_grad():
            network.parameters.add_(direction, alpha=epsilon)
            above = prepared.errors().double().mean().item()
            network.parameters.sub_(direction, alpha=2 * epsilon)
            below = prepared.errors().double().mean().item()
    numeric = (above - below) / (2 * epsilon)
    assert abs((gradient @ direction).item() - numeric) / abs(numeric) < 1e-3
    assert abs((found @ direction).item() - numeric) / abs(numeric) < 1e-3
    assert relative(found, gradient) < 1e-5


def test_the_blocks_are_checkpointed(prepared):
    """Every block's forward runs a second time in the backward."""
    blocks = prepared.model.blocks()
    assert len(blocks) >= 2
    runs, handles = [], []
    try:
        for name, block in blocks:
            inner = next(module for module in block.modules() if prepared.model.is_linear(module) or prepared.model.is_conv(module))
            handles.append(inner.register_forward_pre_hook(lambda module, args, name=name: runs.append(name)))
        with prepared.model.training(), prepared.network(keep="blocks") as network:
            prepared.errors((0,)).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    once = len(runs) // 2
    assert once >= len(blocks) and sorted(runs[:once]) == sorted(runs[once:])
    assert {name for name, _ in blocks} == set(runs)


@pytest.mark.parametrize("keep, in_ram", [("everything", False), ("products", True), ("attention", False)])
def test_what_blocks_keep_changes_no_gradient(prepared, keep, in_ram, monkeypatch):
    """Every tensor counts as large, so that all is made again that would be at full size."""
    from pistachio.training import adapted
    from pistachio.training.saving import Thrift, saved_blocks

    everything_counts = dict(thrift=Thrift(block_input_bytes=0, tensor_bytes=0, product_flops_per_byte=8.0), worth_copying_bytes=0)
    monkeypatch.setattr(adapted, "saved_blocks", functools.partial(saved_blocks, **everything_counts))
    with prepared.model.training(), prepared.network(keep=keep, keep_in_ram=in_ram) as network:
        found = prepared.gradient(network)
    assert network.keep == keep
    assert relative(found.double(), prepared.plain_gradient.double()) < 1e-9  # the same operations on the same numbers


def test_a_batch_is_its_pictures_and_accumulation_is_the_larger_batch(prepared):
    with prepared.model.training(), prepared.network() as network:
        with torch.no_grad():
            together = prepared.errors()
            apart = torch.cat([prepared.errors([0]), prepared.errors([1])])
        assert relative(together, apart) < 1e-5
        assert relative(prepared.gradient(network, [0], [1]), prepared.plain_gradient) < 1e-4


def test_the_target_presets_find_the_attention_and_the_mlp_of_every_block(prepared):
    from pistachio.training.config import AdapterConfig
    from pistachio.training.targets import select_targets

    attention, with_mlp, linear, conv = (
        {target.path for target in select_targets(prepared.model, AdapterConfig(targets=preset))}
        for preset in ("attention", "attention+mlp", "all-linear", "all-linear+conv")
    )
    assert attention < linear <= conv and with_mlp < linear
    for name, block in prepared.model.blocks():
        inside = {path for path in linear if path.startswith(f"{name}.")}
        if type(block).__name__ == "ResBlock" or not inside:
            continue
        assert attention & inside
        assert with_mlp & inside > attention & inside or name.startswith("single_blocks")  # Flux's single blocks fuse the two
        assert not [path for path in (attention | with_mlp) & inside if "mod" in path.lower().removeprefix(name)]


def test_a_batch_costs_its_size(prepared):
    """The network sees B samples for a batch of B, where crossing every caption with every picture would make B x B."""
    seen = []
    handle = prepared.model.network.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    try:
        with prepared.model.training(), prepared.network():
            prepared.errors()
    finally:
        handle.remove()
    assert seen == [2]


def test_the_saved_file_gives_the_trained_forward_in_the_stock_loader(prepared, tmp_path, caplog):
    import comfy.utils
    from safetensors.torch import save_file

    with prepared.model.training(), prepared.network() as network, torch.no_grad():
        trained = prepared.predict()
        with network.disabled():
            base = prepared.predict()
        save_file(network.state_dict(), tmp_path / "lora.safetensors")
    with caplog.at_level("WARNING"):
        stock, num_patched = prepared.stock(comfy.utils.load_torch_file(str(tmp_path / "lora.safetensors"), safe_load=True))
    assert not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
    assert num_patched == len(network.adapters)
    assert relative(trained, base) > 1e-3  # the adapter does something
    assert relative(stock, trained) < 1e-4


class Boom(Exception):
    pass


def shared_functions():
    """What training swaps outside the model: functions that every model of the host shares."""
    import comfy.ldm.common_dit
    import comfy.model_management
    import comfy.quant_ops

    return (
        comfy.ldm.common_dit.rms_norm, getattr(comfy.model_management, "in_training", None),
        dict(vars(comfy.quant_ops.ck)) if hasattr(comfy.quant_ops, "ck") else None,
    )


@pytest.mark.parametrize("accident", [None, Boom, KeyboardInterrupt])
def test_the_callers_model_is_bit_identical_afterwards(prepared, accident):
    before = snapshot(prepared.tiny.model.model.diffusion_model)
    attributes = dict(vars(prepared.tiny.model.model))
    functions = shared_functions()
    try:
        with prepared.model.training(), prepared.network(keep="blocks") as network:
            prepared.gradient(network)
            if accident:
                raise accident
    except (Boom, KeyboardInterrupt):
        pass
    assert unchanged(prepared.tiny.model.model.diffusion_model, before)
    assert {k: v for k, v in vars(prepared.tiny.model.model).items() if k != "_modules"}.keys() == {k for k in attributes if k != "_modules"}
    assert prepared.tiny.model.model.manual_cast_dtype == attributes["manual_cast_dtype"]
    assert shared_functions() == functions


def test_bf16_compute_keeps_the_direction(prepared):
    from pistachio.bridge.model import HostModel

    exact = prepared.plain_gradient
    with torch.inference_mode():
        half = HostModel(prepared.tiny.model, precision="bf16")
    with half.training(), prepared.network() as network:
        rounded = prepared.gradient(network, model=half)
    with half.training(), prepared.network(keep="attention") as network:
        made_again = prepared.gradient(network, model=half)
    assert torch.nn.functional.cosine_similarity(made_again, rounded, dim=0) >= 0.999
    assert network.parameters.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.98
    assert relative(rounded, exact) > 1e-5  # it did compute in bf16
