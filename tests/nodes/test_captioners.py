"""Captioners beside JoyCaption through transformers, in a real ComfyUI: its own vision-language models, and GGUF files as one of its models."""

import shutil
import uuid

import numpy as np
import pytest
import torch
from PIL import Image

from support import pictures, tiny_gguf

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 96, 3), dtype=np.uint8)) for i in range(2)]


def request(**values):
    from pistachio.dataset.joycaption.prompts import CaptionRequest

    return CaptionRequest(**{"temperature": 0, "max_new_tokens": 8, "custom_prompt": "What is (really) shown?", **values})


@pytest.fixture(scope="module")
def clip(host):
    import comfy.sd

    if not hasattr(comfy.sd.CLIP, "generate"):
        pytest.skip("this ComfyUI has no model of its own that writes text")
    from support.tiny_vlm import load_vlm

    return load_vlm()


@pytest.fixture
def captioner(clip):
    from pistachio.bridge.host_captioner import HostCaptioner

    return HostCaptioner(clip=clip)


def test_it_answers_as_the_hosts_own_node_does(clip, captioner):
    from comfy_extras.nodes_textgen import TextGenerate

    pixels = torch.from_numpy(np.asarray(IMAGES[0], dtype=np.float32) / 255)[None]
    off = TextGenerate.execute(clip, "What is (really) shown?", 8, {"sampling_mode": "off"}, image=pixels).args[0]
    assert captioner.generate(IMAGES[:1], request())[0].text == off.strip() != ""
    sampling = {"sampling_mode": "on", "temperature": 1.1, "top_k": 5, "top_p": 0.9, "min_p": 0.0, "seed": 4, "repetition_penalty": 1.0}
    on = TextGenerate.execute(clip, "What is (really) shown?", 8, sampling, image=pixels).args[0]
    sampled = request(temperature=1.1, top_k=5, seed=4)
    answers = captioner.generate(IMAGES[:1], sampled)
    assert answers[0].text == on.strip() and captioner.generate(IMAGES[:1], sampled) == answers != captioner.generate(IMAGES[:1], sampled, seed=5)


def test_the_picture_is_seen_and_large_ones_are_reduced(captioner):
    first, second = captioner.generate(IMAGES, request(max_new_tokens=12))
    assert first.text != second.text and not first.finished and first.num_tokens == 12
    assert captioner.prepare(IMAGES[0]) is IMAGES[0]
    assert captioner.prepare(Image.new("RGB", (4000, 1000))).size == (2048, 512)


def test_an_interrupt_is_heard_and_the_hosts_bar_is_given_back(captioner):
    import comfy.utils

    class Cancelled(Exception):
        pass

    asked = []

    def cancel():
        asked.append(1)
        if len(asked) > 2:
            raise Cancelled

    hook = comfy.utils.PROGRESS_BAR_HOOK
    with pytest.raises(Cancelled):
        captioner.generate(IMAGES, request(max_new_tokens=40), check_interrupted=cancel)
    assert len(asked) == 3 and comfy.utils.PROGRESS_BAR_HOOK is hook


def test_a_folder_is_captioned_with_it_and_no_think_block_is_kept(clip, captioner, host, tmp_path, monkeypatch):
    from pistachio.bridge.captioning import caption
    from pistachio.dataset.folder import load_folder
    from pistachio.nodes.captioners import CaptionerFromClip

    pictures.write_folder(tmp_path, 3, captions=False)
    dataset = caption(
        load_folder(tmp_path), CaptionerFromClip.execute(clip).args[0], request(temperature=1.0, max_new_tokens=60), prefix="", suffix="", batch_size=2, overwrite=False,
        trigger_word="ohwx", node_id="1",
    )
    assert [(tmp_path / f"picture-0{n}.txt").read_text().strip() for n in (1, 2, 3)] == [p.caption for p in dataset.pictures]
    assert len({p.caption for p in dataset.pictures}) == 3 and all(p.caption.startswith("ohwx, ") for p in dataset.pictures)
    for written, text, finished in (("<think>Hm. </think>\n\nA man.", "A man.", True), ("<think>Hm", "", False)):
        monkeypatch.setattr(type(clip), "decode", lambda self, ids, written=written: written)
        (answer,) = captioner.generate(IMAGES[:1], request(max_new_tokens=60))
        assert (answer.text, answer.finished) == (text, finished)


def test_a_clip_that_can_not_do_it_is_refused(tiny):
    import comfy.sd
    from pistachio.nodes.captioners import CaptionerFromClip
    from pistachio.training.errors import PistachioError

    if not hasattr(comfy.sd.CLIP, "generate"):
        with pytest.raises(PistachioError, match="came after 0.3.75"):
            CaptionerFromClip.execute(tiny("sd15").clip)
        return
    from support.tiny_vlm import load_writer

    with pytest.raises(PistachioError, match="can't write text"):
        CaptionerFromClip.execute(tiny("sd15").clip)
    with pytest.raises(PistachioError, match="can't see pictures"):
        CaptionerFromClip.execute(load_writer())


def test_a_tokenizer_that_takes_parentheses_for_weights_keeps_them(tiny):
    from pistachio.bridge.host_captioner import _entries, _tokens

    clip = tiny("sd15").clip
    kept = list(_entries(_tokens(clip, "a (red) shirt", IMAGES[0])))
    assert {entry[1] for entry in kept} == {1.0} and len(kept) == 77
    assert [entry[0] for entry in kept[:7]] == [49406, *clip.tokenizer.clip_l.tokenizer("a (red) shirt")["input_ids"][1:-1], 49407][:7]


# ---- GGUF ------------------------------------------------------------------------------


@pytest.fixture
def files(host):
    """Heads of GGUF files in a folder of models/LLM."""
    folder = host.models / "LLM" / f"gguf-{uuid.uuid4().hex[:8]}"
    tiny_gguf.write_gguf(folder / "joycaption-beta-one-Q4.gguf", {"general.architecture": "llama"}, {})
    tiny_gguf.write_gguf(folder / "joycaption-mmproj.gguf", {"general.architecture": "clip"}, {})
    yield folder
    shutil.rmtree(folder)


def test_the_node_lists_the_files_and_finds_the_projector(host, files):
    from pistachio.nodes.captioners import BESIDE, LoadGGUFCaptioner

    model, mmproj = (entry for entry in LoadGGUFCaptioner.define_schema().inputs[:2])
    name, projector = f"{files.name}/joycaption-beta-one-Q4.gguf", f"{files.name}/joycaption-mmproj.gguf"
    assert name in model.options and projector not in model.options and mmproj.options[0] == BESIDE and projector in mmproj.options
    for chosen in (BESIDE, projector):
        choice = LoadGGUFCaptioner.execute(name, chosen).args[0]
        assert (choice.model_file, choice.projector_file) == (files / "joycaption-beta-one-Q4.gguf", files / "joycaption-mmproj.gguf")
    assert LoadGGUFCaptioner.validate_inputs(name, BESIDE) is True and LoadGGUFCaptioner.validate_inputs() is True
    assert "no file '../../secret.gguf'" in LoadGGUFCaptioner.validate_inputs("../../secret.gguf", BESIDE)
    tiny_gguf.write_gguf(files / "other-mmproj.gguf", {}, {})
    assert "several: joycaption-mmproj.gguf, other-mmproj.gguf" in LoadGGUFCaptioner.validate_inputs(name, BESIDE)


def test_weights_of_another_library_are_dropped_when_the_host_needs_the_room(host):
    import comfy.model_management as management
    from pistachio.bridge.captioner_memory import HostResidence

    class Loaded:
        model, quantized, freed = None, True, 0

        def free(self):
            self.freed += 1

    residence, loaded = HostResidence(), Loaded()
    residence.before_load(1000)
    residence.admit(loaded)
    for _ in range(2):
        residence.enter(0)
        assert len([m for m in management.current_loaded_models if type(m.model.model).__name__ == "_Holder"]) == 1 and not loaded.freed
    management.free_memory(1e30, management.get_torch_device())
    assert loaded.freed == 1 and not [m for m in management.current_loaded_models if type(m.model.model).__name__ == "_Holder"]
    residence.leave()
