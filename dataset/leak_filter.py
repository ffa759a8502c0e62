"""Takes descriptions of hair, eyes, skin and face out of a caption and leaves whole sentences.

Works by word lists and position alone: no language model, English only. Where a phrase can't be
taken out without breaking the sentence, its adjectives go and its noun stays. Knows nothing about triggers or files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from . import leak_words as w
from .leak_words import LeakList

_TOKEN = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*|\S")
_SENTENCE = re.compile(r".+?(?:[.!?]+[\"'”)]*(?=\s|$)|\n+|$)", re.DOTALL)
_STOPS = frozenset(",;:.!?()—–\"")
HAIR = frozenset({"hair", "beard", "mustache", "moustache", "eyebrows", "bangs"})  # what is styled
MAX_MODIFIERS = 6
MAX_LETTERS = 1000  # of a sentence; more are taken in bites
MAX_PASSES = 200  # more than a bite has words to remove


@dataclass(frozen=True, slots=True)
class _Phrase:
    """Tokens start..end describe a removed noun, which is at `head`."""

    start: int
    modifiers: int  # where the describing words begin, past "her", "a", "the woman's"
    head: int
    end: int  # exclusive, with what follows the noun and belongs to it

    @property
    def is_bare(self) -> bool:
        """'her hair': says nothing about it."""
        return self.end == self.head + 1 and self.modifiers == self.head


class LeakFilter:
    """`filter("a woman with long hair, smiling")` -> 'a woman, smiling'."""

    def __init__(self, leaks: LeakList):
        self._remove, self._keep = w.pattern(leaks.remove), w.pattern(leaks.keep)
        self._adjective = w.pattern(leaks.adjectives)

    def __call__(self, caption: str) -> str:
        if is_tag_list(caption):
            return ", ".join(tag for tag in map(self._tag, caption.split(",")) if tag)
        sentences = [part for sentence in _SENTENCE.findall(caption.strip()) for part in _bites(sentence)]
        kept = [(self._sentence(sentence), sentence) for sentence in sentences]
        return "".join(_spaced(new, old) for new, old in kept if new).strip()

    # ---- tags ------------------------------------------------------------

    def _tag(self, tag: str) -> str:
        tag = tag.strip()
        if not self._hits(tag) and not (self._adjective and self._adjective.search(tag.replace("_", " "))):
            return tag
        words = tag.replace("_", " ").lower().split()
        if self._hits(tag) and not set(words) & (w.PREPOSITIONS | w.HAVING):
            return ""
        if self._adjective and self._adjective.fullmatch(" ".join(words)):
            return ""
        return self._sentence(tag.replace("_", " "))

    # ---- sentences ---------------------------------------------------------

    def _sentence(self, sentence: str) -> str:
        """The sentence without leaks; '' when nothing is left that says anything."""
        text = sentence.strip()
        before = text
        text = self._without_adjectives(text)
        done: set[int] = set()  # heads that stay, by number from the end: what is cut lies before them or is one of them
        for _ in range(MAX_PASSES):
            tokens = list(_TOKEN.finditer(text))
            hits = self._hits(text)
            heads = [i for i, token in enumerate(tokens) if any(start <= token.start() and token.end() == end for start, end in hits)]
            waiting = [i for n, i in enumerate(heads) if len(heads) - n not in done]
            if not waiting:
                break
            words = [token.group().lower() for token in tokens]
            phrases = {self._phrase(words, head, tokens, hits) for head in heads}
            phrase = next(p for p in phrases if p.head == waiting[0])
            cut = _cut(words, phrase, {p.start for p in phrases if p.head != phrase.head})
            if cut is None:
                done.add(len(heads) - heads.index(waiting[0]))
                continue
            if cut.keeps_head:
                done.add(len(heads) - heads.index(waiting[0]))
            text = _without(text, tokens, cut)
        if text == before:
            return before
        return _tidied(text, before)

    def _hits(self, text: str) -> list[tuple[int, int]]:
        if self._remove is None:
            return []
        kept = [m.span() for m in self._keep.finditer(text)] if self._keep else []
        return [
            m.span() for m in self._remove.finditer(text.replace("_", " "))
            if not any(start < m.end() and m.start() < end for start, end in kept)
        ]

    def _phrase(self, words: list[str], head: int, tokens: list[re.Match], hits: list[tuple[int, int]]) -> _Phrase:
        start = head
        (first_char,) = [s for s, e in hits if s <= tokens[head].start() and tokens[head].end() == e][:1]
        while start and tokens[start - 1].start() >= first_char:  # an entry of several words
            start -= 1
        unknown = 0
        while start and head - start < MAX_MODIFIERS:
            word = words[start - 1]
            if word in (",", "and") and start > 1 and _describes(words[start - 2]) and _describes(words[start]):
                start -= 2
            elif _describes(word):
                start -= 1
            elif word in w.BOUNDARIES | _STOPS | w.PEOPLE or unknown == 2 or word.endswith(("s", "ing", "ed", "'s", "’s")):
                break
            else:
                unknown += 1
                start -= 1
        if unknown and not _bounded(words, start):
            while start < head and not _describes(words[start]):
                start += 1
        modifiers = start
        if start and words[start - 1].endswith(("'s", "’s")):
            start -= 1
        elif start > 1 and words[start - 1] == "own":
            start -= 1
        if start and words[start - 1] in w.DETERMINERS:
            start -= 1
        return _Phrase(start, modifiers, head, _end_of(words, head))

    # ---- adjectives ----------------------------------------------------------

    def _without_adjectives(self, text: str) -> str:
        if self._adjective is None or not self._adjective.search(text):
            return text
        tokens = list(_TOKEN.finditer(text))
        words = [token.group().lower() for token in tokens]
        gone: set[int] = set()
        replaced: dict[int, str] = {}
        for i, word in enumerate(words):
            if word in w.PEOPLE:
                j = i - 1
                while j >= 0 and i - j <= MAX_MODIFIERS and (words[j] in (",", "and") or words[j] not in w.BOUNDARIES | _STOPS):
                    if self._adjective.fullmatch(words[j]):
                        gone.add(j)
                        if words[j + 1] in (",", "and"):
                            gone.add(j + 1)
                        elif j and words[j - 1] in (",", "and") and j + 1 == i:
                            gone.add(j - 1)
                    j -= 1
            elif self._adjective.fullmatch(word) and i and words[i - 1] in ("a", "an", "the"):
                after = words[i + 1] if i + 1 < len(words) else "."
                if after in w.BOUNDARIES or after in _STOPS:
                    replaced[i] = "person"
        out, position = [], 0
        for i, token in enumerate(tokens):
            if i in gone or i in replaced:
                out.append(text[position : token.start()])
                out.append(replaced.get(i, ""))
                position = token.end()
        text = "".join(out) + text[position:]
        return _articles(_capital(re.sub(r"\s+([,.;:!?])", r"\1", re.sub(r"[ \t]{2,}", " ", text)).strip(), tokens[0].group()))


def _bites(sentence: str) -> list[str]:
    """The sentence; one that never ends in bites that end at a comma."""
    return [sentence] if len(sentence) <= MAX_LETTERS else re.findall(rf"(?s).{{1,{MAX_LETTERS}}}(?:,\s|$)|.{{1,{MAX_LETTERS}}}", sentence)


def is_tag_list(caption: str) -> bool:
    """'1girl, red dress, outdoors' and not a sentence: short pieces between commas."""
    pieces = [piece.split() for piece in caption.replace("_", " ").split(",") if piece.strip()]
    if len(pieces) < 2 or re.search(r"[.!?]\s|[.!?]$|\n", caption.strip()):
        return False
    lengths = [len(piece) for piece in pieces]
    verbs = w.COPULAS | w.HAS | w.PRONOUNS | {"wearing", "wears", "stands"}
    spoken = sum(1 for piece in pieces if len(piece) > 2 and verbs & {word.lower() for word in piece})
    return sum(lengths) / len(lengths) <= 3 and max(lengths) <= 8 and spoken == 0


@dataclass(frozen=True, slots=True)
class _Cut:
    start: int
    end: int
    instead: str = ""
    keeps_head: bool = False


def _describes(word: str) -> bool:
    return word in w.DESCRIPTORS or word.endswith(w.DESCRIPTOR_ENDINGS)


def _bounded(words: list[str], start: int) -> bool:
    """An unknown word belongs to the phrase when a phrase can begin right before it."""
    left = words[start - 1] if start else ""
    return start == 0 or left.endswith(("'s", "’s")) or left in w.DETERMINERS | w.HAVING | w.HAS | {"and", ",", "of"}


def _new_subject(words: list[str], i: int) -> bool:
    return i < len(words) and words[i] in w.DETERMINERS | {"she", "he", "they", "it", "there"}


def _end_of(words: list[str], head: int) -> int:
    """Past the words behind the noun that still describe it."""
    end, count = head + 1, len(words)
    while end < count:
        word = words[end]
        following = words[end + 1 : end + 6]
        if word.endswith("ly") and following and words[head] in HAIR and (following[0] in w.STYLING or _describes(following[0])):
            end += 1 if following[0] in w.STYLING else 2
            continue
        styled = (word in w.STYLING and words[head] in HAIR) or (word in ("that", "which") and following and not _new_subject(words, end + 1))
        placed = word in w.PREPOSITIONS | {"with"} and bool(w.STYLES & set(following[: next((k for k, f in enumerate(following) if f in _STOPS), 5)]))
        over = word in ("over", "down", "around", "past", "on", "behind") and following[:1] and following[0] in w.POSSESSIVES
        aside = word == "," and following and (following[0] in w.STYLING or _describes(following[0]) and following[1:2] == ["in"])
        if word in w.STYLING and word.endswith("s"):
            break  # a verb: the noun is a subject
        if not (styled or placed or over or aside):
            break
        end += 1
        while end < count and words[end] not in _STOPS and not (
            words[end] in w.VERBS or (words[end] in ("and", "while", "as") and not _describes(words[end + 1] if end + 1 < count else ""))
        ):
            end += 1
    return end


def _cut(words: list[str], phrase: _Phrase, other_starts: set[int]) -> _Cut | None:
    """What to take out for one phrase; None when it says nothing about the person."""
    start, end, count = phrase.start, phrase.end, len(words)
    left = words[start - 1] if start else ""
    right = words[end] if end < count else ""
    closes = right == "" or (right in _STOPS and right != ",")
    # where the next thing begins when a comma or "and" follows
    after = end
    while after < count and words[after] in (",", "and", "or"):
        after += 1
    is_item = end < after < count and _is_item(words, end, after, left, other_starts)

    if _is_verb(words, end) and (left == "" or left in _STOPS | w.CONJUNCTIONS):
        return _cut_clause(words, phrase)
    if left in w.HAVING:
        if phrase.is_bare and words[start] in w.POSSESSIVES and not closes and right not in (",", "and") and words[phrase.head] not in HAIR:
            return None  # "with her face turned away"
        if is_item:
            return _Cut(start, after)
        if start == 1:  # "With long hair, she ..."
            return _Cut(0, after)
        if start > 1 and words[start - 2] == "," == right and _goes_on(words, after):
            return _Cut(start - 2, after)
        return _Cut(start - 1, after if right == "and" and not _new_subject(words, after) else end)
    if left in w.HAS:
        return _cut_has(words, phrase, is_item, closes, after)
    if left in (",", "and", "or", ";", "(", ""):
        if closes or right in (",", "and", "or"):
            if start == 0 and after < count and (_goes_on(words, after) or words[after] in ("which", "that")):
                return None if phrase.is_bare else _Cut(phrase.modifiers, phrase.head, keeps_head=True)
            if start == 0:
                return _Cut(0, after)
            first = start - 1
            while first and words[first - 1] in (",", "and", "or"):
                first -= 1
            return _Cut(first, end)
    if phrase.is_bare:
        return None
    # its place in the sentence needs a noun: what describes it goes
    return _Cut(phrase.modifiers, phrase.head, keeps_head=True)


def _goes_on(words: list[str], i: int) -> bool:
    """After an aside between commas, does the clause's own verb follow?"""
    return i < len(words) and (words[i] in w.COPULAS | w.HAS or words[i] in w.VERBS and not words[i].endswith("ing")) or (
        i < len(words) and words[i].endswith("s") and words[i] not in w.BOUNDARIES and i + 1 < len(words) and words[i + 1] in w.DETERMINERS | w.PREPOSITIONS
    )


def _is_item(words: list[str], end: int, after: int, left: str, other_starts: set[int]) -> bool:
    """Does the list of things that somebody has go on after the comma or 'and'?"""
    word = words[after]
    if word in ("a", "an", "some", "two", "no"):
        return True
    if after in other_starts or word in w.DETERMINERS:
        return not _is_clause(words, after)
    if left not in w.HAVING | w.HAS:
        return False
    if _describes(word):
        return True
    # a noun alone: "a beard and glasses"
    noun = word[:1].isalpha() and word not in w.BOUNDARIES | w.VERBS and not word.endswith(("ing", "ed", "ly"))
    alone = after + 1 >= len(words) or words[after + 1] in _STOPS | {"and"}
    return noun and "and" in words[end:after] and (left in w.HAVING or alone)


def _is_verb(words: list[str], i: int) -> bool:
    if i >= len(words):
        return False
    word = words[i]
    if word.endswith("ly") and i + 1 < len(words):
        return _is_verb(words, i + 1)
    if word in _STOPS or word in w.CONJUNCTIONS | w.PREPOSITIONS | w.HAVING | {"wearing"}:
        return False
    return word in w.COPULAS | w.HAS or (word[:1].isalpha() and not word.endswith("ing"))


def _is_clause(words: list[str], start: int) -> bool:
    """Does a new clause begin here: 'her eyes are', 'she wears'?"""
    if words[start] in ("she", "he", "they", "it", "there"):
        return True
    for i in range(start + 1, min(start + 6, len(words))):
        if words[i] in _STOPS | w.CONJUNCTIONS | w.PREPOSITIONS | w.HAVING:
            return False
        if words[i] in w.COPULAS | w.HAS:
            return True
    return False


def _clause_end(words: list[str], start: int) -> tuple[int, int]:
    """Where a clause ends, and where the next begins."""
    for i in range(start, len(words)):
        if words[i] in ".;!?":
            return i, (i + 1 if words[i] == ";" else i)
        after = i
        while after < len(words) and words[after] in (",", "and", "but", "while"):
            after += 1
        if after > i and _new_subject(words, after) and _starts_clause(words, i, after):
            return i, after
    return len(words), len(words)


def _starts_clause(words: list[str], i: int, after: int) -> bool:
    return words[i:after] != [","] and (_is_clause(words, after) or words[i] == "while" or words[after - 1] == "while" or words[i] == ",")


def _cut_clause(words: list[str], phrase: _Phrase) -> _Cut | None:
    """The phrase is a subject: 'her hair is brown', 'her blue eyes look at the viewer'."""
    verb = phrase.end
    while verb < len(words) and words[verb].endswith("ly"):
        verb += 1
    predicate = verb + 1
    while predicate < len(words) and words[predicate] in ("very", "a", "an", "to", "be", "of", "both", "quite") or (
        predicate < len(words) and words[predicate].endswith("ly")
    ):
        predicate += 1
    said = words[predicate] if predicate < len(words) else ""
    is_hair = words[phrase.head] in HAIR
    styled = is_hair and (said in w.STYLING or (said == "in" and bool(w.STYLES & set(words[predicate : predicate + 5]))))
    describes = (is_hair and words[verb] in w.STYLING) or (words[verb] in w.COPULAS and (_describes(said) or styled))
    if not describes:
        if phrase.is_bare:
            return None
        return _Cut(phrase.modifiers, phrase.head, keeps_head=True)
    end, following = _clause_end(words, verb)
    if phrase.start == 0:
        return _Cut(0, following)
    first = phrase.start
    while first and words[first - 1] in (",", "and", "but", "while", "as", ";"):
        first -= 1
    return _Cut(first, end)


def _cut_has(words: list[str], phrase: _Phrase, is_item: bool, closes: bool, after: int) -> _Cut:
    """'she has long hair': with the verb, when nothing else is had."""
    verb, end, count = phrase.start - 1, phrase.end, len(words)
    if is_item:
        return _Cut(phrase.start, after)
    right = words[end] if end < count else ""
    if right == "with":
        return _Cut(phrase.start, end + 1)
    subject = verb
    while subject and words[subject - 1] not in _STOPS | {"and", "but", "while", "who", "which", "that"}:
        subject -= 1
    if verb and words[verb - 1] in ("who", "which", "that"):
        first = verb - 1
        if first and words[first - 1] == "," and right == ",":
            return _Cut(first - 1, end + 1)
        return _Cut(first - int(bool(first) and words[first - 1] == ","), end if right != "and" else after) if closes or right == "," else _Cut(verb, after)
    if verb and words[verb - 1] in ("and", ","):  # "stands there and has long hair"
        first = verb - 1
        while first and words[first - 1] in (",", "and"):
            first -= 1
        return _Cut(first, end)
    if not closes and after < count and after > end:
        if _new_subject(words, after) or words[after] == "while":
            return _Cut(subject, after)
        if words[after].endswith("ing") or words[after] in ("dressed", "seated"):
            return _Cut(verb, after, instead="is")
        return _Cut(verb, after)
    if verb - subject >= 4:  # "a woman standing in a garden has long hair": the rest is worth keeping
        return _Cut(verb, end)
    clause_end, following = _clause_end(words, end)
    first = subject
    if subject:
        while first and words[first - 1] in (",", "and", "but", "while"):
            first -= 1
        return _Cut(first, clause_end)
    return _Cut(0, following)


def _without(text: str, tokens: list[re.Match], cut: _Cut) -> str:
    left = text[: tokens[cut.start].start()]
    right = text[tokens[cut.end - 1].end() :] if cut.end > cut.start else text[tokens[cut.start].start() :]
    return f"{left}{cut.instead}{right}"


def _tidied(text: str, before: str) -> str:
    text = re.sub(r"\s{2,}", " ", text).strip()
    text = re.sub(r"\s+([,.;:!?)])", r"\1", text)
    text = re.sub(r"(?:,\s*)+([,.;:!?])", r"\1", text)
    text = re.sub(r"^(?:[,;:.]\s*|(?:and|but|while)\s+)+", "", text)
    text = re.sub(r"[,;:]?\s*(?:\b(?:and|with|but|while|having)\b)?\s*([.!?]?)$", r"\1", text)
    words = [word for word in _TOKEN.findall(text.lower()) if word not in _STOPS]
    if not words or all(word in w.PRONOUNS | w.DETERMINERS | w.COPULAS | {"and", "with"} for word in words):
        return ""
    return _articles(_capital(text, before))


def _capital(text: str, before: str) -> str:
    return text[:1].upper() + text[1:] if before[:1].isupper() else text


def _articles(text: str) -> str:
    """'an smiling woman' -> 'a smiling woman'; only where the next word's first letter decides."""

    def fixed(match: re.Match) -> str:
        article, gap, word = match.groups()
        vowel = word[0].lower() in "aeiou" and not word.lower().startswith(("uni", "use", "euro", "one", "u-"))
        vowel = vowel or word.lower().startswith(("hour", "honest", "heir"))
        new = "an" if vowel else "a"
        return (new.capitalize() if article[0].isupper() else new) + gap + word

    return re.sub(r"\b([Aa]n?)(\s+)([A-Za-z][\w-]*)", fixed, text)


def _spaced(new: str, old: str) -> str:
    gap = re.search(r"\s*$", old).group() or " "
    lead = re.match(r"\s*", old).group()
    return (lead or "") + new + ("" if gap == " " else gap)
