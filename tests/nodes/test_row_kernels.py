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
