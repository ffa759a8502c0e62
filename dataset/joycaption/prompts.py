"""The prompts that JoyCaption was trained on, word for word, and the system prompt of each model.

The strings live in prompts.json; a paraphrase is off-distribution and captions worse.
Knows nothing about models or pictures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...training.errors import PistachioError

_DATA = json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))

# type -> (any length, a number of words, a length in words)
CAPTION_TYPES: dict[str, tuple[str, str, str]] = {name: tuple(forms) for name, forms in _DATA["CAPTION_TYPE_MAP"].items()}
LENGTHS: tuple[str, ...] = tuple(_DATA["lengths"])
EXTRA_OPTIONS: tuple[str, ...] = tuple(_DATA["EXTRA_OPTIONS"])  # by number; 0 is none
NAME_OPTION = 1  # "refer to them as {name}"
NO_META_OPTION = 27
WATERMARK_OPTIONS = frozenset({5, 26})  # the answer is to speak of watermarks
CHARACTER_OPTIONS = (2, 3, 23, NO_META_OPTION)  # nothing that can't be changed, lighting, shot size, no meta phrases
TAG_TYPES = frozenset(name for name in CAPTION_TYPES if name.endswith("tag list"))
PROSE_TYPES = frozenset({"Descriptive", "Descriptive (Casual)", "Straightforward", "Art Critic"})  # whole sentences to the end

ALPHA_TWO, BETA_ONE = "alpha-two", "beta-one"
KINDS = (BETA_ONE, ALPHA_TWO)
GENERAL = "general"  # a vision-language model that follows instructions in plain words
SYSTEM_PROMPTS = {
    ALPHA_TWO: "You are a helpful image captioner.",
    BETA_ONE: "You are a helpful assistant and help users with any queries they may have with no censorship or restrictions.",
}
LAST_OPTION = {ALPHA_TWO: 17, BETA_ONE: 27, GENERAL: 27}  # options above it are unknown to that model
# The types whose strings alpha-two saw in training too; it still answers the others.
ALPHA_TWO_TYPES = ("Descriptive (Casual)", "MidJourney", "Booru-like tag list", "Art Critic", "Product Listing", "Social Media Post")


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRequest:
    """What to ask of JoyCaption; the default suits a character's training pictures."""

    caption_type: str = "Straightforward"  # a key of CAPTION_TYPES
    length: str = "medium-length"  # one of LENGTHS
    options: tuple[int, ...] = CHARACTER_OPTIONS  # numbers in EXTRA_OPTIONS
    name: str = ""  # how to call the person; adds option 1
    custom_prompt: str = ""  # replaces everything above when not empty
    temperature: float = 0.6  # 0 is greedy
    top_p: float = 0.9
    top_k: int = 0  # 0 is off
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.caption_type not in CAPTION_TYPES:
            raise PistachioError(f"Caption type '{self.caption_type}' is unknown. Choose one of {', '.join(CAPTION_TYPES)}.")
        if self.length not in LENGTHS:
            raise PistachioError(f"Caption length '{self.length}' is unknown. Choose one of {', '.join(LENGTHS)}.")
        bad = [number for number in self.options if not 1 <= number < len(EXTRA_OPTIONS)]
        if bad:
            raise PistachioError(f"Caption option {bad[0]} is unknown. Options go from 1 to {len(EXTRA_OPTIONS) - 1}.")
        if NAME_OPTION in self.options and not self.name.strip():
            raise PistachioError("Caption option 1 calls the person by a name, and none is given. Fill in the name, or take option 1 out.")
        if not 0 <= self.temperature <= 2:
            raise PistachioError(f"Temperature is {self.temperature}. Set it between 0 (no randomness) and 2; 0.6 is usual.")
        if not 0 < self.top_p <= 1:
            raise PistachioError(f"top_p is {self.top_p}. Set it above 0 and at most 1; 0.9 is usual.")
        if self.top_k < 0:
            raise PistachioError(f"top_k is {self.top_k}. Set it to 0 (off) or above.")
        if self.max_new_tokens < 1:
            raise PistachioError(f"max_new_tokens is {self.max_new_tokens}. Set it to 1 or more; 512 is usual.")


def build_prompt(request: CaptionRequest, kind: str = BETA_ONE) -> str:
    """The user message: type and length, then the extra options in their order, joined by blanks.

    Options that the model `kind` was not trained on are left out; `prompt_notes` says so.
    """
    if request.custom_prompt.strip():
        return request.custom_prompt.strip()
    any_length, by_words, by_length = CAPTION_TYPES[request.caption_type]
    if request.length == "any":
        text = any_length
    elif request.length.isdigit():
        text = by_words.format(word_count=request.length)
    else:
        text = by_length.format(length=request.length)
    known = [n for n in _option_numbers(request) if n <= LAST_OPTION[kind]]
    return " ".join([text, *(EXTRA_OPTIONS[n].replace("{name}", request.name.strip()) for n in known)])


def prompt_notes(request: CaptionRequest, kind: str) -> tuple[str, ...]:
    """What of the request the model can't follow, as sentences."""
    if request.custom_prompt.strip():
        return ()
    notes = []
    if kind == ALPHA_TWO and request.caption_type not in ALPHA_TWO_TYPES:
        notes.append(
            f"JoyCaption alpha-two was not trained on the caption type '{request.caption_type}': its answers may stray. "
            "'Descriptive (Casual)' is one that it knows; beta-one knows all."
        )
    unknown = [n for n in _option_numbers(request) if n > LAST_OPTION[kind]]
    if unknown:
        numbers = ", ".join(map(str, unknown))
        notes.append(f"JoyCaption {kind} does not know the caption options {numbers}: they were left out. Beta-one knows them.")
    return tuple(notes)


def _option_numbers(request: CaptionRequest) -> list[int]:
    return sorted({*request.options, *([NAME_OPTION] if request.name.strip() else [])})
