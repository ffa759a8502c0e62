"""Trigger words by the real tokenizers of the tiny models, and what those models draw for them."""

import pytest
import torch

NAMES = {"sd15": ("clip_l",), "sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l", "clip_g", "t5xxl"), "flux": ("clip_l", "t5xxl"), "wan21": ("umt5xxl",)}


@pytest.mark.parametrize("family", list(NAMES))
def test_every_tokenizer_of_the_clip_is_asked_and_reads_as_the_clip_does(tiny, family):
    from pistachio.bridge.trigger import tokenizers

    clip = tiny(family).clip
    readers = tokenizers(clip)
    assert {reader.name for reader in readers} == set(NAMES[family])
    theirs = clip.tokenize("a photo of zorvex")
    for reader in readers:
        (key,) = [key for key in theirs if reader.name in (key, f"clip_{key}")]
        padded = [token for token, *_ in theirs[key][0]]
        ids = reader.ids("a photo of zorvex")
        start = padded.index(ids[0])
        assert padded[start : start + len(ids)] == ids and len(ids) >= 4
        assert reader.word_ids("zorvex") == ids[-len(reader.word_ids("zorvex")) :]


def test_known_words_and_names_are_told_from_made_up_ones(tiny):
    from pistachio.bridge.trigger import check_trigger

    clip = tiny("sd3").clip
    for word in ("woman", "emma"):
        report = check_trigger(clip, word, None, seed=0)
        readings = {r.tokenizer: r for r in report.readings}
        assert readings["clip_l"].pieces == (word,) and readings["clip_l"].is_known
        assert not report.is_good and f"'{word}' is a known word or name" in report.problems[0] and "in clip_l" in report.problems[0]
    made_up = check_trigger(clip, "zorvex", None, seed=0)
    assert made_up.is_good and all(len(r.pieces) >= 2 and "".join(r.pieces).strip("▁") == "zorvex" for r in made_up.readings)
    # CLIP has a token for it, but one of the last
    sks = {r.tokenizer: r for r in check_trigger(clip, "sks", None, seed=0).readings}["clip_l"]
    assert sks.place is not None and sks.place > 0.9 * sks.vocabulary_size and not sks.is_known
    two = check_trigger(clip, "scarlett johansson", None, seed=0)
    assert {r.word for r in two.readings} == {"scarlett", "johansson"} and len(two.problems) >= 2
    assert any("is long for the text encoders" in p for p in check_trigger(clip, "qzxvbwkjfqpzxq", None, seed=0).problems)


def test_suggestions_are_unknown_short_seeded_and_not_in_the_captions(tiny):
    from pistachio.bridge.trigger import suggest, tokenizers

    readers = tokenizers(tiny("sd3").clip)
    words = suggest(readers, [], seed=3)
    assert len(words) == 10 and words == suggest(readers, [], seed=3) and words != suggest(readers, [], seed=4)
    for word in words:
        assert set(word) & set("aeiou") and word.isalpha()
        assert all(2 <= len(reader.word_ids(word)) <= 4 for reader in readers)
    assert len({word[:2] for word in words}) == 10
    taken = suggest(readers, [f"a photo of {words[0]}, smiling", f"the {words[1].upper()}ish hat"], seed=3)
    assert not {words[0], words[1]} & set(taken) and words[2] in taken


@pytest.mark.parametrize(
    "captions, words",
    [
        (["zwx, a man", "zwx, a dog"], []),
        (["zwx, a man", "a dog"], []),
        (["a photo of zwx on a chair", "zwx sits"], []),
        (["a man", "a dog"], []),
        (["zwx, a man with a zwx", "zwx, a dog"], ["1 of 2 captions have it more than once"]),
        (["a man with a zwx", "a dog"], ["1 of 2 captions have it inside the text"]),
        (["Zwx sits", "a dog"], ["1 of 2 captions have it in another case"]),
        (["zwxen and Zwxes", "zwxes"], ["a part of words in the captions: zwxes, zwxen"]),
    ],
)
def test_collisions_with_the_captions(captions, words):
    from pistachio.dataset.trigger_words import find_collisions

    found = find_collisions("zwx", captions).sentences
    assert len(found) == len(words) and all(word in sentence for word, sentence in zip(words, found)), found


@pytest.fixture
def run(host):
    from pistachio.nodes.trigger import CheckTrigger

    hidden = CheckTrigger.hidden

    class Hidden:
        unique_id = "1"

    CheckTrigger.hidden = Hidden
    with torch.inference_mode():  # as the host's executor runs nodes
        yield CheckTrigger.execute
    CheckTrigger.hidden = hidden


@pytest.mark.parametrize("family", ["sd15", "flux", "wan21"])
def test_the_node_draws_four_pictures_as_the_hosts_sampler_does(tiny, run, family):
    import nodes as host_nodes

    loaded = tiny(family)
    before = {name: value.clone() for name, value in list(loaded.model.model.state_dict().items())[:4]}
    out = run(loaded.clip, "zorvex", model=loaded.model, vae=loaded.vae, num_steps=2, cfg=2.0, size=64, seed=5)
    word, report, suggestions, pictures = out.args
    assert word == "zorvex" and report.startswith(("'zorvex' can be used as a trigger word.", "Think about")[family == "wan21"])  # tiny vocabulary: 7 tokens
    assert len(suggestions.split("\n")) == 10
    assert pictures.shape[0] == 4 and pictures.shape[-1] == 3 and 0 <= pictures.min() and pictures.max() <= 1
    assert len({picture.numpy().tobytes() for picture in pictures}) == 4
    assert out.ui["images"] and "No captions were connected" in out.ui["text"][0]
    assert all(torch.equal(value, loaded.model.model.state_dict()[name]) for name, value in before.items())
    if family == "sd15":
        encode = host_nodes.CLIPTextEncode().encode
        latent = {"samples": torch.zeros(1, 4, pictures.shape[1] // 8, pictures.shape[2] // 8)}
        theirs = host_nodes.KSampler().sample(
            loaded.model, 6, 2, 2.0, "euler", "simple", encode(loaded.clip, "a photo of zorvex")[0], encode(loaded.clip, "")[0], latent,
        )[0]["samples"]
        assert torch.allclose(loaded.vae.decode(theirs)[0].clamp(0, 1), pictures[1], atol=1e-5), "the second seed is the first plus one"


def test_without_a_model_only_what_hangs_on_the_pictures_waits(tiny, run, tmp_path):
    from comfy_execution.graph_utils import ExecutionBlocker
    from PIL import Image
    from pistachio.dataset.folder import load_folder
    from pistachio.training.errors import PistachioError

    for name in "ab":
        Image.new("RGB", (20, 20), (ord(name), 9, 9)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a woman with a zorvex" if name == "a" else "a woman")
    loaded = tiny("sd15")
    out = run(loaded.clip, "zorvex", dataset=load_folder(tmp_path))
    assert isinstance(out.args[3], ExecutionBlocker) and "1 of 2 captions have it inside the text" in out.args[1]
    with pytest.raises(PistachioError, match="connect both"):
        run(loaded.clip, "zorvex", model=loaded.model)
    with pytest.raises(PistachioError, match="trigger word is empty"):
        run(loaded.clip, "  ")


def test_where_the_trigger_goes_in_the_prompt(host):
    from pistachio.bridge.trigger import preview_prompt

    assert preview_prompt("a photo of [trigger], smiling", "zwx") == "a photo of zwx, smiling"
    assert preview_prompt("portrait", "zwx") == "portrait zwx" and preview_prompt("", "zwx") == "zwx"
