"""Rules that rewrite a caption: replacing, leaks, tags, the trigger word, fixed words around it.

Owns the order of the rules and their text forms. Applying them twice changes nothing more, except
where a person's own replacement does. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher

from ..training.errors import PistachioError
from . import leak_words
from .captions import has_trigger, without_trigger
from .leak_filter import LeakFilter, is_tag_list
from .leak_words import LeakList

PREFIX, REPLACE_SUBJECT, NO_TRIGGER = "before the caption", "in place of the person", "leave as it is"
TRIGGER_PLACES = (PREFIX, REPLACE_SUBJECT, NO_TRIGGER)
ARROW = "=>"

# Left out of counts of words: they say nothing about a picture.
STOP_WORDS = leak_words.DETERMINERS | leak_words.PREPOSITIONS | leak_words.CONJUNCTIONS | leak_words.PRONOUNS | leak_words.COPULAS | frozenset(
    "with be been being has have having had not also very there her him them more than other one while who which she he it its".split()
)

# In nearly every caption, and no harm: they name nothing that a LoRA could mistake for the character.
NEUTRAL_WORDS = frozenset(
    "1girl 1boy solo wearing wears dressed looking looks camera viewer photograph photo image picture background foreground shot scene".split()
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Replacement:
    pattern: re.Pattern[str]
    replacement: str  # as re.sub takes it: \1 is the first group


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRules:
    trigger_word: str = ""
    trigger_place: str = PREFIX
    class_noun: str = ""  # follows the trigger: "ohwx woman"
    leaks: LeakList | None = None  # None: nothing is filtered
    replacements: tuple[Replacement, ...] = ()
    prepend: str = ""
    append: str = ""
    dedupe_tags: bool = False

    def __post_init__(self):
        if self.trigger_place not in TRIGGER_PLACES:
            raise PistachioError(f"The trigger's place '{self.trigger_place}' is unknown. Choose one of {', '.join(TRIGGER_PLACES)} on Caption Rules.")
        if "," in self.trigger_word or "\n" in self.trigger_word:
            raise PistachioError(f"The trigger word '{self.trigger_word}' has a comma or a line break in it. Write one word or name on Caption Rules.")

    @property
    def called(self) -> str:
        """What stands for the character: 'ohwx' or 'ohwx woman'."""
        return " ".join(part for part in (self.trigger_word.strip(), self.class_noun.strip()) if part) if self.trigger_word.strip() else ""


class RuleBook:
    """`book(caption)` -> the new caption. The patterns are compiled once for all captions."""

    def __init__(self, rules: CaptionRules):
        self.rules = rules
        self._filter = LeakFilter(rules.leaks) if rules.leaks is not None else None

    def __call__(self, caption: str) -> str:
        rules, text = self.rules, caption.strip()
        for rule in rules.replacements:
            text = rule.pattern.sub(rule.replacement, text).strip()
        called = rules.called if rules.trigger_place != NO_TRIGGER else ""
        led = bool(called) and (text == called or text.startswith(f"{called}, "))
        if led:  # our own beginning is no part of what is filtered
            text = text[len(called) :].lstrip(" ,")
        prepend = rules.prepend.strip()
        if prepend and text.startswith(prepend) and not text[len(prepend) : len(prepend) + 1].isalnum():
            text = text[len(prepend) :].lstrip(" ,")
        if self._filter is not None:
            text = self._filter(text)
        if rules.dedupe_tags and is_tag_list(text):
            text = dedupe_tags(text)
        if called and rules.trigger_place == REPLACE_SUBJECT and not led and not has_trigger(text, rules.trigger_word.strip()):
            text = in_place_of_subject(text, called) or text
        text = joined(prepend, text)
        if called and not has_trigger(text, rules.trigger_word.strip()):
            text = f"{called}, {text}" if text else called
        elif called and rules.class_noun.strip():
            text = _with_class_noun(text, rules.trigger_word.strip(), rules.class_noun.strip())
        append = rules.append.strip()
        return text if append and text.endswith(append) else joined(text, append)


# ---- text forms ----------------------------------------------------------------


def read_replacements(text: str) -> tuple[Replacement, ...]:
    r"""'pattern => replacement', one a line: Python regular expressions, \1 for a group; an empty right side deletes."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        left, arrow, right = line.partition(ARROW)
        if not arrow:
            raise PistachioError(f"Line {number} of the replacements, '{line.strip()[:80]}', has no '{ARROW}'. Write 'old words {ARROW} new words' on Caption Rules.")
        try:
            pattern = re.compile(left.strip())
            if not left.strip():
                raise re.error("it is empty")
            re.sub(pattern, right.strip(), "")
        except (re.error, IndexError) as error:
            raise PistachioError(
                f"Line {number} of the replacements can't be used: '{line.strip()[:80]}' ({error}). Correct the regular expression on Caption Rules; "
                r"a bracket, dot, star or plus sign that is meant as itself has a \ before it."
            ) from error
        if pattern.match(""):
            raise PistachioError(f"Line {number} of the replacements, '{left.strip()[:80]}', matches nothing at all and so fits everywhere. Write a pattern of at least one letter on Caption Rules.")
        found.append(Replacement(pattern=pattern, replacement=right.strip()))
    return tuple(found)


def joined(*parts: str) -> str:
    """'photo of' + 'A man.' + 'film grain' -> 'photo of, A man. film grain': a comma unless a sentence ends there."""
    text = ""
    for part in (part.strip() for part in parts):
        if part:
            gap = "" if not text else " " if text[-1] in ",.;:!?" else ", "
            text += gap + part
    return text


# ---- trigger ---------------------------------------------------------------------

_NOUNS = "|".join(sorted(leak_words.PEOPLE - frozenset("men women girls boys people ladies figure model subject portrait character".split()), key=len, reverse=True))
_SUBJECT = re.compile(rf"\b(?P<article>a|an|the|this)\s+(?P<words>(?:[\w'-]+,?\s+){{0,4}}?)(?P<noun>{_NOUNS})\b(?!['’]s)", re.IGNORECASE)
_NO_ADJECTIVES = leak_words.DETERMINERS | leak_words.PREPOSITIONS | leak_words.HAVING | leak_words.HAS | leak_words.COPULAS | leak_words.PRONOUNS


def in_place_of_subject(caption: str, called: str) -> str | None:
    """'A smiling woman sits. The woman reads.' -> 'A smiling ohwx sits. ohwx reads.'; None where no person is mentioned.

    The first person is the subject; 'the woman' afterwards is the same one as long as no second one is mentioned.
    """
    first, position = None, 0
    while first is None:
        found = _SUBJECT.search(caption, position)
        if found is None:
            return None
        if not set(found["words"].lower().replace(",", " ").split()) & _NO_ADJECTIVES:
            first = found
        position = found.start() + 1  # "a photo of a woman": the second article begins inside the first find
    between = first["words"].strip()
    new = f"{first['article']} {between} {called}" if between else called
    head, tail = caption[: first.start()] + new, caption[first.end() :]
    noun = re.escape(first["noun"])
    if not re.search(rf"\b(?:an?|another|second|other)\s+(?:[\w'-]+\s+){{0,3}}?{noun}\b|\b(?:two|three|several)\s", tail, re.IGNORECASE):
        tail = re.sub(rf"\b(?:the|this)\s+{noun}\b(?=['’]s|\W|$)", called, tail, flags=re.IGNORECASE)
    return head + tail


def _with_class_noun(text: str, trigger: str, noun: str) -> str:
    """The first trigger is followed by the class noun, once."""
    found = re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", text)
    if found is None or re.match(rf"\s+(?:[\w-]+\s+)?{re.escape(noun)}\b", text[found.end() :], re.IGNORECASE):
        return text
    return f"{text[: found.end()]} {noun}{text[found.end() :]}"


# ---- tags --------------------------------------------------------------------------


def dedupe_tags(caption: str) -> str:
    """The first of equal tags; case, underscores and blanks don't count."""
    kept: dict[str, str] = {}
    for tag in (" ".join(tag.split()) for tag in caption.split(",")):
        if tag:
            kept.setdefault(_tag_key(tag), tag)
    return ", ".join(kept.values())


def _tags(caption: str) -> set[str]:
    return {_tag_key(" ".join(tag.split())) for tag in caption.split(",") if tag.strip()}


def _tag_key(tag: str) -> str:
    return tag.replace("_", " ").casefold()


def frequencies(captions: Iterable[str]) -> tuple[str, dict[str, int]]:
    """('tags' or 'words', in how many captions each is), the most frequent first. Words where most captions are sentences."""
    texts = [caption for caption in captions if caption]
    as_tags = bool(texts) and sum(map(is_tag_list, texts)) * 2 > len(texts)
    counts: Counter[str] = Counter()
    for text in texts:
        if as_tags:
            counts.update(_tags(text))
        else:
            counts.update(content_words(text))
    return ("tags" if as_tags else "words"), dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def content_words(caption: str) -> set[str]:
    """Its words in small letters, without those that every sentence has."""
    return {word for word in re.findall(r"[^\W\d_][\w'’-]*", caption.lower().replace("_", " ")) if len(word) > 1 and word not in STOP_WORDS}


def words_beside_trigger(captions: Iterable[str], trigger: str, *, class_noun: str = "", share: float = 0.9) -> dict[str, int]:
    """Words that stand in nearly every caption that has the trigger: training can't tell them from it.

    The class noun and words for a person are meant to be there and are not counted.
    """
    texts = [without_trigger(caption, trigger) for caption in captions if has_trigger(caption, trigger)]
    # in a tag list 'red shirt' and 'blue shirt' are two things
    counts = Counter(word for text in texts for word in (_tags(text) if is_tag_list(text) else content_words(text)))
    expected = leak_words.PEOPLE | NEUTRAL_WORDS | set(class_noun.lower().split())
    return {word: n for word, n in counts.most_common() if n >= share * len(texts) and word not in expected}


# ---- preview ------------------------------------------------------------------------


MOST_COMPARED = 400  # words: the time grows with more than their square


def differences(before: str, after: str) -> tuple[tuple[str, str], ...]:
    """(taken out, put in) in the order of the caption, in whole words; of a very long caption those near its beginning."""
    old, new = before.split(), after.split()
    is_cut = max(len(old), len(new)) > MOST_COMPARED
    old, new = old[:MOST_COMPARED], new[:MOST_COMPARED]
    changes = [change for change in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if change[0] != "equal"]
    if is_cut and changes and (changes[-1][2] == len(old) or changes[-1][4] == len(new)):
        changes.pop()  # where the words were cut, not where they differ
    return tuple((" ".join(old[a:b]), " ".join(new[c:d])) for _, a, b, c, d in changes)
