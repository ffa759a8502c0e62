"""Faults of captions: what is found, and what must not be taken for one."""

import pytest

from pistachio.dataset.joycaption.glitches import find_glitch, meta_phrase
from pistachio.dataset.joycaption.prompts import CaptionRequest

PROSE, TAGS = CaptionRequest(), CaptionRequest(caption_type="Booru-like tag list", options=())
PLAIN = CaptionRequest(caption_type="Descriptive", options=())


def glitch(text, request=PROSE, finished=True):
    return find_glitch(text, request, num_tokens=9, finished=finished)


@pytest.mark.parametrize(
    "text, request_, finished, words",
    [
        ("", PROSE, True, "empty"),
        ("\x00\x01", PROSE, True, "empty"),
        ("a man in a", PROSE, False, "did not end within 9 tokens"),
        ("hat, hat, hat, hat, hat", TAGS, True, "repeats 'hat'"),
        ("well: red hat, blue coat, red hat, blue coat, red hat, blue coat, red hat, blue coat, red hat, blue coat.", PROSE, True, "repeats"),
        ("A man sits on a chair. It is dark here. A man sits on a chair. Rain falls down hard. A man sits on a chair.", PROSE, True, "3 times"),
        ("hat, coat, shoe, hat, sky, coat, hat, shoe, sea, coat, hat", TAGS, True, "said more than once"),
        ("I cannot help with that.", PROSE, True, "refusal"),
        ("I’m sorry, but I can’t describe people.", PROSE, True, "refusal"),
        ("I'm unable to view images.", PLAIN, True, "refusal"),
        ("As an AI, I have no eyes.", TAGS, True, "refusal"),
        ("Unfortunately, I can't see it.", PROSE, True, "refusal"),
    ],
)
def test_no_caption_at_all(text, request_, finished, words):
    found = glitch(text, request_, finished)
    assert found and not found.usable and words in found.reason


@pytest.mark.parametrize(
    "text, words",
    [
        ("This image shows a man in a red hat.", "'This image shows'"),
        ("The photograph depicts a dog.", "'The photograph depicts'"),
        ("In this image, a woman sits.", "'In this image, a'"),
        ("This is a black-and-white photograph of a tree.", "meta phrase"),
        ("Sure! A man in a hat.", "'Sure!'"),
        ("Here is a straightforward caption: a man.", "'Here is a straightforward caption'"),
        ("Caption: a man.", "'Caption:'"),
        ("A man in a hat. A watermark is at the bottom right.", "'watermark'"),
        ("A painting of a tree, signed at the bottom.", "'signed'"),
        ("A man in a red hat, holding a", "no end ('...A man in a red hat, holding a')"),
    ],
)
def test_a_caption_to_look_at(text, words):
    found = glitch(text)
    assert found and found.usable and words in found.reason


@pytest.mark.parametrize(
    "text, request_",
    [
        ("a man in a red hat, very very tall.", PROSE),
        ("one, two, three, one, two, four, one, two, five", TAGS),
        ("Photograph of a man in a hat, close-up.", PROSE),
        ("A poster on the wall says \"I cannot sleep.\"", PROSE),
        ("A man looks at a picture. The image on his screen shows a dog.", PROSE),
        ("A man in a hat, with no watermark or signature.", PROSE),
        ("This image shows a man.", PLAIN),  # not asked to leave it out
        ("A man. A watermark is at the bottom.", CaptionRequest(options=(5,))),  # asked for
        ("A man. A watermark is at the bottom.", CaptionRequest(custom_prompt="Is there a watermark?")),
        ("1girl, red hat, smile", TAGS),
        ("portrait, cinematic light --ar 16:9", CaptionRequest(caption_type="MidJourney", options=())),
        ("A man says \u201cstop!\u201d", PROSE),
        ("Ein Mann (links).", PROSE),
    ],
)
def test_good_captions_are_left_alone(text, request_):
    assert glitch(text, request_) is None


def test_meta_phrases_of_both_kinds():
    assert meta_phrase("The image features a cat.") and meta_phrase("this digital illustration shows a cat.") and meta_phrase("A picture of a cat.") is None
