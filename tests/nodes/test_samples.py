"""Samples while training, by the host's own sampler on the model in training: they change no number and leave no trace."""

from __future__ import annotations

import io
import json

import pytest
import torch
from PIL import Image
from support.encoded import encoded_set


def config(**changes):
    from pistachio.training.config import AdapterConfig, EvaluationConfig, OptimizerConfig, TrainConfig

    defaults = dict(
        num_steps=4, batch_size=1, seed=5, adapter=AdapterConfig(rank=2, alpha=2),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=0),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=4, early_stop=False),
    )
    return TrainConfig(**{**defaults, **changes})


def settings(tiny, **changes):
    from pistachio.bridge.sampling import SampleSettings
    from pistachio.training.config.samples import SampleConfig

    defaults = dict(num_steps=2, every_evaluations=1, width=64, height=64)
    return SampleSettings(config=SampleConfig(**{**defaults, **changes}), clip=tiny.clip, vae=tiny.vae)


def start(tiny, encoded, folder, *, samples=None, rows=None, logging=None, train_config=None):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    with torch.inference_mode():
        return train_lora(
            tiny.model, encoded, train_config or config(), run_name="anna", logging_config=logging or LoggingConfig(), runs_folder=folder,
            log_row=(rows if rows is not None else []).append, check_interrupted=lambda: None, samples=samples,
        )


def numbers(run):
    from pistachio.training.run import RunFolder

    folder = RunFolder(run.folder)
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in folder.metrics() if row["kind"] not in ("note", "sample")]
    state = folder.load_state()
    return rows, state["parameters"], state["average"]


def trace(tiny):
    """What must be the same of the user's model before and after: every module's own attributes, and every tensor's place."""
    network = tiny.model.model.diffusion_model
    modules = {path: sorted(name for name in vars(module)) for path, module in network.named_modules()}
    tensors = {name: (id(tensor), tensor.data_ptr(), tensor.is_inference()) for name, tensor in network.named_parameters()}
    return modules, tensors, sorted(tiny.model.model_options), tiny.model.patches_uuid, len(tiny.model.patches)


@pytest.mark.parametrize("family", ["sd15", "wan21"])
def test_a_run_is_bit_identical_with_samples_on_and_off(tiny, tmp_path, family):
    from pistachio.training.run import RunFolder

    model = tiny(family)
    encoded = encoded_set(tmp_path / "cache", model)
    without = start(model, encoded, tmp_path / "without")
    before, stream = trace(model), torch.get_rng_state()
    rows = []
    with_samples = start(model, encoded, tmp_path / "with", samples=settings(model), rows=rows)
    assert torch.equal(torch.get_rng_state(), stream)
    assert trace(model) == before
    (one, weights, average), (other, other_weights, other_average) = numbers(with_samples), numbers(without)
    assert one == other and torch.equal(weights, other_weights) and torch.equal(average, other_average)
    assert RunFolder(with_samples.folder).report()["notes"] == RunFolder(without.folder).report()["notes"]
    sampled = [row for row in rows if row["kind"] == "sample"]
    assert [row["step"] for row in sampled] == [0, 2, 4]
    assert [picture["file"].rsplit("/", 1)[1] for picture in sampled[0]["pictures"]] == [
        "00-with-trigger.png", "01-without-trigger.png", "02-with-trigger.png", "03-without-trigger.png",
    ]


def test_a_sample_is_what_the_checkpoint_gives_in_a_graph(tiny, tmp_path):
    """The stock loader, KSampler and VAE Decode with the saved LoRA give the picture of the run; so the averaged weights were sampled."""
    import nodes
    from pistachio.bridge.lora import apply_lora
    from pistachio.training.run import RunFolder

    model = tiny("sd15")
    encoded = encoded_set(tmp_path / "cache", model)
    prompt = "a photo of [trigger] woman"
    run = start(model, encoded, tmp_path, samples=settings(model, prompts=(prompt,), negative_prompt="blurry", num_steps=3, cfg=3.0, seed=11))
    picture = Image.open(run.folder / "samples" / "step-000004" / "00-with-trigger.png")
    described = json.loads(picture.text["pistachio"])
    assert described["prompt"] == "a photo of zwx woman" and described["step"] == 4 and described["seed"] == 11 and described["with_trigger"]
    assert picture.text["parameters"].startswith("a photo of zwx woman\nNegative prompt: blurry\nSteps: 3, Sampler: euler")
    with torch.inference_mode():
        trained = apply_lora(model.model, RunFolder(run.folder).checkpoint_file(4))
        latent = nodes.EmptyLatentImage().generate(64, 64)[0]
        sampled = nodes.KSampler().sample(
            trained, 11, 3, 3.0, "euler", "simple", model.condition("a photo of zwx woman"), model.condition("blurry"), latent
        )[0]
        expected = nodes.VAEDecode().decode(model.vae, sampled)[0][0]
    given = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(64, 64, 3).float() / 255
    assert (given - expected.clamp(0, 1)).abs().max() < 2.5 / 255
    untrained = Image.open(run.folder / "samples" / "step-000000" / "00-with-trigger.png")
    assert untrained.tobytes() != picture.tobytes()
    twin = json.loads(Image.open(run.folder / "samples" / "step-000004" / "01-without-trigger.png").text["pistachio"])
    assert twin["prompt"] == "a photo of woman" and twin["seed"] == 11 and not twin["with_trigger"]


def test_without_held_out_pictures_the_first_forward_may_be_a_sample(tiny, tmp_path):
    """What an adapter keeps from its first call must not be of the sampler's making."""
    from dataclasses import replace

    model = tiny("wan21")
    encoded = encoded_set(tmp_path / "cache", model)
    encoded = replace(encoded, items=tuple(replace(item, held_out=False) for item in encoded.items))
    with_samples = start(model, encoded, tmp_path / "with", samples=settings(model, prompts=("a [trigger]",)))
    without = start(model, encoded, tmp_path / "without")
    assert torch.equal(numbers(with_samples)[1], numbers(without)[1])


def test_a_failure_to_sample_is_a_note_and_the_run_goes_on(tiny, tmp_path, monkeypatch):
    from pistachio.training.run import RunFolder

    model = tiny("wan21")
    encoded = encoded_set(tmp_path / "cache", model)
    decode, calls = model.vae.decode, [0]

    def full_once(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 5:  # the first picture of the second evaluation
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(*args, **kwargs)

    monkeypatch.setattr(model.vae, "decode", full_once)
    run = start(model, encoded, tmp_path / "full", samples=settings(model))
    monkeypatch.undo()
    without = start(model, encoded, tmp_path / "without")
    report = RunFolder(run.folder).report()
    assert report["finished"] and [note for note in report["notes"] if note.startswith("No samples at step 2 (out of GPU memory)")]
    assert sorted(path.name for path in (run.folder / "samples").iterdir()) == ["step-000000", "step-000004"]
    assert torch.equal(numbers(run)[1], numbers(without)[1])


def test_a_cancel_while_sampling_is_a_cancel(tiny, tmp_path):
    """And the run that goes on makes those samples again, the same."""
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    class Cancelled(Exception):
        pass

    model = tiny("wan21")
    encoded = encoded_set(tmp_path / "cache", model)

    def files(run):
        return {str(path.relative_to(run.folder)): path.read_bytes() for path in (run.folder / "samples").rglob("*.png")}

    whole = start(model, encoded, tmp_path / "whole", samples=settings(model))
    decode, calls = model.vae.decode, [0]

    def cancelled(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 6:
            raise Cancelled
        return decode(*args, **kwargs)

    model.vae.decode = cancelled
    try:
        with pytest.raises(Cancelled), torch.inference_mode():
            train_lora(
                model.model, encoded, config(), run_name="anna", logging_config=LoggingConfig(), runs_folder=tmp_path / "cut",
                log_row=lambda row: None, check_interrupted=lambda: None, samples=settings(model),
            )
    finally:
        del model.vae.decode
    assert len(list((tmp_path / "cut").rglob("*.png"))) == 4
    cut = start(model, encoded, tmp_path / "cut", samples=settings(model))
    assert files(cut) == files(whole) and len(files(cut)) == 12
    assert numbers(cut)[0] == numbers(whole)[0]


def test_samples_reach_wandb_tensorboard_events_and_the_route(tiny, tmp_path):
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from pistachio.bridge.events import RunEvents
    from pistachio.bridge.routes import thumbnail
    from pistachio.bridge.run_routes import details
    from pistachio.training.config import LoggingConfig
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import folder_paths
    from pathlib import Path

    model = tiny("wan21")
    root = Path(folder_paths.get_output_directory()) / "pistachio"
    rows = []
    run = start(
        model, encoded_set(tmp_path / "cache", model), root, samples=settings(model, prompts=("a [trigger]",)), rows=rows, logging=LoggingConfig(wandb="offline", tensorboard=True),
    )
    try:
        listed = details(run)["samples"]
        assert [entry["step"] for entry in listed] == [0, 2, 4] and len(listed[0]["pictures"]) == 2
        small = Image.open(io.BytesIO(thumbnail(listed[0]["pictures"][0]["thumbnail"], 32)))
        assert max(small.size) == 32
        messages = []
        events = RunEvents(node_id="7", folder=run.folder, send=lambda name, data: messages.append((name, data)))
        for row in rows:
            events(row)
        sent = [data for name, data in messages if name == "pistachio.sample"]
        assert [data["pictures"] for data in sent] == [entry["pictures"] for entry in listed]
        assert len(list((run.folder / "wandb").glob("offline-run-*/files/media/images/samples/*.png"))) == 6
        board = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0}).Reload()
        assert [event.step for event in board.Images("samples/00-with-trigger")] == [0, 2, 4]
        assert [event.step for event in board.Scalars("train/lr")] == [1, 2, 3, 4]
        assert {"eval/loss_delta", "eval/t_q1/delta_pct", "train/loss"} <= set(board.Tags()["scalars"])
    finally:
        import shutil

        shutil.rmtree(run.folder)


@pytest.mark.parametrize("changes, words", [
    ({"prompts": ("a",) * 17}, "at most 16 lines"),
    ({"every_evaluations": 0}, "1 or more"),
    ({"width": 8}, "width is 8"),
    ({"cfg": -1.0}, "cfg"),
])
def test_settings_that_can_not_be_are_refused(host, changes, words):
    from pistachio.training.config.samples import SampleConfig
    from pistachio.training.errors import PistachioError

    with pytest.raises(PistachioError, match=words):
        SampleConfig(**changes)


def test_the_node_fills_the_settings(tiny):
    from pistachio.nodes.settings.samples import SampleSettingsNode

    model = tiny("wan21")
    (made,) = SampleSettingsNode.execute(model.clip, model.vae, prompts="one [trigger]\n\n two \n", steps=7, cfg=2.0).args
    assert made.config.prompts == ("one [trigger]", "two") and made.config.num_steps == 7 and made.config.cfg == 2.0
    assert made.clip is model.clip and made.vae is model.vae
