"""The plan of a character sheet: which pictures an edit model is asked for, in what words, and the caption of each.

Owns the tables of angles, expressions, framings, light, outfits and backgrounds, how they are mixed, and how each kind
of edit model wants to be told. Knows nothing about models, nodes or files.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..training.errors import PistachioError
from .captions import with_trigger

MAX_SHOTS = 200
SIZE_STEP_PX = 16  # every edit model here takes sizes in steps of this
SEED_LIMIT = 2**53  # a canvas counts no further


@dataclass(frozen=True, slots=True)
class Phrase:
    caption: str  # as the caption names it
    instruction: str = ""  # as the edit model is told; empty: the same words

    @property
    def told(self) -> str:
        return self.instruction or self.caption


@dataclass(frozen=True, slots=True)
class Framing:
    phrase: Phrase
    width: int  # of the picture's shape
    height: int


# The captions' words are those that Check Dataset reads framing from.
CLOSE_UP = Framing(Phrase("close-up", "a close-up of the face"), 1, 1)
UPPER_BODY = Framing(Phrase("upper body shot", "an upper body shot from the waist up"), 3, 4)
FULL_BODY = Framing(Phrase("full body shot", "a full body shot from head to toe, with the feet in the picture"), 2, 3)
# A framing that is there twice is asked for twice as often.
FRAMING_MIXES = {
    "equal parts": (CLOSE_UP, UPPER_BODY, FULL_BODY),
    "half close-ups": (CLOSE_UP, CLOSE_UP, UPPER_BODY, FULL_BODY),
    "close-ups and upper body": (CLOSE_UP, UPPER_BODY),
}

ANGLES = (
    Phrase("facing the camera"),
    Phrase("three-quarter view to the left", "in three-quarter view, turned to the left side of the picture"),
    Phrase("three-quarter view to the right", "in three-quarter view, turned to the right side of the picture"),
    Phrase("profile to the left", "in full profile, looking to the left side of the picture"),
    Phrase("profile to the right", "in full profile, looking to the right side of the picture"),
    Phrase("seen from above", "seen from slightly above"),
    Phrase("seen from below", "seen from slightly below"),
    Phrase("looking over the shoulder", "turned away, looking back at the camera over the shoulder"),
)
EXPRESSIONS = (
    "a neutral expression", "a gentle smile", "an open laugh", "a serious look", "a thoughtful look", "a surprised look", "a slight frown",
)
# None of them needs a certain place.
LIGHTS = (
    "soft even light", "warm low sunlight", "cool overcast light", "hard light from the side", "light from behind with a bright rim",
    "dim evening light",
)
OUTFITS = (
    "a plain white t-shirt and jeans", "a grey hooded sweatshirt", "a black leather jacket", "a long beige coat and a scarf",
    "a green knitted sweater", "a dark blue suit", "sports clothes", "a light linen shirt",
)
BACKGROUNDS = (
    "against a plain light grey wall", "in a city street", "in a park with trees", "in a living room", "in a cafe", "on a beach",
    "in a library", "on a mountain path",
)

# How the makers of each want it. Qwen-Image-Edit: direct and specific, the person named, what stays listed, expressions
# natural. Kontext: "change", the person named in every sentence, what is preserved said outright. FLUX.2: a description
# of the picture to make, the subject first, the light told, nothing negated.
EDIT_MODELS = ("Qwen-Image-Edit", "FLUX.1 Kontext", "FLUX.2")


@dataclass(frozen=True, kw_only=True, slots=True)
class SheetOptions:
    trigger_word: str = ""
    class_noun: str = ""  # "woman": in the captions, behind the trigger word
    subject: str = ""  # what the edit model calls the character; empty: "the <class noun>", or "the person"
    edit_model: str = EDIT_MODELS[0]
    framing_mix: str = "equal parts"
    outfits: tuple[str, ...] = OUTFITS  # none: the clothes stay, and no caption names them
    backgrounds: tuple[str, ...] = BACKGROUNDS  # none: the background stays
    expressions: tuple[str, ...] = EXPRESSIONS
    lights: tuple[str, ...] = LIGHTS
    resolution: int = 1024  # the square root of a picture's pixels
    seed: int = 0

    def __post_init__(self) -> None:
        if self.edit_model not in EDIT_MODELS:
            raise PistachioError(f"'{self.edit_model}' is no edit model of the character sheet. Choose one of {', '.join(EDIT_MODELS)}.")
        if self.framing_mix not in FRAMING_MIXES:
            raise PistachioError(f"'{self.framing_mix}' is no framing mix. Choose one of {', '.join(FRAMING_MIXES)}.")

    @property
    def called(self) -> str:
        return self.subject.strip() or f"the {self.class_noun.strip() or 'person'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One picture of the sheet."""

    number: int  # from 1
    key: str  # 8 hex digits of all that decides the picture
    instruction: str
    caption: str
    seed: int
    width: int
    height: int

    @property
    def stem(self) -> str:
        return f"sheet-{self.number:03d}-{self.key}"


def plan_sheet(options: SheetOptions, count: int, *, reference: str = "") -> tuple[Shot, ...]:
    """The first `count` shots; a longer sheet begins with a shorter one. `reference`: the content hash of the picture."""
    if not 1 <= count <= MAX_SHOTS:
        raise PistachioError(f"A character sheet of {count} pictures can't be planned. Ask for 1 to {MAX_SHOTS} on Character Sheet.")
    axes = _axes(options)
    different = math.prod(len(set(axis)) for axis in axes)
    if count > different:
        raise PistachioError(f"{count} different pictures can't be made of these lists, {different} can. Add outfits or backgrounds on Character Sheet, or lower 'pictures'.")
    return tuple(_shot(options, number, values, reference) for number, values in enumerate(_mixed(axes, count, options.seed), 1))


def read_list(text: str) -> tuple[str, ...]:
    """The lines of a list that a person edits, without blanks and doubles; # begins a comment."""
    lines = (" ".join(line.split("#", 1)[0].split()).rstrip(".,;") for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if line))


# ---- which values go together -------------------------------------------------------------------------------------


def _axes(options: SheetOptions) -> tuple[tuple, ...]:
    """An axis without values is one with nothing to say."""
    lists = (options.expressions, options.lights, options.outfits, options.backgrounds)
    return FRAMING_MIXES[options.framing_mix], ANGLES, *(tuple(map(Phrase, values)) or (None,) for values in lists)


def _mixed(axes: tuple[tuple, ...], count: int, seed: int) -> list[tuple]:
    """`count` different combinations; each value about equally often, and beside each other value as seldom as can be."""
    weights = [Counter(axis) for axis in axes]
    used: list[Counter] = [Counter() for _ in axes]
    together: Counter = Counter()
    chosen: dict[tuple, None] = {}

    def candidates(index: int, before: tuple) -> Iterator[tuple]:
        if index == len(axes):
            yield before
            return

        def order(value) -> tuple:
            pairs = sum(together[i, other, index, value] for i, other in enumerate(before))
            return used[index][value] / weights[index][value], pairs, _digest(seed, len(chosen), index, value)

        for value in sorted(weights[index], key=order):
            yield from candidates(index + 1, (*before, value))

    for _ in range(count):
        values = next(one for one in candidates(0, ()) if one not in chosen)
        chosen[values] = None
        for index, value in enumerate(values):
            used[index][value] += 1
            together.update((i, other, index, value) for i, other in enumerate(values[:index]))
    return list(chosen)


def _digest(*parts) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


# ---- words --------------------------------------------------------------------------------------------------------


def _shot(options: SheetOptions, number: int, values: tuple, reference: str) -> Shot:
    framing, angle, expression, light, outfit, background = values
    instruction = _INSTRUCTIONS[options.edit_model](options.called, framing.phrase.told, angle.told, expression, light, outfit, background)
    side = options.resolution / math.sqrt(framing.width * framing.height)
    width, height = (max(SIZE_STEP_PX, round(part * side / SIZE_STEP_PX) * SIZE_STEP_PX) for part in (framing.width, framing.height))
    seed = int(_digest("sheet seed", options.seed, number)[:16], 16) % SEED_LIMIT
    return Shot(
        number=number, key=_digest("sheet-1", instruction, seed, width, height, reference)[:8], instruction=instruction,
        caption=_caption(options, framing.phrase, angle, expression, light, outfit, background), seed=seed, width=width, height=height,
    )


def _caption(options: SheetOptions, framing: Phrase, angle: Phrase, expression, light, outfit, background) -> str:
    """What was asked for. Who it is belongs to the trigger word and stays unsaid."""
    dressed = f"wearing {outfit.caption}" if outfit else None
    parts = [framing.caption, angle.caption, *(part.caption for part in (expression,) if part), dressed, *(part.caption for part in (background, light) if part)]
    said = ", ".join(part for part in (options.class_noun.strip(), *parts) if part)
    trigger = options.trigger_word.strip()
    return f"{trigger} {said}" if trigger and options.class_noun.strip() else with_trigger(said, trigger)


def _qwen(subject: str, framing: str, angle: str, expression, light, outfit, background) -> str:
    look = f", with {expression.told}" if expression else ""
    clothes = f" Change the clothes to {outfit.told}." if outfit else " Keep the clothes unchanged."
    return (
        f"Show {subject} from the picture in {framing}, {angle}{look}.{clothes}{_place(f'Place {subject}', background, light)} Keep the facial "
        f"features, hairstyle, hair colour, skin tone, age and body shape of {subject} unchanged, natural and recognisable, and keep the style of the picture."
    )


def _kontext(subject: str, framing: str, angle: str, expression, light, outfit, background) -> str:
    look = f", with {expression.told}" if expression else ""
    clothes = f" Change the clothes of {subject} to {outfit.told}." if outfit else f" Keep the clothes of {subject}."
    return (
        f"Change the picture to {framing}: {subject} {angle}{look}.{clothes}{_place(f'Change the background so that {subject} is', background, light)} "
        f"Maintain the same facial features, hairstyle, hair colour, skin tone and body proportions of {subject}, and the same style of the picture."
    )


def _flux2(subject: str, framing: str, angle: str, expression, light, outfit, background) -> str:
    look = f", with {expression.told}" if expression else ""
    clothes = f"wears {outfit.told}" if outfit else "wears the clothes of image 1"
    place = f" and is {background.told}" if background else " in the setting of image 1"
    shine = f" The picture is lit by {light.told}." if light else ""
    return (
        f"{_sentence(subject)} from image 1 in {framing}, {angle}{look}. {_sentence(subject)} {clothes}{place}.{shine} "
        f"The facial features, hairstyle, hair colour, skin tone and body of {subject} are those of image 1, and so is the style of the picture."
    )


_INSTRUCTIONS = {"Qwen-Image-Edit": _qwen, "FLUX.1 Kontext": _kontext, "FLUX.2": _flux2}


def _place(begin: str, background, light) -> str:
    if background:
        return f" {begin} {background.told}{f', in {light.told}' if light else ''}."
    return " Keep the background unchanged." + (f" Change the lighting to {light.told}." if light else "")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
