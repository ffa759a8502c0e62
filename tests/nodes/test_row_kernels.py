"""Norms, gates, rotations and activations of the host's own blocks through the kernels' autograd functions.

The operations are the kernels' torch references, which other tests hold the kernels against; the blocks are ComfyUI's own.
"""

import dataclasses

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


@pytest.mark.parametrize("keep", ["blocks", "attention", "products"])
def test_what_blocks_keep_does_not_change_it(prepared, called, keep):
    if prepared.tiny.family not in ("wan21", "flux"):
        pytest.skip("the two with every kind of place stand for all")
    open_door(EXACT, CPU, launcher=object())
    whole = gradient(prepared)
    assert relative(gradient(prepared, keep), whole) < 1e-6


def test_activations_kept_in_eight_bits(prepared, called):
    if prepared.tiny.family == "sdxl":
        pytest.skip("its activation is another")
    exact = gradient(prepared)
    open_door("gelu8=cuda,gelu8_backward=cuda", CPU, launcher=object())
    found = gradient(prepared)
    assert called["gelu8"] >= 2 and called["gelu8_backward"] >= 1
    assert 0 < relative(found, exact) < 2e-2


def test_nothing_is_called_unasked(prepared, called):
    exact = gradient(prepared)
    open_door("auto", CPU, launcher=object())
    assert torch.equal(gradient(prepared), exact) and called == {}
    open_door(EXACT, CPU, launcher=object())
    with prepared.model.training(), prepared.network(), torch.no_grad():
        prepared.errors()
    assert called == {}  # outside of what is trained the host's own code runs


def test_codes_are_made_by_the_norm_and_once_for_three(prepared, called):
    """A base in fp8, every kernel chosen: a linear finds its input's codes made by the norm before it, or by its neighbour."""
    from pistachio.bridge.quantize import quantize_base

    if prepared.tiny.family != "wan21":
        pytest.skip("one family is enough")
    exact = gradient(prepared)
    with torch.inference_mode():
        model, _ = quantize_base(prepared.tiny.model, "fp8-row")
    packed = Prepared(type(prepared.tiny)(**{name: getattr(prepared.tiny, name) for name in prepared.tiny.__slots__ if name != "model"}, model=model))
    open_door("cuda", CPU, launcher=object())
    called.clear()
    with packed.model.training(), packed.network() as network:
        error = packed.errors().mean()
        forward = dict(called)
        network.gradients.zero_()
        error.backward()
    # A block's ten linears: q, k, v and the MLP's first read a norm's codes; k and v of the caption share theirs.
    inside = sum(1 for name, _ in packed.model.blocks() for _ in range(10))
    assert forward["norm_modulate_codes"] == 4 and forward["product_lora_fp8"] >= inside
    assert forward["product_lora_fp8"] - forward["quantise_rows"] == 2 * (4 + 1)
    assert torch.nn.functional.cosine_similarity(network.gradients, exact, dim=0) >= 0.95
