"""Norms, gates, rotations and activations of the host's own blocks through the kernels' autograd functions.

The operations are the kernels' torch references, which other tests hold the kernels against; the blocks are ComfyUI's own.
"""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from pistachio.training.kernels import open_door, shut_doors
from pistachio.training.kernels.table import OPERATIONS
from support.prepared import Prepared, relative, snapshot, unchanged

CPU = torch.device("cpu")
EXACT = "norm_modulate=cuda,norm_modulate_backward=cuda,column_sums=cuda,gated_residual=cuda,rms_rope_=cuda,rms_rope_backward=cuda"
# Family -> operations of a step of two pictures that must have been called, and how often in one forward.
CALLED = {
    "wan21": {"norm_modulate": 5 * 2, "rms_rope_": 2 * 2, "gated_residual": 2 * 2},
    "flux": {"norm_modulate": 4 + 1, "rms_rope_": 4 + 2, "gated_residual": 4 + 1},
    "sd3": {"norm_modulate": 1, "gated_residual": 1},
    "sdxl": {"norm_modulate": 3},
}
ACTIVATION = {"wan21": "gelu8", "flux": "gelu8", "sd3": "gelu8", "sdxl": "geglu8"}


@pytest.fixture(scope="module", params=CALLED)
def prepared(request, host, tiny):
    return Prepared(tiny(request.param))


@pytest.fixture
def called(monkeypatch):
    """Counted, and run by torch in the card's place."""
    counted = {}

    def by_torch(name, operation):
        def run(launcher, *arguments):
            counted[name] = counted.get(name, 0) + 1
            return operation.torch(*arguments)

        return run

    for name, operation in list(OPERATIONS.items()):
        if operation.cuda is not None:
            monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(operation, cuda=by_torch(name, operation)))
    yield counted
    shut_doors()


def gradient(prepared, keep="everything"):
    with prepared.model.training(), prepared.network(keep=keep) as network:
        return prepared.gradient(network)


def test_a_step_through_the_kernels_is_the_hosts(prepared, called):
    before = snapshot(prepared.model.network)
    exact = gradient(prepared)
    open_door(EXACT, CPU, launcher=object())
    found = gradient(prepared)
    print(prepared.tiny.family, called, relative(found, exact))
    assert relative(found, exact) < 2e-5
    for name, count in CALLED[prepared.tiny.family].items():
        assert called.get(name, 0) >= count, called
    assert unchanged(prepared.model.network, before)


@pytest.mark.parametrize("prepared", ["wan21", "flux"], indirect=True)  # the two with every kind of place
@pytest.mark.parametrize("keep", ["blocks", "attention", "products"])
def test_what_blocks_keep_does_not_change_it(prepared, called, keep):
    open_door(EXACT, CPU, launcher=object())
    whole = gradient(prepared)
    assert relative(gradient(prepared, keep), whole) < 1e-6


def test_activations_kept_in_eight_bits(prepared, called):
    exact, name = gradient(prepared), ACTIVATION[prepared.tiny.family]
    open_door(f"{name}=cuda,{name}_backward=cuda", CPU, launcher=object())
    found = gradient(prepared)
    assert called[name] >= 2 and called[f"{name}_backward"] >= 1
    assert 0 < relative(found, exact) < 2e-2


def test_nothing_is_called_unasked(prepared, called):
    exact = gradient(prepared)
    open_door("auto", CPU, launcher=object())
    assert torch.equal(gradient(prepared), exact) and called == {}
    open_door(EXACT, CPU, launcher=object())
    with prepared.model.training(), prepared.network(), torch.no_grad():
        prepared.errors()
    assert called == {}  # outside of what is trained the host's own code runs


@contextmanager
def packed_network(prepared, called):
    """(a network whose base is in fp8, itself prepared) with every kernel chosen."""
    from pistachio.bridge.quantize import quantize_base

    with torch.inference_mode():
        model, _ = quantize_base(prepared.tiny.model, "fp8-row")
    packed = Prepared(type(prepared.tiny)(**{name: getattr(prepared.tiny, name) for name in prepared.tiny.__slots__ if name != "model"}, model=model))
    open_door("cuda", CPU, launcher=object())
    called.clear()
    with packed.model.training(), packed.network() as network:
        yield network, packed


def test_a_base_in_eight_bits_under_every_kernel(prepared, called):
    """Each norm before a linear in 8 bits writes that one's codes, where the block modulates at all."""
    exact = gradient(prepared)
    with packed_network(prepared, called) as (network, packed):
        found = packed.gradient(network)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) >= 0.95
    assert called["product_lora_fp8"] > called["quantise_rows"] > 0
    assert (called.get("norm_modulate_codes", 0) > 0) == (prepared.tiny.family != "sdxl")


@pytest.mark.parametrize("prepared", ["wan21"], indirect=True)  # whose linears are counted here
def test_codes_are_made_by_the_norm_and_once_for_three(prepared, called):
    """A linear finds its input's codes made by the norm before it, or by its neighbour."""
    with packed_network(prepared, called) as (_, packed):
        packed.errors()
    # A block's ten linears: q, k, v and the MLP's first read a norm's codes; k and v of the caption share theirs.
    inside = 10 * len(packed.model.blocks())
    assert called["norm_modulate_codes"] == 4 and called["product_lora_fp8"] >= inside
    assert called["product_lora_fp8"] - called["quantise_rows"] == 2 * (4 + 1)
