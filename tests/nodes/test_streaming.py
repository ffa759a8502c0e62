"""Streamed blocks over the host's own networks: resident training's numbers to the bit, and the caller's model as it was."""

from __future__ import annotations

import pytest
import torch
from support import tiny_objects
from support.prepared import Prepared, snapshot, unchanged
from support.stream_watch import Watch
from support.tiny_models import FILES

FAMILIES = (*FILES, *tiny_objects.OBJECT_FAMILIES)
LEVELS = ("everything", "blocks")


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, host, tiny):
    if request.param in FILES:
        return Prepared(tiny(request.param))
    missing = tiny_objects.why_missing(request.param)
    if missing:
        pytest.skip(missing)
    return Prepared(tiny_objects.load(request.param))


def numbers(prepared, keep, computing=None):
    """An evaluation, a step of two micro-batches, a pass of the base alone, and another evaluation."""
    found = []
    with prepared.network(keep=keep) as network:
        with torch.no_grad():
            found.append(prepared.predict())
        found.append(prepared.gradient(network, [0], [1]))
        with torch.no_grad(), network.disabled():
            found.append(prepared.predict())
        found.append(prepared.gradient(network, [0]))
        with torch.no_grad():
            found.append(prepared.predict())
    return found


def unloaded(prepared):
    """The caller's model as the host leaves it, bits and all; then loaded again."""
    import comfy.model_management

    with torch.inference_mode():
        prepared.model.patcher.detach()
        seen = snapshot(prepared.tiny.model.model.diffusion_model)
        comfy.model_management.load_models_gpu([prepared.model.patcher])
    return seen


class Boom(Exception):
    pass


@pytest.mark.parametrize("keep", LEVELS)
def test_streamed_numbers_are_the_resident_ones(prepared, keep):
    from pistachio.training.streaming.context import streamed
    from pistachio.training.streaming.simulated import SimulatedDevice

    model, network = prepared.model, prepared.tiny.model.model.diffusion_model
    before, attributes = unloaded(prepared), set(vars(prepared.tiny.model.model))
    num_blocks = len(model.blocks())
    with model.training():
        expected = numbers(prepared, keep)
        with pytest.raises(Boom), streamed(model, num_blocks, slots=1 if num_blocks == 2 else 2, device=SimulatedDevice()) as ring:
            with Watch(ring) as watch:
                found = numbers(prepared, keep)
            assert watch.reads > 0 and ring.counts.copies > num_blocks
            raise Boom
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert unchanged(network, before) and vars(prepared.tiny.model.model).keys() == attributes
