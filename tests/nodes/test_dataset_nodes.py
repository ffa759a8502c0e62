"""Dataset and caption nodes run by ComfyUI's own executor: results, caching, and errors as the canvas gets them."""

import os
import shutil
import uuid

import pytest
import torch

from support import pictures
from support.executing import refusal


def load(folder: str, **inputs) -> dict:
    return {"1": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": folder, **inputs}}}


@pytest.fixture
def folder(host):
    path = pictures.write_folder(host.input / f"set-{uuid.uuid4().hex[:8]}", 8, size=(96, 64))
    yield path
    shutil.rmtree(path)


def test_a_folder_shows_thumbnails_and_is_read_again_only_when_it_changed(executor, folder):
    prompt = load(folder.name)
    first = executor.ok(prompt)
    (image,) = first.shown("1")["images"]
    assert image["type"] == "temp"
    assert "8 pictures, 8 with a caption." in first.text("1")

    assert executor.ok(prompt).cached == {"1"}
    (folder / "picture-01.txt").write_text("another caption", encoding="utf-8")
    assert executor.ok(prompt).cached == set()
    assert executor.ok(prompt).cached == {"1"}
    (folder / "picture-02.png").unlink()
    (folder / "picture-02.txt").unlink()
    changed = executor.ok(prompt)
    assert changed.cached == set() and "7 pictures" in changed.text("1")


@pytest.mark.parametrize("name, words", [
    ("", "No folder is given"),
    ("   ", "No folder is given"),
    ("../..", "outside the folders"),
    ("/", "outside the folders"),
    ("output/../../x", "outside the folders"),
    ("no such folder", "does not exist"),
    ("a\0b", "not a usable path"),
])
def test_a_bad_folder_is_refused_before_running(executor, name, words):
    assert words in refusal(load(name), "1")


def test_a_link_out_of_the_roots_is_refused(executor, host, tmp_path):
    outside = pictures.write_folder(tmp_path / "private", 5)
    link = host.input / "innocent"
    link.symlink_to(outside, target_is_directory=True)
    try:
        assert "outside the folders" in refusal(load("innocent"), "1")
    finally:
        link.unlink()


def test_a_folder_of_extra_model_paths_is_allowed(executor, host, tmp_path):
    import folder_paths

    outside = pictures.write_folder(tmp_path / "characters" / "anna", 5)
    assert "outside the folders" in refusal(load(str(outside)), "1")
    folder_paths.add_model_folder_path("pistachio", str(tmp_path / "characters"))
    try:
        for name in (str(outside), "anna"):
            executor.ok(load(name))
    finally:
        del folder_paths.folder_names_and_paths["pistachio"]


def test_an_empty_folder_is_an_error_of_the_node(executor, host):
    empty = host.input / "empty"
    empty.mkdir()
    try:
        assert "has no pictures" in executor.error(load("empty"))
    finally:
        empty.rmdir()


def test_captioned_pictures_are_kept_and_the_captioner_is_not_loaded(executor, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    prompt = load(folder.name) | {
        "2": {"class_type": "PistachioLoadJoyCaption", "inputs": {}},
        "3": {"class_type": "PistachioCaptionDataset", "inputs": {"dataset": ["1", 0], "captioner": ["2", 0], "trigger_word": "zwx"}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }
    run = executor.ok(prompt)
    assert "8 pictures already have captions: kept; the captioner was not loaded." in run.text("3")
    assert run.text("4").count("\n") == 7 and "picture-01.png: a drawing of a" in run.text("4")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_captioner_outside_the_models_folder_is_refused(executor, tmp_path):
    prompt = {
        "2": {"class_type": "PistachioLoadJoyCaption", "inputs": {"local_folder": str(tmp_path)}},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    assert "outside the captioners' folders" in refusal(prompt, "2")


def test_a_split_is_shown_and_written(executor, host, folder):
    target = host.output / f"split-{folder.name}"
    prompt = load(folder.name) | {
        "2": {
            "class_type": "PistachioSplitDataset",
            "inputs": {"dataset": ["1", 0], "held_out_pictures": "picture-03, picture-05.png\npicture-01,picture-02", "write_folders": target.name},
        },
    }
    assert "4 pictures to train on, 4 held out." in executor.ok(prompt).text("2")
    held_out = {path.name for path in (target / "eval").glob("*.png")}
    assert held_out == {"picture-01.png", "picture-02.png", "picture-03.png", "picture-05.png"}
    assert len(list((target / "train").glob("*.txt"))) == 4


def test_a_split_can_not_be_written_outside_output(executor, folder):
    prompt = load(folder.name) | {"2": {"class_type": "PistachioSplitDataset", "inputs": {"dataset": ["1", 0], "write_folders": "../../x"}}}
    assert "not a folder below ComfyUI's output folder" in refusal(prompt, "2")


# ---- encoding ----------------------------------------------------------------


def encode(tiny, dataset, **inputs):
    """Encode Dataset as the host calls it, with objects on its sockets."""
    from comfy_api.latest import io
    from pistachio.nodes import EncodeDataset

    clone = type("EncodeDatasetClone", (EncodeDataset,), {})
    clone.hidden = io.HiddenHolder.from_dict({"UNIQUE_ID": "9"})
    with torch.inference_mode():
        return clone.execute(dataset, tiny.vae, tiny.clip, **inputs)


@pytest.fixture
def dataset(folder):
    from pistachio.dataset.folder import load_folder

    return load_folder(folder)


@pytest.mark.parametrize("family", ["sd15", "wan21"])
def test_latents_and_conditions_are_those_of_the_stock_nodes(tiny, dataset, family):
    import nodes as host_nodes
    from pistachio.dataset.buckets import fit
    from pistachio.dataset.cache import load_condition, load_latent
    from pistachio.dataset.images import read_rgb

    loaded = tiny(family)
    encoded = encode(loaded, dataset, trigger_word="zwx", resolution=96).args[0]
    assert len(encoded.items) == 8 and len(encoded.held_out) == 4 and encoded.trigger_word == "zwx"
    item = encoded.items[0]
    assert item.width % 16 == 0 and item.height % 16 == 0 and item.width > item.height
    with torch.inference_mode():
        pixels = fit(read_rgb(dataset.folder / item.relative_path), item.width, item.height)
        latent = host_nodes.VAEEncode().encode(loaded.vae, pixels)[0]["samples"]
        condition = host_nodes.CLIPTextEncode().encode(loaded.clip, item.caption)[0]
    assert item.caption.startswith("zwx, ")
    assert torch.equal(load_latent(item.latent_path), latent.float().cpu())
    assert torch.equal(load_condition(item.caption_path)[0][0], condition[0][0].cpu())
    prior = load_condition(item.prior_path)[0][0]
    assert not torch.equal(prior, condition[0][0].cpu())


def test_augmentation_settings_offer_every_field_at_its_default(host):
    from dataclasses import fields

    from pistachio.dataset.augmentation import Augmentation
    from pistachio.nodes import AugmentationSettings

    inputs = {entry.id: entry.default for entry in AugmentationSettings.GET_SCHEMA().inputs}
    assert set(inputs) == {field.name for field in fields(Augmentation)}
    assert AugmentationSettings.execute(**inputs).args[0] == Augmentation() == AugmentationSettings.execute().args[0]
    made = AugmentationSettings.execute(more_resolutions="512, 768", repeats="a* = 2", flip=True).args[0]
    assert made == Augmentation(more_resolutions=(512, 768), repeats=(("a*", 2),), flip=True)


def test_augmentation_is_encoded_and_said(tiny, dataset, folder):
    from pistachio.dataset.augmentation import Augmentation
    from pistachio.dataset.folder import load_folder

    loaded = tiny("sd15")
    plain = encode(loaded, dataset, trigger_word="zwx", resolution=64)
    assert encode(loaded, dataset, trigger_word="zwx", resolution=64, augmentation=Augmentation()).args[0] == plain.args[0]
    (folder / "picture-01.2.txt").write_text("another caption")
    augmentation = Augmentation(flip=True, caption_dropout=0.1, repeats=(("*", 3),))
    output = encode(loaded, load_folder(folder), trigger_word="zwx", resolution=64, augmentation=augmentation, latent_storage="bf16")
    encoded = output.args[0]
    assert all(len(item.more_latents) == 1 and item.repeats == 3 for item in encoded.train) and encoded.empty_path.exists()
    assert all(not item.more_latents and not item.more_captions for item in encoded.held_out)
    captions = sum(len(item.captions) for item in encoded.train)
    words = str(output.ui.as_dict() if hasattr(output.ui, "as_dict") else output.ui)
    assert f"Trained as 8 crops and {captions} captions; a round has 12 turns; 10% of the samples get the empty caption." in words


def test_the_same_pictures_are_not_encoded_twice(tiny, dataset):
    loaded = tiny("sd15")
    first = encode(loaded, dataset, trigger_word="zwx", resolution=64).args[0]
    times = {item.latent_path: os.stat(item.latent_path).st_mtime_ns for item in first.items}
    again = encode(loaded, dataset, trigger_word="zwx", resolution=64).args[0]
    assert again == first
    assert {path: os.stat(path).st_mtime_ns for path in times} == times


def test_fingerprints_tell_weights_apart_and_survive_an_applied_lora(tiny):
    import comfy.model_management
    from pistachio.bridge.encode import clip_fingerprint, vae_fingerprint

    loaded = tiny("sd15")
    plain = clip_fingerprint(loaded.clip)
    assert plain == clip_fingerprint(loaded.clip.clone())
    name = next(n for n, p in loaded.clip.patcher.model.named_parameters() if p.ndim == 2)
    with torch.inference_mode():
        marks = []
        for strength in (0.5, 1.0):
            patched = loaded.clip.clone()
            patched.add_patches({name: ("diff", (torch.ones_like(dict(patched.patcher.model.named_parameters())[name]),))}, strength)
            marks.append(clip_fingerprint(patched))
        comfy.model_management.load_models_gpu([patched.patcher])
        assert clip_fingerprint(loaded.clip) == plain, "weights patched in place are not the file's"
        assert clip_fingerprint(patched) == marks[1]
        comfy.model_management.load_models_gpu([loaded.clip.patcher])
    assert len({plain, *marks}) == 3
    skipped = loaded.clip.clone()
    skipped.clip_layer(-2)
    assert clip_fingerprint(skipped) != plain
    assert vae_fingerprint(loaded.vae) != vae_fingerprint(tiny("wan21").vae)


def test_a_fingerprint_reads_nothing_that_an_sd15_checkpoint_lacks(tiny):
    """The host leaves such weights as the memory was: the same file would have another fingerprint after a restart, and no run would go on."""
    from pistachio.bridge.encode import clip_fingerprint

    loaded = tiny("sd15")
    weights = {name: weight for name, weight in loaded.clip.patcher.model.state_dict().items() if name.endswith(("text_projection.weight", "logit_scale"))}
    assert len(weights) == 2
    plain, before = clip_fingerprint(loaded.clip), {name: weight.clone() for name, weight in weights.items()}
    with torch.inference_mode():
        for name, weight in weights.items():
            weight.fill_(7)
        try:
            assert clip_fingerprint(loaded.clip) == plain
        finally:
            for name, weight in weights.items():
                weight.copy_(before[name])


def test_what_can_not_encode_is_refused(tiny, dataset):
    from pistachio.training.errors import PistachioError

    class Sockets:
        vae, clip = tiny("sd15").vae, None

    with pytest.raises(PistachioError, match="CLIP is empty"):
        encode(Sockets, dataset)
    Sockets.vae = None
    with pytest.raises(PistachioError, match="VAE is empty"):
        encode(Sockets, dataset)


def test_a_cancel_is_seen_between_pictures(tiny, dataset):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        encode(tiny("sd15"), dataset, trigger_word="other", resolution=80)
    assert not comfy.model_management.processing_interrupted()


def test_missing_captions_are_named_before_anything_is_encoded(tiny, folder):
    from pistachio.dataset.folder import load_folder
    from pistachio.training.errors import PistachioError

    (folder / "picture-04.txt").unlink()
    dataset = load_folder(folder)
    with pytest.raises(PistachioError, match="picture-04.png"):
        encode(tiny("sd15"), dataset, trigger_word="zwx", resolution=64)
    encoded = encode(tiny("sd15"), dataset, trigger_word="zwx", resolution=64, allow_missing_captions=True).args[0]
    (item,) = [item for item in encoded.items if item.relative_path == "picture-04.png"]
    assert item.caption == "zwx"


def test_joycaption_captions_a_folder_through_the_nodes(host, executor):
    """A tiny LLaVA of the real classes, from a local folder: captions with the trigger, saved beside the pictures, and skipped the next time."""
    from support.tiny_llava import write_joycaption

    model = write_joycaption(host.models / "LLM" / "tiny_joycaption", ["a woman in a red shirt", "a photo of a cat"])
    folder = pictures.write_folder(host.input / "uncaptioned", 5, captions=False)
    prompt = {
        "load": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": "uncaptioned"}},
        "joycaption": {"class_type": "PistachioLoadJoyCaption", "inputs": {"local_folder": model.name, "precision": "fp32"}},
        # An untrained model says random words, and stops when it happens to draw the end.
        "caption": {"class_type": "PistachioCaptionDataset", "inputs": {
            "dataset": ["load", 0], "captioner": ["joycaption", 0], "trigger_word": "zwx", "batch_size": 2,
            "temperature": 2.0, "top_p": 1.0, "max_new_tokens": 2048, "seed": 3,
        }},
    }
    ran = executor.ok(prompt)
    made = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}
    assert len(made) == 5 and all(text.startswith("zwx, ") and len(text) > 6 for text in made.values())
    assert len(set(made.values())) == 5
    assert "5 pictures captioned" in ran.text("caption")
    assert comfy_memory_is_free()
    again = executor.ok({**prompt, "caption": {**prompt["caption"], "inputs": {**prompt["caption"]["inputs"], "seed": 4}}})
    assert "the captioner was not loaded" in again.text("caption")
    assert {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))} == made


def comfy_memory_is_free() -> bool:
    import gc

    gc.collect()
    return not any(type(o).__name__ == "LlavaForConditionalGeneration" for o in gc.get_objects() if isinstance(o, torch.nn.Module))
