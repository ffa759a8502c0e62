"""JoyCaption through the real LLaVA classes with tiny weights, against plain transformers calls."""

import gc
import json
import logging
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.joycaption.model import load_joycaption, to_pixels
from pistachio.dataset.joycaption.prompts import CAPTION_TYPES, EXTRA_OPTIONS, SYSTEM_PROMPTS, CaptionRequest, build_prompt
from pistachio.training.errors import PistachioError
from support import tiny_llava

TEXTS = [form for forms in CAPTION_TYPES.values() for form in forms] + list(EXTRA_OPTIONS)
IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 60 + i, 3), dtype=np.uint8)) for i in range(3)]
# three prompts of three lengths, so that a batch of them needs padding
REQUESTS = [
    CaptionRequest(temperature=0, max_new_tokens=48, caption_type=t, length=n, options=o)
    for t, n, o in (("MidJourney", "any", ()), ("Descriptive", "medium-length", (2, 3)), ("Art Critic", "40", (9,)))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llava.write_joycaption(tmp_path_factory.mktemp("models") / "llama-joycaption-beta-one-hf-llava", TEXTS)


@pytest.fixture(scope="module")
def captioner(folder):
    return load_joycaption(folder, precision="fp32")


@pytest.fixture(scope="module")
def plain(folder):
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)


def plain_tokens(tokenizer, prompt, system=SYSTEM_PROMPTS["beta-one"]):
    """The Llama 3 chat written out by hand, the picture's 16 places in the user's turn."""
    text = (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
        f"{tiny_llava.IMAGE_TOKEN * 16}{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def plain_pixels(image):
    square = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)).astype(np.float64) / 255
    return torch.from_numpy((square - 0.5) / 0.5).float().permute(2, 0, 1)[None]


def plain_text(tokenizer, tokens):
    ends = [i for i, t in enumerate(tokens) if tokenizer.convert_ids_to_tokens(t) in ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")]
    return tokenizer.decode(tokens[: ends[0]] if ends else tokens, skip_special_tokens=True).strip()


def test_greedy_equals_plain_transformers_one_by_one_and_in_a_batch(captioner, plain):
    model, tokenizer = plain
    expected = []
    for image, request in zip(IMAGES, REQUESTS):
        ids = torch.tensor([plain_tokens(tokenizer, build_prompt(request))])
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=plain_pixels(image), do_sample=False,
            temperature=None, top_p=None, max_new_tokens=48,
        )[0, ids.shape[1] :].tolist()
        expected.append(plain_text(tokenizer, output))
    assert len(set(expected)) == 3 and all(expected)
    alone = [captioner.generate([image], request)[0] for image, request in zip(IMAGES, REQUESTS)]
    together = captioner.generate(IMAGES, REQUESTS)
    assert [r.text for r in alone] == expected
    assert together == alone
    assert len({len(captioner.prompt_tokens(build_prompt(r))) for r in REQUESTS}) == 3, "the batch must have needed padding"
    assert len({r.num_tokens for r in alone}) > 1, "rows must end at different places"


@pytest.mark.parametrize("top_k, top_p", [(0, 0.9), (5, 1.0)])
def test_sampling_equals_plain_transformers_with_the_same_seed(captioner, plain, top_k, top_p):
    model, tokenizer = plain
    request = CaptionRequest(temperature=1.1, top_p=top_p, top_k=top_k, max_new_tokens=24, seed=7)
    ids = torch.tensor([plain_tokens(tokenizer, build_prompt(request))] * 3)
    torch.manual_seed(7)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.cat([plain_pixels(i) for i in IMAGES]),
        do_sample=True, temperature=1.1, top_p=top_p, top_k=top_k, max_new_tokens=24,
    )[:, ids.shape[1] :].tolist()
    before = torch.random.get_rng_state()
    got = captioner.caption(IMAGES, request)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator is not touched"
    assert got == [plain_text(tokenizer, tokens) for tokens in output]
    torch.rand(5)
    assert captioner.caption(IMAGES, request) == got
    assert captioner.caption(IMAGES, request, seed=8) != got


def test_no_warning_and_untouched_file_settings(captioner, caplog):
    caplog.set_level(logging.WARNING)
    for name in ("transformers", "transformers.generation.utils"):
        logging.getLogger(name).propagate = True
    captioner.caption(IMAGES[:1], REQUESTS[0])
    captioner.caption(IMAGES[:1], CaptionRequest(max_new_tokens=3))
    assert [r.message for r in caplog.records] == []
    assert captioner.model.generation_config.temperature == 0.6


def test_the_answer_depends_on_picture_and_prompt(captioner):
    texts = captioner.caption([IMAGES[0], IMAGES[1], IMAGES[0]], [REQUESTS[0], REQUESTS[0], REQUESTS[1]])
    assert len(set(texts)) == 3


def test_ids_come_from_the_config(captioner, folder):
    config = json.loads((folder / "config.json").read_text())
    assert captioner.image_token_id == config.get("image_token_index", config.get("image_token_id")) == 7
    assert (captioner.image_seq_length, captioner.image_side, captioner.kind) == (16, 32, "beta-one")
    assert len(captioner.eos_token_ids) == 3


def test_prompt_has_one_bos_one_picture_and_the_system_prompt(captioner):
    tokens = captioner.prompt_tokens("Hello.")
    bos = captioner.tokenizer.bos_token_id
    assert captioner.tokenizer("x")["input_ids"][0] == bos, "this tokenizer would add a second one"
    assert tokens[0] == bos and tokens.count(bos) == 1
    assert tokens.count(captioner.image_token_id) == 16
    first = tokens.index(captioner.image_token_id)
    assert set(tokens[first : first + 16]) == {captioner.image_token_id}
    assert SYSTEM_PROMPTS["beta-one"] in captioner.tokenizer.decode(tokens)
    with pytest.raises(PistachioError, match="2 places for the picture"):
        captioner.prompt_tokens(f"Two {tiny_llava.IMAGE_TOKEN}")


def test_template_without_the_picture(tmp_path):
    bare = tiny_llava.write_joycaption(tmp_path / "joycaption-alpha-two", TEXTS, picture_in_template=False)
    captioner = load_joycaption(bare, precision="fp32")
    tokens = captioner.prompt_tokens("Hello.")
    assert tokens.count(captioner.image_token_id) == 16 and tokens.count(captioner.tokenizer.bos_token_id) == 1
    text = captioner.tokenizer.decode(tokens)
    assert captioner.kind == "alpha-two"
    assert "You are a helpful image captioner.<|eot_id|>" in text and text.index("user") < text.index(tiny_llava.IMAGE_TOKEN) < text.index("Hello")


def test_pixels_are_squashed_with_lanczos():
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (300, 700, 3), dtype=np.uint8))
    pixels = to_pixels([image, image.convert("L")], 384)
    assert pixels.shape == (2, 3, 384, 384) and pixels.dtype == torch.float32
    square = np.asarray(image.resize((384, 384), Image.Resampling.LANCZOS)).astype(np.float64)
    assert np.abs(pixels[0].permute(1, 2, 0).numpy() - ((square / 255) - 0.5) / 0.5).max() < 1e-6
    assert to_pixels([Image.new("RGB", (9, 9), (255, 0, 255))], 4)[0, :, 0, 0].tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("precision, layer", [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_quantising_leaves_the_vision_part_alone(folder, captioner, precision, layer):
    """Real bitsandbytes, which also has code for the CPU; its answers must stay near those of the weights it was made from."""
    pytest.importorskip("bitsandbytes")
    small = load_joycaption(folder, precision=precision)
    kinds = {name: type(module).__name__ for name, module in small.model.named_modules() if "Linear" in type(module).__name__}
    text = {kind for name, kind in kinds.items() if "layers" in name and "vision" not in name}
    vision = {kind for name, kind in kinds.items() if "vision" in name or "projector" in name}
    assert text == {layer} and vision and not vision & {"Linear8bitLt", "Linear4bit"}
    assert small.quantized and {p.dtype for n, p in small.model.named_parameters() if "vision" in n or "projector" in n} == {torch.bfloat16}

    name = next(name for name in kinds if name.endswith("layers.0.mlp.gate_proj") and "vision" not in name)
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        exact, near = (c.model.get_submodule(name)(x.to(dtype)).float() for c, dtype in ((captioner, torch.float32), (small, torch.bfloat16)))
    error = ((near - exact).norm() / exact.norm()).item()
    assert 0.001 < error < {"int8": 0.03, "nf4": 0.15}[precision], "near the weights it was made from, and not the same"
    texts = small.caption(IMAGES, CaptionRequest(temperature=0, max_new_tokens=12))
    assert texts == small.caption(IMAGES, CaptionRequest(temperature=0, max_new_tokens=12)) and all(texts)


@pytest.mark.parametrize("module", [None, type(torch)("bitsandbytes")], ids=["no package", "a release without CPU code"])
def test_what_quantising_needs_is_said_before_anything_is_loaded(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "bitsandbytes", module)  # None: importing it fails as if it were not installed
    words = "needs the package bitsandbytes" if module is None else "needs CUDA with this version of bitsandbytes, and captions are made on 'cpu'"
    with pytest.raises(PistachioError, match=words):
        load_joycaption("/nowhere/at-all", precision="nf4")


def test_an_interrupt_ends_a_batch_between_two_tokens(captioner):
    class Cancel(Exception):
        pass

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise Cancel

    with pytest.raises(Cancel):
        captioner.generate(IMAGES, CaptionRequest(temperature=0, max_new_tokens=40), check_interrupted=stop)
    assert len(calls) == 3
    request = CaptionRequest(temperature=0, max_new_tokens=6)
    assert captioner.generate(IMAGES, request, check_interrupted=lambda: None) == captioner.generate(IMAGES, request)


def test_pictures_made_ready_ahead_give_the_same_tokens(captioner):
    image = Image.fromarray(np.random.default_rng(9).integers(0, 256, (90, 50, 3), dtype=np.uint8))
    ready = captioner.prepare(image)
    assert ready.size == (32, 32) and torch.equal(to_pixels([ready], 32), to_pixels([image], 32))
    request = CaptionRequest(temperature=0, max_new_tokens=12)
    assert captioner.generate([ready], request) == captioner.generate([image], request)


def test_working_memory_grows_with_the_batch(captioner):
    one, eight = (captioner.working_bytes(n, CaptionRequest()) for n in (1, 8))
    assert eight == 8 * one
    # two layers of two heads of 8, keys and values, 2 bytes, twice
    per_token = 2 * 2 * 2 * 2 * 2 * 8
    assert one % per_token == 0 and one // per_token > 16 + 512


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_and_freeing(folder, precision, dtype):
    captioner = load_joycaption(folder, precision=precision)
    assert {p.dtype for p in captioner.model.parameters()} == {dtype}
    assert not captioner.model.training
    captioner.caption(IMAGES[:1], CaptionRequest(max_new_tokens=2))
    weight = weakref.ref(next(captioner.model.parameters()))
    captioner.free()
    gc.collect()
    assert weight() is None, "something still holds the weights"
    with pytest.raises(PistachioError, match="was freed"):
        captioner.caption(IMAGES[:1], CaptionRequest())


def test_weights_are_the_files_own(folder, captioner):
    """Published key names end up in the right modules: nothing is left at its random start."""
    from safetensors.torch import load_file

    stored = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    loaded = dict(captioner.model.named_parameters())
    assert len(stored) == len(loaded)
    embed = captioner.model.get_input_embeddings().weight
    assert torch.equal(embed, stored["language_model.model.embed_tokens.weight"])
    assert torch.equal(captioner.model.get_output_embeddings().weight, stored["language_model.lm_head.weight"])
    sums = [sorted(round(v.detach().double().sum().item(), 4) for v in weights.values()) for weights in (stored, loaded)]
    assert sums[0] == sums[1]


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_missing_weights_are_refused(broken):
    from safetensors.torch import load_file, save_file

    index = json.loads((broken / "model.safetensors.index.json").read_text())
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    shard = broken / index["weight_map"].pop(name)
    weights = load_file(shard)
    del weights[name]
    save_file(weights, shard, metadata={"format": "pt"})
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PistachioError, match=r"lacks 1 weights, first '.*layers\.1\.mlp\.up_proj\.weight'"):
        load_joycaption(broken, precision="fp32")


def test_refusals(broken, folder):
    with pytest.raises(PistachioError, match="precision 'fp64'"):
        load_joycaption(folder, precision="fp64")
    with pytest.raises(PistachioError, match="version 'gamma'"):
        load_joycaption(folder, precision="fp32", kind="gamma")
    (broken / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(PistachioError, match="incomplete: model-00002-of-00002.safetensors missing"):
        load_joycaption(broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (broken / "model.safetensors.index.json").unlink()
    (broken / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # whole, and empty
    with pytest.raises(PistachioError, match="holds a 'llama' model"):
        load_joycaption(broken)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_damaged_files_are_named(broken, name):
    data = (broken / name).read_bytes()
    (broken / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(PistachioError, match="damaged|can't be loaded") as caught:
        load_joycaption(broken, precision="fp32")
    assert str(broken) in str(caught.value)


def test_kind_from_the_name_or_the_setting(folder, tmp_path, caplog):
    assert load_joycaption(folder, precision="fp32", kind="alpha-two").kind == "alpha-two"
    unnamed = shutil.copytree(folder, tmp_path / "my-captioner")
    assert load_joycaption(unnamed, precision="fp32").kind == "beta-one"
    assert any("does not say whether" in r.message for r in caplog.records)
