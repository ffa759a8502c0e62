"""Streamed blocks over the host's own networks: resident training's numbers to the bit, and the caller's model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image
from support import tiny_objects
from support.encoded import encoded_set
from support.prepared import Prepared, snapshot, unchanged
from support.stream_watch import Watch
from support.tiny_models import FILES

FAMILIES = (*FILES, *tiny_objects.OBJECT_FAMILIES)
LEVELS = ("everything", "blocks", "attention", "products")


@pytest.fixture(scope="module", params=FAMILIES)
def prepared(request, host, tiny):
    return made(request.param, tiny)


@pytest.fixture(scope="module")
def wan(host, tiny):
    return made("wan21", tiny)


def made(family, tiny):
    if family in FILES:
        found = Prepared(tiny(family))
    else:
        missing = tiny_objects.why_missing(family)
        if missing:
            pytest.skip(missing)
        found = Prepared(tiny_objects.load(family))
    with torch.no_grad(), found.model.training():
        found.predict()  # some networks give their modules an attribute in their first pass
    return found


def numbers(prepared, keep="everything"):
    """A step of two micro-batches, a pass of the base alone, and another step."""
    found = []
    with prepared.network(keep=keep) as network:
        found.append(prepared.gradient(network, [0], [1]))
        with torch.no_grad(), network.disabled():
            found.append(prepared.predict())
        found.append(prepared.gradient(network, [0]))
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


def compare(prepared, keep):
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


def test_streamed_numbers_are_the_resident_ones(prepared):
    """Each family at one level, its place in the list says which."""
    compare(prepared, LEVELS[FAMILIES.index(prepared.tiny.family) % len(LEVELS)])


@pytest.mark.parametrize("keep", LEVELS)
def test_streaming_goes_with_every_level_of_what_blocks_keep(wan, keep):
    compare(wan, keep)


def with_loras(patcher):
    """As a LoRA loader before Train LoRA leaves it: each weight is patched when it is loaded."""
    patched, generator = patcher.clone(), torch.Generator().manual_seed(4)
    with torch.inference_mode():
        patched.add_patches({
            f"diffusion_model.{name}.weight": (0.02 * torch.randn(module.weight.shape, generator=generator),)
            for name, module in patcher.model.diffusion_model.named_modules() if isinstance(module, torch.nn.Linear)
        })
    return patched


def quantised(format):
    def make(patcher):
        from pistachio.bridge.quantize import quantize_base

        with torch.inference_mode():
            return quantize_base(patcher, format)[0]

    return make


@pytest.mark.parametrize("change", [with_loras, quantised("fp8-row"), quantised("int8-convrot"), quantised("nf4")], ids=["loras", "fp8-row", "int8-convrot", "nf4"])
def test_a_changed_base_streams(wan, change):
    """With another evaluation by the host in between, as samples are made: it loads the model by itself."""
    import comfy.model_management
    from pistachio.bridge.model import HostModel
    from pistachio.training.streaming.context import streamed
    from pistachio.training.streaming.simulated import SimulatedDevice

    changed = copy.copy(wan)
    with torch.inference_mode():
        changed.model = HostModel(change(wan.tiny.model), precision="fp32")
    model = changed.model

    def picture():
        with model.generating():
            comfy.model_management.load_models_gpu([model.patcher])
            return changed.predict().clone()

    with model.training():
        with changed.network(keep="blocks") as network:
            expected = [changed.gradient(network), picture(), changed.gradient(network)]
        weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        with streamed(model, 2, slots=1, device=SimulatedDevice()) as ring, changed.network(keep="blocks") as network:
            with Watch(ring):
                found = [changed.gradient(network)]
            found.append(picture())
            with Watch(ring):
                found.append(changed.gradient(network))
            with pytest.raises(Boom), model.generating():
                raise Boom
            with Watch(ring):
                found.append(changed.gradient(network))
    assert all(torch.equal(a, b) for a, b in zip(found, [*expected, expected[0]], strict=True))
    assert not torch.equal(found[0], wan.plain_gradient)  # the change counted
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model.patcher])
    after = model.network.state_dict()
    assert all(same_bits(after[name], tensor) for name, tensor in weights.items())


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def test_a_whole_run_with_samples_is_the_resident_one_and_says_what_it_could_not_do(tiny, tmp_path):
    """Through Train LoRA's own door: evaluations, samples by the host's sampler and saves in between."""
    from pistachio.bridge.sampling import SampleSettings
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, TrainConfig
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.config.samples import SampleConfig
    from pistachio.training.run import RunFolder

    model = tiny("wan21")
    encoded = encoded_set(tmp_path / "cache", model, num_train=2, num_held_out=1)
    config = TrainConfig(
        num_steps=2, batch_size=2, seed=5, adapter=AdapterConfig(rank=2, alpha=2), precision="fp32",
        evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=2, early_stop=False),
    )

    def run(name, memory):
        samples = SampleSettings(config=SampleConfig(num_steps=1, every_evaluations=1, width=64, height=64, without_trigger=False), clip=model.clip, vae=model.vae)
        with torch.inference_mode():
            done = train_lora(
                model.model, encoded, config, run_name=name, logging_config=LoggingConfig(), runs_folder=tmp_path, log_row=lambda row: None,
                check_interrupted=lambda: None, samples=samples, memory=memory,
            )
        folder = RunFolder(done.folder)
        pictures = [Image.open(path).tobytes() for path in sorted(folder.path.rglob("*-trigger.png"))]
        assert pictures
        return folder.load_state()["average"], pictures, folder.report()["notes"]

    average, pictures, _ = run("resident", None)
    found, same_pictures, notes = run("streamed", MemoryConfig(blocks_streamed=2, keep="everything", cuda_graph="on", compile="blocks"))
    assert torch.equal(found, average) and same_pictures == pictures
    assert any(note.startswith("2 blocks were streamed") for note in notes)
    assert any(note.startswith("No CUDA graphs: blocks are streamed") for note in notes)
    assert any(note.startswith("The blocks are not compiled: streamed blocks") for note in notes)
