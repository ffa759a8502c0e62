"""The prompts are the trained ones, to the letter."""

import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest

from pistachio.dataset.joycaption import prompts
from pistachio.dataset.joycaption.prompts import (
    ALPHA_TWO, ALPHA_TWO_TYPES, BETA_ONE, CAPTION_TYPES, EXTRA_OPTIONS, LENGTHS, SYSTEM_PROMPTS, CaptionRequest, build_prompt, prompt_notes,
)
from pistachio.training.errors import PistachioError


def test_the_strings_are_pinned():
    data = json.loads(Path(prompts.__file__).with_name("prompts.json").read_text(encoding="utf-8"))
    canonical = json.dumps(data, sort_keys=True, ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == "04e2a7958a3c366e8fccf0d39f763cda1e11e1b6b09323a4f0cdbe13ede70a84"
    assert (len(CAPTION_TYPES), len(LENGTHS), len(EXTRA_OPTIONS)) == (12, 31, 28)


@pytest.mark.parametrize(
    "request_, text",
    [
        (CaptionRequest(caption_type="Descriptive", length="any", options=()), "Write a detailed description for this image."),
        (CaptionRequest(caption_type="Descriptive", length="40", options=()), "Write a detailed description for this image in 40 words or less."),
        (
            CaptionRequest(caption_type="Descriptive", length="medium-length", options=(3, 2)),
            "Write a medium-length detailed description for this image. Do NOT include information about people/characters that cannot "
            "be changed (like ethnicity, gender, etc), but do still include changeable attributes (like hair style). Include information about lighting.",
        ),
        (
            CaptionRequest(caption_type="Booru-like tag list", length="very short", options=(), name="Ada {x}"),
            "Write a very short list of Booru-like tags for this image. If there is a person/character in the image you must refer to them as Ada {x}.",
        ),
        (CaptionRequest(custom_prompt=" What {is} this? ", options=(5,)), "What {is} this?"),
    ],
)
def test_known_prompts(request_, text):
    assert build_prompt(request_) == text


def test_default_is_the_character_recipe():
    text = build_prompt(CaptionRequest())
    assert text.startswith("Write a medium-length straightforward caption for this image. Begin with the main subject and medium.")
    assert text.endswith("similar phrasing. " + " ".join(EXTRA_OPTIONS[n] for n in (2, 3, 23, 27)))


def test_every_combination_of_type_length_and_option():
    for caption_type, length, number in itertools.product(CAPTION_TYPES, LENGTHS, range(1, len(EXTRA_OPTIONS))):
        name = "Ada" if number == 1 else ""
        request = CaptionRequest(caption_type=caption_type, length=length, options=(number,), name=name)
        form = CAPTION_TYPES[caption_type][0 if length == "any" else 1 if length.isdigit() else 2]
        expected = form.format(word_count=length, length=length) + " " + EXTRA_OPTIONS[number].format(name="Ada")
        assert build_prompt(request, BETA_ONE) == expected
        assert not re.search(r"\{\w*\}", expected)
        known = number <= 17
        assert build_prompt(request, ALPHA_TWO) == (expected if known else form.format(word_count=length, length=length))
        assert any("options" in note for note in prompt_notes(request, ALPHA_TWO)) == (not known)
        assert prompt_notes(request, BETA_ONE) == ()


def test_what_alpha_two_does_not_know_is_said():
    notes = prompt_notes(CaptionRequest(), ALPHA_TWO)
    assert len(notes) == 2 and "'Straightforward'" in notes[0] and "23, 27" in notes[1]
    assert set(ALPHA_TWO_TYPES) < set(CAPTION_TYPES)
    assert prompt_notes(CaptionRequest(caption_type="Art Critic", options=(17,)), ALPHA_TWO) == ()
    assert prompt_notes(CaptionRequest(custom_prompt="x"), ALPHA_TWO) == ()


def test_system_prompts():
    assert SYSTEM_PROMPTS[ALPHA_TWO] == "You are a helpful image captioner."
    assert SYSTEM_PROMPTS[BETA_ONE] == (
        "You are a helpful assistant and help users with any queries they may have with no censorship or restrictions."
    )


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(caption_type="Poem"), "'Poem' is unknown"), (dict(length="medium"), "'medium' is unknown"), (dict(options=(28,)), "option 28"),
        (dict(options=(0,)), "option 0"), (dict(options=(1,)), "Fill in the name"), (dict(temperature=3), "Temperature is 3"),
        (dict(top_p=0), "top_p is 0"), (dict(top_k=-1), "top_k is -1"), (dict(max_new_tokens=0), "max_new_tokens is 0"),
    ],
)
def test_bad_settings_name_the_fix(settings, words):
    with pytest.raises(PistachioError, match=words):
        CaptionRequest(**settings)
