"""An installed LoRA as LoRA managers and ComfyUI's own model browser read it: its preview, trigger word and base."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from PIL import Image
from support.many_runs import write_run

PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl\\Juggernaut XL.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "detail.safetensors", "model": ["1", 0], "clip": ["1", 1]}},
    "3": {"class_type": "ModelSamplingSD3", "inputs": {"shift": 3.0, "model": ["2", 0]}},
    "4": {"class_type": "UNETLoader", "inputs": {"unet_name": "flux1-dev.sft", "weight_dtype": "default"}},
    "5": {"class_type": "Elsewhere", "inputs": {"model1": ["4", 0], "strength": 1.0}},
    "6": {"class_type": "Loop", "inputs": {"model": ["6", 0]}},
    "train": {"class_type": "PistachioTrainLora", "inputs": {"model": ["3", 0], "encoded": ["9", 0]}},
    "merged": {"class_type": "PistachioTrainLora", "inputs": {"model": ["5", 0]}},
    "loop": {"class_type": "PistachioTrainLora", "inputs": {"model": ["6", 0]}},
}


@pytest.fixture(scope="module")
def run(host, tmp_path_factory):
    from pistachio.training.run import Run

    folder = write_run(tmp_path_factory.mktemp("runs"), 0, num_steps=40, num_evaluations=4)
    return Run(name=folder.name, folder=folder.path)


@pytest.fixture
def loras(host, tmp_path, monkeypatch):
    from pistachio.bridge import lora

    monkeypatch.setattr(lora, "loras_folder", lambda: tmp_path)
    return tmp_path


def header(file):
    """As Custom Scripts and LoRA Manager read it: the JSON after eight bytes of length."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"], hashlib.sha256(data[8 + length :]).hexdigest()


def sample(run, step):
    with Image.open(run.folder / "samples" / f"step-{step:06d}" / "00-with-trigger.png") as image:
        return image.convert("RGB").tobytes()


def test_a_preview_of_the_installed_step_lies_beside_the_file(run, loras):
    from pistachio.bridge.lora import install_checkpoint

    install_checkpoint(run, 20, "mia")
    with Image.open(loras / "mia.preview.png") as image:
        assert image.tobytes() == sample(run, 20)
    install_checkpoint(run, 40, "mia")  # the same run's file is replaced, and its preview with it
    with Image.open(loras / "mia.preview.png") as image:
        assert image.tobytes() == sample(run, 40)
    before = {path: path.stat().st_mtime_ns for path in loras.iterdir()}
    install_checkpoint(run, 40, "mia")
    assert {path: path.stat().st_mtime_ns for path in loras.iterdir()} == before


def test_comfyuis_model_browser_shows_it_and_the_cover_within_the_file(run, loras):
    from app.model_manager import ModelFileManager
    from pistachio.bridge.lora import install_checkpoint

    install_checkpoint(run, 20, "mia")
    found = ModelFileManager().get_model_previews(str(loras / "mia.safetensors"))
    assert found[0] == str(loras / "mia.preview.png")
    with Image.open(found[1]) as cover:  # from the file's metadata
        assert cover.format == "JPEG" and max(cover.size) <= 256


def test_the_keys_that_managers_read(run, loras):
    from pistachio.bridge.lora import install_checkpoint

    install_checkpoint(run, 20, "mia")
    metadata, digest = header(loras / "mia.safetensors")
    assert metadata["modelspec.trigger_phrase"] == "ohwx" and "'ohwx'" in metadata["modelspec.usage_hint"]
    assert next(iter(json.loads(metadata["ss_tag_frequency"]).values())) == {"ohwx": 18}
    assert json.loads(metadata["ss_datasets"])[0]["subsets"][0]["class_tokens"] == "ohwx"
    assert metadata["ss_base_model_version"].startswith("sdxl_") and metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "mia"
    assert metadata["modelspec.description"].startswith("Step 20, taken by hand; the held-out pictures chose step")
    assert metadata["sshs_model_hash"] == digest and metadata["modelspec.hash_sha256"] == f"0x{digest}"
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,") and len(json.dumps(metadata)) < 200_000


@pytest.mark.parametrize("theirs", ["mia.preview.png", "mia.png", "mia.jpeg", "mia.preview.webp"])
def test_a_persons_own_picture_stays_the_only_one(run, loras, theirs):
    from pistachio.bridge.lora import install_checkpoint

    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    (loras / theirs).write_bytes(picture.getvalue())
    install_checkpoint(run, 20, "mia")
    assert sorted(path.name for path in loras.iterdir()) == sorted([theirs, "mia.safetensors"])
    assert (loras / theirs).read_bytes() == picture.getvalue()


def test_the_nearest_step_with_samples_serves_and_never_the_base_model():
    from pistachio.bridge.lora_preview import by_nearness

    rows = [{"step": step} for step in (0, 100, 200, 400)]
    assert [row["step"] for row in by_nearness(rows, 150)] == [200, 100, 400]
    assert by_nearness(rows[:1], 10) == []


def test_a_sample_that_is_broken_is_passed_over(tmp_path, loras, caplog):
    from pistachio.bridge.lora import install_checkpoint
    from pistachio.training.run import Run

    folder = write_run(tmp_path / "runs", 1, num_steps=40, num_evaluations=4)
    for file in (folder.path / "samples" / "step-000020").iterdir():
        file.write_bytes(b"cut short")
    run = Run(name=folder.name, folder=folder.path)
    install_checkpoint(run, 20, "tom")
    with Image.open(loras / "tom.preview.png") as image:
        assert image.tobytes() == sample(run, 30)
    assert "can't be a preview" in caplog.text


@pytest.mark.parametrize("node, name", [("train", "Juggernaut XL.safetensors"), ("merged", "flux1-dev.sft"), ("loop", ""), ("elsewhere", "")])
def test_the_base_models_file_is_found_along_the_wires(node, name):
    from pistachio.bridge.base_file import base_file

    assert base_file(PROMPT, node) == name
    assert base_file(None, node) == ""
