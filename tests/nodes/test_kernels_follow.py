"""Fifty steps of two blocks of Wan and Flux with every linear in 8 bits both ways, beside the same steps in float32.

ComfyUI's own blocks, 256 wide; the products are plain torch's, with the kernels' formats and roundings.
"""

import dataclasses
from contextlib import ExitStack

import pytest
import torch
from pistachio.training.kernels import open_door, shut_doors
from pistachio.training.kernels.table import OPERATIONS
from pistachio.training.patching import replaced_forward
from support import tiny_objects
from support.prepared import Prepared
from support.tiny_networks import FAMILIES, NEWER_FLUX
from support.tiny_objects import ObjectFamily

STEPS = 50
LINEARS = {"wan": 20, "flux": 13}  # of the two blocks
LEAST_COSINE = 0.995
# Of the float32 run's loss: what a forward with errors of this size may change of it.
LOSS_TOLERANCE = {"int8-convrot": 2e-2, "fp8-row": 5e-2}

WIDE = {
    "wan": ObjectFamily(
        config_class="WAN21_T2V", latent_shape=(1, 16, 1, 8, 8), caption_shape=(1, 16, 4096),
        network=dict(FAMILIES["wan21"].network, dim=256, ffn_dim=512, num_heads=2, num_layers=2),
    ),
    "flux": ObjectFamily(
        config_class="Flux", latent_shape=(1, 16, 8, 8), caption_shape=(1, 16, 256), pooled_width=32,
        parameters="comfy.ldm.flux.model:FluxParams", newer=NEWER_FLUX,
        network=dict(FAMILIES["flux"].network, hidden_size=256, num_heads=2, vec_in_dim=32, context_in_dim=256, mlp_ratio=2.0),
    ),
}


@pytest.fixture(scope="module", params=WIDE)
def prepared(request, host):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_objects.OBJECT_FAMILIES, request.param, WIDE[request.param])
        return Prepared(tiny_objects.load(request.param))


def eight_bit_forwards(network, format):
    """(module, its forward as one 8-bit LoRA) of every adapted linear of the blocks."""
    from pistachio.training.kernels.linear import Adapter, lora_linear
    from pistachio.training.quantization.formats import quantize, why_not

    inside, found = tuple(f"{name}." for name, _ in network.model.blocks()), []
    for path, adapter in network.adapters.items():
        if adapter.is_conv or not path.startswith(inside) or why_not(adapter.module.weight.shape, format):
            continue
        packed, bias = quantize(adapter.module.weight, format), adapter.module.bias
        bias = None if bias is None else bias.detach().clone()

        def forward(x, packed=packed, bias=bias, adapter=adapter):
            factors = Adapter(adapter.tensors["lora_A"], adapter.tensors["lora_B"])
            return lora_linear(x, packed, bias, [factors], adapter.scale)

        found.append((adapter.module, forward))
    return found


@pytest.fixture
def every_kernel(monkeypatch):
    """All that the door can give to kernels, run by their torch references."""
    by_torch = lambda operation: dataclasses.replace(operation, cuda=lambda launcher, *arguments: operation.torch(*arguments))
    for name, operation in list(OPERATIONS.items()):
        if operation.cuda is not None:
            monkeypatch.setitem(OPERATIONS, name, by_torch(operation))
    yield lambda: open_door("cuda", torch.device("cpu"), launcher=object())
    shut_doors()


def run(prepared, format, compared_at=()):
    """(losses, cosine of the adapters' gradients with float32's at the same weights, linears in 8 bits)"""
    losses, cosines = [], []
    with prepared.model.training(), prepared.network() as network:
        optimizer = torch.optim.AdamW([network.parameters], lr=1e-3)
        forwards = eight_bit_forwards(network, format) if format else []
        for step in range(STEPS):
            # Another draw of noise and sigma each step.
            random = torch.Generator().manual_seed(100 + step)
            prepared.noise = torch.randn(prepared.latents.shape, generator=random)
            prepared.sigma = prepared.model.sigma_at(torch.rand(2, generator=random) * 0.9 + 0.05)
            exact = prepared.gradient(network) if step in compared_at else None
            network.gradients.zero_()
            with ExitStack() as stack:
                for module, forward in forwards:
                    stack.enter_context(replaced_forward(module, forward))
                stack.enter_context(prepared.model.row_kernels())  # around these forwards too
                loss = prepared.errors().mean()
                loss.backward()
            if exact is not None:
                cosines.append(torch.nn.functional.cosine_similarity(network.gradients, exact, dim=0).item())
            losses.append(loss.item())
            optimizer.step()
    return torch.tensor(losses), cosines, len(forwards)


@pytest.fixture(scope="module")
def reference(prepared):
    return run(prepared, None)[0]


@pytest.mark.parametrize("format", LOSS_TOLERANCE)
def test_fifty_steps_in_eight_bits_follow_float32(prepared, reference, format):
    losses, cosines, count = run(prepared, format, compared_at=(0, 9, 19, 29, 39, 49))
    assert count == LINEARS[prepared.tiny.family]
    print(f"{prepared.tiny.family} {format}: {count} linears, loss {losses[0]:.4f} -> {losses[-1]:.4f} (float32 {reference[-1]:.4f}), "
          f"largest relative difference {((losses - reference).abs() / reference).max():.1e}, least cosine {min(cosines):.5f}")
    assert min(cosines) >= LEAST_COSINE
    assert ((losses - reference).abs() / reference).max() <= LOSS_TOLERANCE[format]
    assert reference[-10:].mean() < 0.9 * reference[:10].mean()  # there was something to follow


def test_fifty_steps_by_every_kernel_follow_float32(prepared, reference, every_kernel):
    """Products in int8, norms, gates, rotations and activations with what they keep in 8 bits: against float32 without any of them."""
    losses, _, count = run_with(every_kernel, prepared, "int8-convrot")
    assert count == LINEARS[prepared.tiny.family]
    assert ((losses - reference).abs() / reference).max() <= LOSS_TOLERANCE["int8-convrot"]
    with prepared.model.training(), prepared.network() as network:
        exact = prepared.gradient(network)
    every_kernel()
    with prepared.model.training(), prepared.network() as network, ExitStack() as stack:
        for module, forward in eight_bit_forwards(network, "int8-convrot"):
            stack.enter_context(replaced_forward(module, forward))
        stack.enter_context(prepared.model.row_kernels())
        found = prepared.gradient(network)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) >= LEAST_COSINE


def run_with(every_kernel, prepared, format):
    every_kernel()
    try:
        return run(prepared, format)
    finally:
        shut_doors()
