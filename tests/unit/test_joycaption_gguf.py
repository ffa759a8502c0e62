"""JoyCaption as GGUF files: what is read of them, the chat against transformers' own, and llama.cpp itself where it is installed."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.folder import load_folder
from pistachio.dataset.joycaption.captioner import caption_dataset
from pistachio.dataset.joycaption.gguf import CHAT, Chat, LazyGgufCaptioner, check_files, load_gguf
from pistachio.dataset.joycaption.gguf_file import read_gguf
from pistachio.dataset.joycaption.model import load_joycaption, to_pixels
from pistachio.dataset.joycaption.prompts import CAPTION_TYPES, EXTRA_OPTIONS, SYSTEM_PROMPTS, CaptionRequest, build_prompt
from pistachio.training.errors import PistachioError
from support import tiny_gguf, tiny_llava

TEXTS = [form for forms in CAPTION_TYPES.values() for form in forms] + list(EXTRA_OPTIONS)
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60 + i, 3), dtype=np.uint8)) for i in range(3)]
SYSTEM = SYSTEM_PROMPTS["beta-one"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llava.write_joycaption(tmp_path_factory.mktemp("models") / "llama-joycaption-beta-one-hf-llava", TEXTS)


@pytest.fixture(scope="module")
def files(source, tmp_path_factory):
    return tiny_gguf.write_pair(source, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def reference(source):
    return load_joycaption(source, precision="fp32")


# ---- the files -----------------------------------------------------------------------


def test_what_the_files_say_of_themselves(files):
    model, projector = check_files(*files)
    assert (model.architecture, model.name, model.token("bos"), model.token("eos")) == ("llama", "llama-joycaption-beta-one-hf-llava", "<|begin_of_text|>", "<|eot_id|>")
    assert model.token("eot") == "" and "<|reserved_special_token_69|>" in model.values["tokenizer.chat_template"]
    assert projector.values["clip.vision.image_size"] == 32 and projector.size_bytes == files[1].stat().st_size


def test_wrong_and_damaged_files_are_told_apart(files, tmp_path):
    model, projector = files
    for wrong, words in (
        ((projector, projector), "is the projector"), ((model, model), "not the projector of one"), ((tmp_path / "none.gguf", projector), "does not exist"),
        ((tiny_gguf.write_gguf(tmp_path / "q.gguf", {"general.architecture": "qwen2"}, {}), projector), "holds a 'qwen2' model"),
    ):
        with pytest.raises(PistachioError, match=words):
            check_files(*wrong)
    data = model.read_bytes()
    for kept in (0, 3, 12, 40, len(data) // 8, len(data) // 2, len(data) - 20_000):
        short = tmp_path / "short.gguf"
        short.write_bytes(data[:kept])
        with pytest.raises(PistachioError, match="not a GGUF file|damaged or cut short|is cut short") as caught:
            read_gguf(short)
        assert str(short) in str(caught.value)
    short.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + data[8:])
    with pytest.raises(PistachioError, match="version 9"):
        read_gguf(short)
    short.write_bytes(data[:8] + b"\xff" * 16 + data[24:])
    with pytest.raises(PistachioError, match="entries"):
        read_gguf(short)


# ---- the chat -------------------------------------------------------------------------


def chat(model, **changes):
    file = read_gguf(model)
    values = dict(template=file.values["tokenizer.chat_template"], bos=file.token("bos"), eos=file.token("eos"), is_bos_added=True)
    return Chat(**(values | changes))


def test_the_chat_is_the_one_that_transformers_writes(files, reference):
    request = CaptionRequest(name="Anna", options=(1, 2, 27))
    prompt = build_prompt(request)
    before, after = chat(files[0], is_bos_added=False).parts(SYSTEM, prompt)
    text = reference.tokenizer.apply_chat_template(
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    assert before + tiny_llava.IMAGE_TOKEN + after == text and prompt in after
    added, same = chat(files[0]).parts(SYSTEM, prompt)
    assert "<|begin_of_text|>" + added == before and same == after, "who reads it adds the only BOS"


def test_a_template_without_the_pictures_place_and_a_file_without_a_template(files):
    bare = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}[assistant]"
    assert chat(files[0], template=bare).parts("Be kind.", "Say it.") == ("[system]Be kind.[user]", "\nSay it.[assistant]")
    before, after = chat(files[0], template="").parts(SYSTEM, "Say it.")
    assert before.endswith(f"\n\n{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<|reserved_special_token_70|>")
    assert after == "<|reserved_special_token_71|>Say it.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n" and "{system}" in CHAT
    for prompt in ("Two <image>", "One <__media__>", f"One {tiny_llava.IMAGE_TOKEN}"):
        with pytest.raises(PistachioError, match="stands for the picture"):
            chat(files[0]).parts(SYSTEM, prompt)
    with pytest.raises(PistachioError, match="0 places"):
        chat(files[0], template="nothing").parts(SYSTEM, "Say it.")
    with pytest.raises(PistachioError, match="can't be used"):
        chat(files[0], template="{% for %}").parts(SYSTEM, "Say it.")


def test_nothing_is_loaded_before_it_is_needed_and_the_missing_package_is_named(files, monkeypatch):
    lazy = LazyGgufCaptioner(model_file=files[0], projector_file=files[1])
    assert not lazy.is_loaded and lazy.prepare(IMAGES[0]) is IMAGES[0]
    lazy.free()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(PistachioError, match="pip install llama-cpp-python"):
        lazy.generate(IMAGES[:1], CaptionRequest())
    assert not lazy.is_loaded


# ---- llama.cpp itself -----------------------------------------------------------------


@pytest.fixture(scope="module")
def captioner(files):
    pytest.importorskip("llama_cpp")
    loaded = load_gguf(*files, context_length=2048, gpu_layers=0)
    yield loaded
    loaded.free()
    with pytest.raises(PistachioError, match="was freed"):
        loaded.generate(IMAGES[:1], CaptionRequest())


def test_its_prompt_tokens_are_those_of_transformers(captioner, reference):
    assert (captioner.kind, captioner.image_side, captioner.image_seq_length, captioner.chat.is_bos_added) == ("beta-one", 32, 16, True)
    prompt = build_prompt(CaptionRequest())
    before, after = captioner.chat.parts(SYSTEM, prompt)
    tokens = [
        *captioner.llama.tokenize(before.encode(), add_bos=True, special=True), *[reference.image_token_id] * 16,
        *captioner.llama.tokenize(after.encode(), add_bos=False, special=True),
    ]
    assert tokens == reference.prompt_tokens(prompt)


def test_it_sees_the_picture_and_thinks_as_transformers_does(captioner, reference):
    """Keys and values in 16 bits and another GELU: near, not equal."""
    request = CaptionRequest(temperature=0, max_new_tokens=1)
    seen = []
    for image in IMAGES:
        captioner.generate([image], request)
        logits = np.ctypeslib.as_array(captioner.llama._ctx.get_logits_ith(-1), shape=(captioner.llama.n_vocab(),)).copy()
        first = int(captioner.llama.input_ids[captioner.llama.n_tokens - 1])  # the token that was answered
        ids = torch.tensor([reference.prompt_tokens(build_prompt(request))])
        with torch.inference_mode():
            pixels = to_pixels([image], 32)
            before = reference.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0, -1]
            ids = torch.cat([ids, torch.tensor([[first]])], dim=1)
            expected = reference.model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels).logits[0, -1].numpy()
        assert before.argmax() == first and expected.argmax() == logits.argmax()
        assert np.corrcoef(expected, logits)[0, 1] > 0.99
        seen.append(logits)
    assert np.abs(seen[0] - seen[1]).max() > 0.5, "the answer depends on the picture"


def test_seeds_places_and_ends(captioner):
    request = CaptionRequest(temperature=1.0, max_new_tokens=12, seed=5)
    first = captioner.generate(IMAGES, request)
    assert captioner.generate(IMAGES, request) == first != captioner.generate(IMAGES, request, seed=6)
    assert captioner.generate([captioner.prepare(image) for image in IMAGES], request) == first
    assert captioner.generate(IMAGES[1:2], request, seed=6)[0] == first[1], "a picture's answer does not depend on the one before it"
    (cut,) = captioner.generate(IMAGES[:1], CaptionRequest(temperature=0, max_new_tokens=1))
    assert not cut.finished and cut.num_tokens == 1
    whole = captioner.generate(IMAGES, CaptionRequest(temperature=0, max_new_tokens=200))
    assert all(answer.finished and 0 < answer.num_tokens < 200 for answer in whole)


def test_an_interrupt_is_heard_between_two_tokens(captioner):
    calls = []

    class Cancelled(Exception):
        pass

    def cancel():
        calls.append(1)
        if len(calls) > 3:
            raise Cancelled

    request = CaptionRequest(temperature=1.0, max_new_tokens=50, seed=3)
    with pytest.raises(Cancelled):
        captioner.generate(IMAGES, request, check_interrupted=cancel)
    assert len(calls) == 4
    assert len(captioner.generate(IMAGES[:1], request)) == 1, "it can be used again"


def test_what_does_not_fit_and_what_does_not_belong_together(captioner, files, tmp_path):
    with pytest.raises(PistachioError, match="context_length is 2048"):
        captioner.generate(IMAGES[:1], CaptionRequest(max_new_tokens=2000))
    nothing = tiny_gguf.write_gguf(tmp_path / "empty-mmproj.gguf", {"general.architecture": "clip"}, {})
    broken = LazyGgufCaptioner(model_file=files[0], projector_file=nothing, context_length=2048, gpu_layers=0)
    with pytest.raises(PistachioError, match="mmproj file must be of the same model"):
        broken.generate(IMAGES[:1], CaptionRequest(max_new_tokens=3))
    broken.free()
    useless = tiny_gguf.write_gguf(tmp_path / "empty.gguf", {"general.architecture": "llama"}, {})
    with pytest.raises(PistachioError, match="can't load"):
        load_gguf(useless, files[1])


def test_a_folder_is_captioned_and_the_memory_given_back(files, tmp_path):
    pytest.importorskip("llama_cpp")
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"p{number}.png")
    lazy = LazyGgufCaptioner(model_file=files[0], projector_file=files[1], context_length=2048, gpu_layers=0)
    request = CaptionRequest(caption_type="MidJourney", options=(), max_new_tokens=300, temperature=1.0, top_p=1.0, seed=1)
    captioned = caption_dataset(load_folder(tmp_path), lazy, request, batch_size=2, trigger_word="ohwx")
    texts = [(tmp_path / f"p{number}.txt").read_text(encoding="utf-8").strip() for number in range(3)]
    assert texts == [p.caption for p in captioned.pictures] and all(text.startswith("ohwx, ") for text in texts) and len(set(texts)) == 3
    assert not lazy.is_loaded
