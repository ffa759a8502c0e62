"""Trigger words as text: where one collides with the captions, and new words that can be spoken.

Knows nothing of tokenizers; who asks brings what they say.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Iterator

CONSONANTS, VOWELS = "bdfgjklmnprstvwxz", "aeiou"
SHAPES = ("CVCV", "CVCVC", "VCCV", "CVCCV", "VCVCV")
SHORTEST_PART = 3  # a trigger of two letters is a part of too many words to say anything


@dataclass(frozen=True, kw_only=True, slots=True)
class Collisions:
    """How the captions use a trigger beside standing for the character."""

    num_captions: int
    num_with: int  # captions that have it as a word
    num_twice: int  # ... more than once
    num_inside: int  # ... not at the beginning, while other captions lack it
    num_other_case: int  # captions with the same letters in another case
    longer_words: tuple[str, ...]  # words of the captions that contain it, most frequent first

    @property
    def sentences(self) -> tuple[str, ...]:
        found = []
        if self.num_twice:
            found.append(f"{self.num_twice} of {self.num_captions} captions have it more than once: one of them may be an ordinary word.")
        if self.num_inside:
            found.append(
                f"{self.num_inside} of {self.num_captions} captions have it inside the text, and others do not have it: there it is an ordinary word, "
                "which would be learnt as the character."
            )
        if self.num_other_case:
            found.append(f"{self.num_other_case} of {self.num_captions} captions have it in another case; most text encoders do not tell them apart.")
        if self.longer_words:
            found.append(f"It is a part of words in the captions: {', '.join(self.longer_words)}.")
        return tuple(found)


def find_collisions(trigger: str, captions: Iterable[str]) -> Collisions:
    trigger = trigger.strip()
    captions = list(captions)
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)")
    any_case = re.compile(word.pattern, re.IGNORECASE)
    with_it = [caption for caption in captions if word.search(caption)]
    inside = [caption for caption in with_it if not caption.lstrip().startswith(trigger)] if len(with_it) < len(captions) else []
    longer: Counter[str] = Counter()
    if len(trigger) >= SHORTEST_PART:
        part = trigger.casefold()
        for caption in captions:
            longer.update({w for w in re.findall(r"\w+", caption.casefold()) if part in w and part != w})
    return Collisions(
        num_captions=len(captions), num_with=len(with_it), num_twice=sum(len(any_case.findall(c)) > 1 for c in with_it), num_inside=len(inside),
        num_other_case=sum(any(found != trigger for found in any_case.findall(c)) for c in captions if not word.search(c)),
        longer_words=tuple(w for w, _ in longer.most_common(5)),
    )


def pronounceable_words(seed: int) -> Iterator[str]:
    """Endless, without repeats for a long while, and the same for the same seed."""
    draw = random.Random(f"pistachio-trigger-{seed}")
    seen: set[str] = set()
    while True:
        word = "".join(draw.choice(CONSONANTS if kind == "C" else VOWELS) for kind in draw.choice(SHAPES))
        if word not in seen:
            seen.add(word)
            yield word


def touches_captions(word: str, captions: Iterable[str]) -> bool:
    """Is it a word of the captions, or a part of one?"""
    return any(word.casefold() in caption.casefold() for caption in captions)


def neighbours(word: str) -> set[str]:
    """Every string that one letter tells from `word`: changed, left out or added."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    changed = {a + c + b[1:] for a, b in cuts if b for c in letters}
    return (changed | {a + b[1:] for a, b in cuts if b} | {a + c + b for a, b in cuts for c in letters}) - {word}
