"""Caption Rules, Caption History and Check Dataset run by ComfyUI's own executor: previews, files, refusals, the score card."""

import asyncio
import json
import shutil
import uuid

import pytest

from support import pictures


@pytest.fixture(scope="module")
def executor(host):
    """`execute(prompt)` -> the executor after it. One cache for the module."""
    import execution
    import nodes as host_nodes
    import server
    from comfy_extras.nodes_preview_any import NODE_CLASS_MAPPINGS as PREVIEW_ANY
    from pistachio.nodes import NODES

    host_nodes.NODE_CLASS_MAPPINGS.update(PREVIEW_ANY | {node.GET_SCHEMA().node_id: node for node in NODES})
    server.PromptServer.instance.client_id = None
    server.PromptServer.instance.last_prompt_id = None
    run = execution.PromptExecutor(server.PromptServer.instance, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})

    def execute(prompt: dict):
        prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
        prompt_id = str(uuid.uuid4())
        valid, _, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
        assert valid, node_errors
        run.execute(prompt, prompt_id, {}, outputs)
        return run

    return execute


def shown(executor, node_id: str) -> str:
    assert executor.success, executor.status_messages
    return "\n".join(executor.history_result["outputs"][node_id]["text"])


def refusal(prompt: dict) -> str:
    import execution

    # "valid" speaks for the prompt: the loader before the node is an output of its own and stays
    _, _, _, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    assert "2" in node_errors
    return " ".join(error["details"] for node in node_errors.values() for error in node["errors"])


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
    run = executor(graph(folder, "PistachioCaptionRules", **rules))
    text = shown(run, "2")
    assert "6 of 6 captions would change. Nothing was written" in text and "taken out: A | with long red hair" in text
    assert json.loads(shown(run, "3"))["kind"] == "words"
    assert captions(folder) == before

    assert "Caption History can go back: this was change 1." in shown(executor(graph(folder, "PistachioCaptionRules", **rules, write=True)), "2")
    assert captions(folder)[0] == "ohwx woman sits in a cafe."
    assert captions(folder)[1].startswith("ohwx woman, a drawing of")
    assert "No file had to be changed" in shown(executor(graph(folder, "PistachioCaptionRules", **rules, write=True)), "2")

    (folder / "picture-02.txt").write_text("mine", encoding="utf-8")
    told = shown(executor(graph(folder, "PistachioCaptionHistory", restore_before=1)), "2")
    assert "5 files put back as before change 1." in told and "edited by hand since and kept: picture-02.txt" in told
    assert captions(folder) == [before[0], "mine", *before[2:]]
    assert "Change 2" in shown(executor(graph(folder, "PistachioCaptionHistory")), "3")


@pytest.mark.parametrize("inputs, words", [
    ({"replacements": "(a => b"}, "Line 1 of the replacements can't be used"),
    ({"leak_list": "colours: red"}, "is no heading of the leak list"),
])
def test_wrong_rules_are_refused_before_running(executor, folder, inputs, words):
    assert words in refusal(graph(folder, "PistachioCaptionRules", **inputs))


def test_the_check_shows_its_score_card_and_can_halt(executor, folder):
    (folder / "picture-03.txt").unlink()
    run = executor(graph(folder, "PistachioCheckDataset", trigger_word="ohwx", resolution=64))
    text = shown(run, "2")
    assert "Not ready: one thing stops training." in text and "Captions: 1 picture has no caption: picture-03.png." in text
    assert len(run.history_result["outputs"]["2"]["images"]) == 1
    report = json.loads(shown(run, "3"))
    assert next(f for f in report["findings"] if f["code"] == "no_caption")["pictures"] == ["picture-03.png"]
    assert next(f for f in report["findings"] if f["topic"] == "Disk")["severity"] in ("good", "warning")

    halted = executor(graph(folder, "PistachioCheckDataset", trigger_word="ohwx", resolution=64, halt_on="what stops training"))
    (error,) = [data for name, data in halted.status_messages if name == "execution_error"]
    assert not halted.success and "no caption: picture-03.png" in error["exception_message"]


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
    assert rows[0]["kind"] == "note" and any(text.startswith("Steps: 2 steps at batch size 1") for text in notes)
