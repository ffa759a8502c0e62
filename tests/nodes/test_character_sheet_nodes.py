"""Character Sheet, Save To Dataset, Build Prompts, Dataset Images and Crop Subjects, run by ComfyUI's own executor."""

import json
import shutil
import uuid

import pytest
import torch
from PIL import Image

from support.executing import Executor
from support.tiny_networks import fill


@pytest.fixture(scope="module")
def executor(host):
    return Executor()


@pytest.fixture
def folder(host):
    path = host.input / f"sheet-{uuid.uuid4().hex[:8]}"
    yield path
    shutil.rmtree(path, ignore_errors=True)


def sheet(folder: str, *, reference: int = 0x336699, **inputs) -> dict:
    """The empty images stand for the edit model's: of the shot's size, coloured by its seed, one run a prompt."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": reference}},
        "2": {"class_type": "PistachioCharacterSheet", "inputs": {
            "image": ["1", 0], "folder": folder, "trigger_word": "ohwx", "class_noun": "woman", "pictures": 5, "at_once": 2, "resolution": 256, **inputs,
        }},
        "3": {"class_type": "EmptyImage", "inputs": {"width": ["2", 3], "height": ["2", 4], "batch_size": 1, "color": ["2", 2]}},
        "4": {"class_type": "PistachioSaveToDataset", "inputs": {"images": ["3", 0], "sheet": ["2", 5]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }


def test_a_sheet_is_made_run_by_run_and_then_asks_for_nothing(executor, folder):
    prompt = sheet(folder.name)
    executor.ok(prompt)
    assert "0 of 5 pictures are made; this run makes 2. Run again for the other 3." in executor.text("2")
    assert "2 saved. 2 pictures in the folder." in executor.text("4") and "3 pictures of the sheet to go" in executor.text("4")
    executor.ok(prompt)
    executor.ok(prompt)
    assert "1 saved. 5 pictures in the folder." in executor.text("4")
    made = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert len(made) == 5 and all(path.with_suffix(".txt").read_text().startswith("ohwx woman, ") for path in folder.glob("*.png"))
    record = [json.loads(line) for line in (folder / "character_sheet.jsonl").read_text().splitlines()]
    assert [line["prompt"].split(" from ")[0] for line in record] == ["Show the woman"] * 5
    sizes = {Image.open(folder / line["file"]).size for line in record}
    assert sizes == {(256, 256), (224, 288), (208, 320)}

    executor.ok(prompt)
    assert "All 5 pictures of the sheet are made. 5 pictures in the folder." in executor.text("4")
    # Were the pictures asked for, this size would fail.
    executor.ok(prompt | {"3": {"class_type": "EmptyImage", "inputs": {"width": ["2", 2], "height": ["2", 2], "batch_size": 1, "color": 0}}})
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == made


def test_a_picture_taken_out_is_not_made_again_and_a_caption_changed_is_read(executor, folder):
    prompt = sheet(folder.name, pictures=2)
    executor.ok(prompt)
    first, second = sorted(folder.glob("*.png"))
    first.unlink()
    first.with_suffix(".txt").unlink()
    second.with_suffix(".txt").write_text("ohwx woman, at last")
    prompt["6"] = {"class_type": "PistachioBuildPrompts", "inputs": {"dataset": ["4", 0], "prompts": 1}}
    prompt["7"] = {"class_type": "PreviewAny", "inputs": {"source": ["6", 2]}}
    executor.ok(prompt)
    assert list(folder.glob("*.png")) == [second] and "All 2 pictures" in executor.text("2")
    assert json.loads(executor.text("7"))["framing"] == {"not said": 1}


def test_prompts_come_one_by_one_and_in_the_words_of_the_model(executor, folder):
    executor.ok(sheet(folder.name, edit_model="FLUX.2", subject="the robot", at_once=0))
    shown = executor.text("2").splitlines()
    assert shown[2].startswith("1. The robot from image 1 in ") and shown[6].startswith("5. The robot")
    assert "woman" not in shown[2]


def test_pictures_from_anywhere_are_saved_once(executor, folder):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 2, "color": 255}},
        "2": {"class_type": "PistachioSaveToDataset", "inputs": {"images": ["1", 0], "folder": folder.name, "name": "blue", "captions": "a wall"}},
    }
    executor.ok(prompt)
    assert "1 saved. 1 was there already. 1 picture in the folder." in executor.text("2")
    assert (folder / "blue-0001.txt").read_text() == "a wall\n"
    executor.ok(prompt)
    assert "0 saved. 2 were there already." in executor.text("2") and executor.cached == {"1"}


@pytest.mark.parametrize("inputs, words", [({"folder": "../x"}, "not a folder below"), ({"folder": "x", "name": "a/b"}, "can't begin the names")])
def test_a_bad_place_is_refused_before_anything_runs(executor, inputs, words):
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": 255}},
        "2": {"class_type": "PistachioSaveToDataset", "inputs": {"images": ["1", 0], **inputs}},
    }
    with pytest.raises(AssertionError, match=words):
        executor(prompt)


def test_captions_must_fit_the_pictures(host):
    from pistachio.nodes.character_sheet import _captions
    from pistachio.training.errors import PistachioError

    batches = [["a", "b"], ["c"]]
    assert _captions(["1", "2"], batches) == ["1", "1", "2"] and _captions(["1", "2", "3"], batches) == ["1", "2", "3"]
    assert _captions("1", batches) == ["1", "1", "1"]
    with pytest.raises(PistachioError, match="4 captions came with 3 pictures"):
        _captions(list("1234"), batches)


# ---- crops --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(folder):
    """Four pictures with a bright square of 40 in a dark field of 160 x 120, further right in each."""
    folder.mkdir()
    for index in range(4):
        pixels = torch.zeros(120, 160, 3, dtype=torch.uint8)
        pixels[..., 2] = index * 9
        pixels[40:80, 20 + 20 * index : 60 + 20 * index, 0] = 255
        Image.fromarray(pixels.numpy()).save(folder / f"p{index}.png")
        (folder / f"p{index}.txt").write_text(f"ohwx, full body, number {index}")
    return folder


def crop(folder: str, **inputs) -> dict:
    """Masks from the red channel, at half the pictures' size."""
    return {
        "1": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": folder}},
        "2": {"class_type": "PistachioDatasetImages", "inputs": {"dataset": ["1", 0], "longest_side": 80}},
        "3": {"class_type": "ImageToMask", "inputs": {"image": ["2", 0], "channel": "red"}},
        "4": {"class_type": "PistachioCropSubjects", "inputs": {"dataset": ["1", 0], "minimum_size": 40, "margin": 0.1, **inputs}},
        "5": {"class_type": "PistachioCheckDataset", "inputs": {"dataset": ["4", 0], "trigger_word": "ohwx", "resolution": 128}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 2]}},
    }


def test_masks_crop_on_every_host_and_tell_framing(executor, pictures):
    executor.ok(crop(pictures.name, masks=["3", 0], marked="face"))
    assert "Something was found in 4 of 4 pictures. 4 crops written to 'crops'" in executor.text("4").replace("\n", " ")
    assert "close-up" in executor.text("4")
    crops = sorted((pictures / "crops").glob("*.png"))
    assert [path.name for path in crops] == [f"p{index}.face1.png" for index in range(4)]
    assert Image.open(crops[3]).size == (48, 48) and crops[3].with_suffix(".txt").read_text() == "ohwx, close-up, number 3\n"
    (framing,) = [finding for finding in json.loads(executor.text("6"))["findings"] if finding["topic"] == "Framing"]
    assert framing["words"] == "By the faces and figures found in 4 and the captions of 4, 8 of 8 pictures are close-up."  # the captions of the four said full body
    before = {path: path.stat().st_mtime_ns for path in pictures.rglob("*.png")}
    executor.ok(crop(pictures.name, masks=["3", 0], marked="face"))
    assert {path: path.stat().st_mtime_ns for path in pictures.rglob("*.png")} == before


def test_boxes_of_smaller_images_are_scaled_to_the_files(executor, pictures, host):
    """As RT-DETR and SAM3 give them: a list with the boxes of each image of the run."""
    from comfy_api.latest import io
    from pistachio.dataset.folder import load_folder
    from pistachio.nodes import CropSubjects

    clone = type("CropSubjectsClone", (CropSubjects,), {})
    clone.hidden = io.HiddenHolder.from_dict({"UNIQUE_ID": "9"})
    dataset = load_folder(pictures)
    images = [torch.zeros(1, 60, 80, 3)] * 4
    boxes = [[[{"x": 10.0 + 10 * index, "y": 20.0, "width": 20.0, "height": 20.0, "label": "person", "score": 0.9}]] for index in range(3)] + [[[]]]
    cropped = clone.execute([dataset], bboxes=boxes, images=images, crops_folder=["cut"], margin=[0.0], minimum_size=[32]).args[0]
    crops = [picture for picture in cropped.pictures if picture.relative_path.startswith("cut/")]
    assert [picture.relative_path for picture in crops] == [f"cut/p{index}.subject1.png" for index in range(3)]
    with Image.open(crops[1].path) as image:
        assert image.size == (40, 40) and {colour[0] for _, colour in image.getcolors()} == {255}
    assert crops[1].caption == "ohwx, full body, number 1"  # what a figure alone shows of framing is not known
    for wrong, words in ((boxes[:2], "2 box lists came"), ([[[{"x": 500, "y": 0, "width": 9, "height": 9}]]] * 4, "A box lies outside")):
        with pytest.raises(Exception, match=words):
            clone.execute([dataset], bboxes=wrong, images=images, crops_folder=["cut"])


def test_more_images_than_memory_holds_are_refused(host, pictures):
    from dataclasses import replace

    from pistachio.dataset.folder import load_folder
    from pistachio.nodes import DatasetImages

    dataset = load_folder(pictures)
    huge = tuple(replace(dataset.pictures[0], width=8000, height=6000) for _ in range(10_000))
    for longest_side, gigabytes in ((0, 5760), (1024, 94)):
        with pytest.raises(Exception, match=f"10000 images of this size would take {gigabytes} GB"):
            DatasetImages.execute(replace(dataset, pictures=huge), longest_side)


def test_without_anything_that_finds_subjects_it_says_what_to_connect(executor, pictures):
    assert "Connect a detector, a face detector, masks or boxes" in executor.error(crop(pictures.name))


def test_a_host_without_detectors_says_so_and_one_with_them_finds(host, pictures):
    """RT-DETR of the host's own classes with random weights, that sees a person anywhere."""
    from pistachio.bridge.detection import find_faces, find_subjects
    from pistachio.training.errors import PistachioError

    image = torch.rand(1, 120, 160, 3)
    if host.version < (0, 4):
        with pytest.raises(PistachioError, match="no subject detector: RT-DETR came in a later version. Connect masks"):
            find_subjects(None, image, class_name="person", threshold=0.5)
        with pytest.raises(PistachioError, match="no face detector: MediaPipe came in a later version. Connect masks"):
            find_faces(None, image, threshold=0.5)
        return
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.RT_DETR_v4({"image_model": "RT_DETR_v4", "enc_h": 256})
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        base = config.get_model({}).eval()
        network = base.diffusion_model
        kept = {name: tensor.clone() for name, tensor in network.named_parameters() if name.endswith(("reg_scale", "up"))}
        fill(network).load_state_dict(kept, strict=False)
        for head in network.decoder.dec_score_head:
            head.bias[0] = 5.0  # a person everywhere
        model = comfy.model_patcher.CoreModelPatcher(base, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        boxes = find_subjects(model, image, class_name="person", threshold=0.3)
        assert find_subjects(model, image, class_name="toothbrush", threshold=0.999) == ()
    assert len(boxes) == 16 and all(box.kind == "subject" and 0.3 < box.score <= 1 and box.width > 0 for box in boxes)
    with pytest.raises(PistachioError, match="knows no 'unicorn'"):
        find_subjects(model, image, class_name="unicorn", threshold=0.5)
