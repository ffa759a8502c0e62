"""Over HTTP: base files that can't be trained, a disk that is full, and odd pictures that must be read right."""

import io
import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support.jobs import training_job
from support.pictures import draw, write_folder
from support.refusals import assert_says, failure


@pytest.fixture(scope="module")
def pictures(server):
    return write_folder(server.base / "input" / "eight", 8)


def host_version(comfyui) -> tuple[int, ...]:
    return tuple(int(part) for part in re.search(r'"([\d.]+)"', (comfyui / "comfyui_version.py").read_text()).group(1).split("."))


def wan_job(server, weights: dict, name: str, metadata: dict | None = None) -> dict:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, server.base / "models" / "diffusion_models" / f"{name}.safetensors", metadata=metadata)
    prompt = training_job("wan21", folder="eight", run_name=name, num_steps=2, num_evaluations=1)
    prompt["1"]["inputs"]["unet_name"] = f"{name}.safetensors"
    return prompt


def wan_weights(server) -> dict:
    return load_file(server.base / "models" / "diffusion_models" / "tiny_wan21.safetensors")


def test_an_image_to_video_model(server, pictures):
    """Wan's I2V file is told by its 36 input channels and the projection of the picture's embedding."""
    weights = wan_weights(server)
    first = weights["patch_embedding.weight"]
    weights["patch_embedding.weight"] = torch.cat([first, first.new_zeros(first.shape[0], 20, *first.shape[2:])], 1)
    weights["img_emb.proj.0.bias"] = first.new_zeros(1280)
    assert_says(failure(server, wan_job(server, weights, "picture_input")), "needs a picture as input", "text-to-video")


def test_a_quantised_file_is_trained_or_said_to_be_misread(server, pictures, comfyui):
    """Per-layer fp8 with `comfy_quant` marks: 0.3.75 loads the bare codes, later hosts read it right."""
    weights = wan_weights(server)
    for name in [name for name in weights if name.startswith("blocks.") and name.endswith(".weight") and weights[name].ndim == 2]:
        layer = name.removesuffix(".weight")
        scale = weights[name].float().abs().max() / 448
        weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
        weights[f"{layer}.weight_scale"] = scale.reshape(())
        weights[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    prompt = wan_job(server, weights, "quantised")
    if host_version(comfyui) < (0, 4):
        assert_says(failure(server, prompt), "misread", "Update ComfyUI")
    else:
        assert server.run_ok(prompt, timeout_seconds=400).outputs
        losses = [row["loss"] for row in server.get("/pistachio/runs/quantised")["metrics"] if row["kind"] == "eval"]
        assert len(losses) == 2 and all(0 < loss < 10 for loss in losses)


def test_a_disk_that_runs_full(start_server):
    """The kernel refuses the server's writes past a megabyte, as a full disk does; an encoded caption needs more."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux can take the room of a running process away")
    server = start_server()
    write_folder(server.base / "input" / "eight", 8)
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (2**20, before[1]))
    job = training_job("wan21", folder="eight", run_name="full", num_steps=2, num_evaluations=1)
    assert_says(failure(server, job), "conditions", "could not be written", "queue again")
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
    assert server.run_ok(job, timeout_seconds=400).outputs, "with room again the same job goes through"
    server.stop()


ODD = ("16-bit.png", "cmyk.jpg", "palette.png", "animated.gif", "rotated.jpg", "transparent.png", "grey.png", "plain.webp")


@pytest.fixture(scope="module")
def odd_pictures(server):
    """One drawing each, 96 x 64, in every form that cameras and editors leave."""
    folder = server.base / "input" / "odd"
    folder.mkdir()
    for index, name in enumerate(ODD):
        image, caption = draw(index, size=(96, 64), seed=5)
        options = {}
        if name == "16-bit.png":
            image = image.convert("L").convert("I").point(lambda value: value * 257).convert("I;16")
        elif name == "cmyk.jpg":
            image = image.convert("CMYK")
        elif name == "palette.png":
            image = image.quantize(32)
        elif name == "animated.gif":
            options = {"save_all": True, "append_images": [Image.new("RGB", image.size, (0, 0, 0))]}
        elif name == "rotated.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6  # stored lying on its side
            image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}
        elif name == "transparent.png":
            image.putalpha(Image.linear_gradient("L").resize(image.size))
        elif name == "grey.png":
            image = image.convert("L")
        image.save(folder / name, **options)
        (folder / name).with_suffix(".txt").write_text(caption)
    return folder


def test_odd_pictures_are_read_right_and_trained(server, odd_pictures):
    server.run_ok(training_job("wan21", folder="odd", run_name="odd", num_steps=2, num_evaluations=1), timeout_seconds=400)
    pictures = json.loads((server.base / "output" / "pistachio" / "odd" / "dataset.json").read_text())["pictures"]
    assert {picture["file"] for picture in pictures} == set(ODD)
    assert all(picture["width"] > picture["height"] for picture in pictures), "the rotated one stands upright as its camera meant it"
    for name in ODD:
        preview = io.BytesIO(server.request(f"/pistachio/thumbnail?file=input/odd/{name}&size=96"))
        shown, wanted = Image.open(preview), draw(ODD.index(name), size=(96, 64), seed=5)[0]
        assert shown.size == (96, 64), name
        if name not in ("transparent.png",):  # laid on white there
            grey = name in ("16-bit.png", "grey.png")
            wanted = wanted.convert("L").convert("RGB") if grey else wanted
            difference = sum(abs(a - b) for a, b in zip(shown.convert("RGB").tobytes(), wanted.tobytes())) / (3 * 96 * 64)
            assert difference < 6, (name, difference)
