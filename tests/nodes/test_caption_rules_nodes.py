"""Caption Rules, Caption History and Check Dataset run by ComfyUI's own executor: previews, files, refusals, the score card."""

import json
import shutil
import uuid

import pytest

from support import pictures
from support.executing import refusal


@pytest.fixture
def folder(host):
    path = pictures.write_folder(host.input / f"rules-{uuid.uuid4().hex[:8]}", 6)
    (path / "picture-01.txt").write_text("A woman with long red hair sits in a cafe.", encoding="utf-8")
    yield path
    shutil.rmtree(path)


def graph(folder, node: str, **inputs) -> dict:
    return {
        "1": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": folder.name}},
        "2": {"class_type": node, "inputs": {"dataset": ["1", 0], **inputs}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2 if node != "PistachioCaptionHistory" else 1]}},
    }


def captions(folder) -> list[str]:
    return [path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.txt"))]


def test_rules_are_previewed_written_and_taken_back(executor, folder):
    rules = {"trigger_word": "ohwx", "class_noun": "woman", "trigger_place": "in place of the person"}
    before = captions(folder)
    run = executor.ok(graph(folder, "PistachioCaptionRules", **rules))
    text = run.text("2")
    assert "6 of 6 captions would change. Nothing was written" in text and "taken out: A | with long red hair" in text
    assert json.loads(run.text("3"))["kind"] == "words"
    assert captions(folder) == before

    assert "Caption History can go back: this was change 1." in executor.ok(graph(folder, "PistachioCaptionRules", **rules, write=True)).text("2")
    assert captions(folder)[0] == "ohwx woman sits in a cafe."
    assert captions(folder)[1].startswith("ohwx woman, a drawing of")
    assert "No file had to be changed" in executor.ok(graph(folder, "PistachioCaptionRules", **rules, write=True)).text("2")

    (folder / "picture-02.txt").write_text("mine", encoding="utf-8")
    told = executor.ok(graph(folder, "PistachioCaptionHistory", restore_before=1)).text("2")
    assert "5 files put back as before change 1." in told and "edited by hand since and kept: picture-02.txt" in told
    assert captions(folder) == [before[0], "mine", *before[2:]]
    assert "Change 2" in executor.ok(graph(folder, "PistachioCaptionHistory")).text("3")


@pytest.mark.parametrize("inputs, words", [
    ({"replacements": "(a => b"}, "Line 1 of the replacements can't be used"),
    ({"leak_list": "colours: red"}, "is no heading of the leak list"),
])
def test_wrong_rules_are_refused_before_running(executor, folder, inputs, words):
    assert words in refusal(graph(folder, "PistachioCaptionRules", **inputs), "2")


def test_the_check_shows_its_score_card_and_can_halt(executor, folder):
    (folder / "picture-03.txt").unlink()
    run = executor.ok(graph(folder, "PistachioCheckDataset", trigger_word="ohwx", resolution=64))
    text = run.text("2")
    assert "Not ready: one thing stops training." in text and "Captions: 1 picture has no caption: picture-03.png." in text
    assert len(run.shown("2")["images"]) == 1
    report = json.loads(run.text("3"))
    assert next(f for f in report["findings"] if f["code"] == "no_caption")["pictures"] == ["picture-03.png"]
    assert next(f for f in report["findings"] if f["topic"] == "Disk")["severity"] in ("good", "warning")

    halted = executor.error(graph(folder, "PistachioCheckDataset", trigger_word="ohwx", resolution=64, halt_on="what stops training"))
    assert "no caption: picture-03.png" in halted


def test_memory_is_checked_with_the_model(host, tiny):
    from pistachio.bridge.machine import machine_for

    model = tiny("sd15").model
    machine = machine_for(model)
    assert machine.model_bytes == model.model_size() > 0 and machine.device_bytes > 10**9 and machine.free_disk_bytes > 0
    import torch

    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, torch.nn.Linear)]
    assert machine.lora_bytes == sum(16 * 4 * sum(layer.weight.shape) for layer in layers) > 0
    assert machine_for().model_bytes is None


def test_training_notes_what_is_wrong_with_the_set(host, tiny, tmp_path):
    import torch
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, TrainConfig
    from support.encoded import encoded_set

    sd15, rows = tiny("sd15"), []
    encoded = encoded_set(tmp_path / "cache", sd15)
    config = TrainConfig(
        num_steps=2, precision="fp32", adapter=AdapterConfig(rank=2, alpha=2), evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=4, early_stop=False),
    )
    with torch.inference_mode():
        train_lora(
            sd15.model, encoded, config, run_name="anna", logging_config=LoggingConfig(), runs_folder=tmp_path / "runs", log_row=rows.append, check_interrupted=lambda: None,
        )
    notes = [row["text"] for row in rows if row["kind"] == "note"]
    assert notes[0].startswith(f"Number of pictures: {len(encoded.items)} different pictures")
    assert next(row["kind"] for row in rows if row["kind"] != "phase") == "note" and any(text.startswith("Steps: 2 steps at batch size 1") for text in notes)
