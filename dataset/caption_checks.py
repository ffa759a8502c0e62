"""What the captions of a set will teach, before it is trained: findings from their words alone.

Owns the limits on words and how framing is read from them. Knows nothing about pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from statistics import median

from .caption_rules import words_beside_trigger
from .captions import has_trigger
from .findings import GOOD, NOTE, STOP, WARNING, Finding
from .folder import name_list, plural

SHORT_WORDS, LONG_WORDS = 3, 120
FEW_FOR_WORDS = 5  # captions: fewer have words in common by chance
CLOSE_UP, BUST, FULL_BODY = "close-up", "half body", "full body"

# The first that fits counts, so the longer phrases come first. JoyCaption's shot sizes are among them.
FRAMINGS = (
    (BUST, r"medium close[- ]?up|medium[- ]full shot|cowboy shot|head and shoulders|half[- ]body|half[- ]length|upper body|waist[- ]up|bust shot|medium shot|chest[- ]up"),
    (FULL_BODY, r"full[- ]body|full[- ]length|full shot|medium wide shot|wide shot|long shot|head to toe|entire body|whole body"),
    (CLOSE_UP, r"close[- ]?up|head ?shot|face focus|macro shot"),
    (BUST, r"portrait|bust"),
)
_FRAMINGS = tuple((name, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)) for name, words in FRAMINGS)

Captions = dict[str, str | None]  # relative path -> caption


def framing(caption: str) -> str | None:
    """close-up, half body or full body, where the caption says so."""
    return next((name for name, pattern in _FRAMINGS if pattern.search(caption)), None)


def caption_findings(captions: Captions, trigger: str, *, class_noun: str = "", framings: dict[str, str] | None = None) -> tuple[Finding, ...]:
    """`framings`: of the pictures whose framing is known from what was found in them, whatever their captions say."""
    texts = {name: text for name, text in captions.items() if text}
    return (
        _missing(captions, texts, trigger), _lengths(texts), _same(texts), _trigger(texts, trigger), _beside(texts, trigger, class_noun),
        _framing(texts, framings or {}),
    )


def _missing(captions: Captions, texts: dict[str, str], trigger: str) -> Finding:
    missing = tuple(name for name in captions if name not in texts)
    if not missing:
        return Finding(code="captions", topic="Captions", severity=GOOD, words=f"All {plural(len(captions), 'picture')} have a caption.")
    return Finding(
        code="no_caption", topic="Captions", severity=STOP, pictures=missing, words=f"{plural(len(missing), 'picture')} {_have(missing)} no caption: {name_list(list(missing))}.",
        advice="Caption them with Caption Dataset, or write a .txt file of the same name beside each."
        + (" Encode Dataset can also train them on the trigger word alone." if trigger else ""),
    )


def _lengths(texts: dict[str, str]) -> Finding:
    counts = {name: len(text.split()) for name, text in texts.items()}
    short = tuple(name for name, count in counts.items() if count < SHORT_WORDS)
    long = tuple(name for name, count in counts.items() if count > LONG_WORDS)
    topic = "Caption lengths"
    if short and len(short) * 3 > len(texts):
        return Finding(
            code="short_captions", topic=topic, severity=WARNING, pictures=short, words=f"{plural(len(short), 'caption')} {_have(short, 'has', 'have')} fewer than {SHORT_WORDS} words.",
            advice="What a caption does not name, clothes and background too, is learned as part of the character. Describe what changes from picture to picture.",
        )
    if long and len(long) * 3 > len(texts):
        return Finding(
            code="long_captions", topic=topic, severity=WARNING, pictures=long, words=f"{plural(len(long), 'caption')} {_have(long, 'has', 'have')} more than {LONG_WORDS} words.",
            advice="SD1.5 and SDXL read 75 tokens, about 55 words, at a time, and the trigger word counts for less in a long text. Choose a shorter caption length.",
        )
    if not counts:
        return Finding(code="caption_lengths", topic=topic, severity=NOTE, words="There is no caption to measure.", advice="Caption the pictures first.")
    outliers = short + long
    least, most = min(counts.values()), max(counts.values())
    words = f"{least} to {most} words, half of them up to {round(median(counts.values()))}." if most > least else f"{least} words each."
    if outliers:
        return Finding(code="odd_lengths", topic=topic, severity=NOTE, pictures=outliers, words=f"{words} Very short or very long: {name_list(list(outliers))}.", advice="Look whether these say what the others say.")
    return Finding(code="caption_lengths", topic=topic, severity=GOOD, words=words)


def _same(texts: dict[str, str]) -> Finding:
    counts = Counter(texts.values())
    repeated = tuple(name for name, text in texts.items() if counts[text] > 1)
    if len(repeated) * 2 > len(texts) and len(texts) > 1:
        return Finding(
            code="same_captions", topic="Different captions", severity=WARNING, pictures=repeated,
            words=f"{len(repeated)} of {plural(len(texts), 'caption')} say the same as another one.",
            advice="Captions that don't tell the pictures apart teach clothes and background as part of the character. Caption them anew.",
        )
    return Finding(code="different_captions", topic="Different captions", severity=GOOD, words="The captions tell the pictures apart.")


def _trigger(texts: dict[str, str], trigger: str) -> Finding:
    topic = "Trigger word"
    if not trigger:
        return Finding(
            code="no_trigger", topic=topic, severity=WARNING, words="There is no trigger word.",
            advice="Without one, the character shows in every picture of a person. Write a rare word such as 'ohwx' on Caption Rules, Caption Dataset or Encode Dataset.",
        )
    without = tuple(name for name, text in texts.items() if not has_trigger(text, trigger))
    if without:
        return Finding(
            code="without_trigger", topic=topic, severity=NOTE, pictures=without,
            words=f"{len(without)} of {plural(len(texts), 'caption')} {_have(without, 'lacks', 'lack')} '{trigger}': {name_list(list(without))}.",
            advice="Encode Dataset puts it before them. Other trainers don't: write it with Caption Rules.",
        )
    return Finding(code="trigger", topic=topic, severity=GOOD, words=f"'{trigger}' is in every caption.")


def _beside(texts: dict[str, str], trigger: str, class_noun: str) -> Finding:
    topic = "Words beside the trigger"
    # with the trigger in front of all, as encoding does
    words = words_beside_trigger([f"{trigger}, {text}" for text in texts.values()], trigger, class_noun=class_noun) if trigger else {}
    if words and len(texts) >= FEW_FOR_WORDS:
        shown = ", ".join(f"'{word}'" for word in list(words)[:6]) + (f" and {len(words) - 6} more" if len(words) > 6 else "")
        everywhere = all(count == len(texts) for count in words.values())
        verb = "stands" if len(words) == 1 else "stand"
        return Finding(
            code="same_words", topic=topic, severity=WARNING, words=f"{shown} {verb} in {'every' if everywhere else 'nearly every'} caption.",
            advice="Training can't tell such a word from the trigger: part of the character is learned under it, and it shows up without the trigger. "
            "Take it out with Caption Rules, or add pictures without what it names.",
        )
    if not trigger or len(texts) < FEW_FOR_WORDS:
        return Finding(code="words_unknown", topic=topic, severity=NOTE, words="Not checked: this needs a trigger word and five captions.", advice="Check again when there are.")
    return Finding(code="words", topic=topic, severity=GOOD, words="No word stands in nearly every caption beside it.")


def _framing(texts: dict[str, str], detected: dict[str, str]) -> Finding:
    topic = "Framing"
    found = {name: framing(text) for name, text in texts.items()} | detected
    counts = Counter(kind for kind in found.values() if kind)
    known, by_caption = sum(counts.values()), sum(1 for name, kind in found.items() if kind and name not in detected)
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in (CLOSE_UP, BUST, FULL_BODY) if counts[kind])
    if known * 2 < len(found) or not known:
        return Finding(
            code="framing_unknown", topic=topic, severity=NOTE,
            words=f"Only {by_caption} of {plural(len(texts), 'caption')} {'says' if by_caption == 1 else 'say'} how the picture is framed{f' ({mix})' if mix else ''}, "
            + (f"and {plural(len(detected), 'picture')} {'tells' if len(detected) == 1 else 'tell'} it by what was found in {'it' if len(detected) == 1 else 'them'}." if detected else "and nothing else here can tell."),
            advice="JoyCaption names it with the option shot_size; Crop Subjects finds faces, which tell it too. About half close-ups and half larger framings is a good mix.",
        )
    told = "By their captions" if not detected else "By the faces and figures found in them" if not by_caption else (
        f"By the faces and figures found in {len(detected)} and the captions of {by_caption}"
    )
    kind, most = counts.most_common(1)[0]
    if most > 0.85 * known and known >= FEW_FOR_WORDS:
        others = " and ".join(other for other in (CLOSE_UP, BUST, FULL_BODY) if other != kind)
        return Finding(
            code="one_framing", topic=topic, severity=WARNING, pictures=tuple(name for name, value in found.items() if value == kind),
            words=f"{told}, {most} of {known} pictures are {kind}.", advice=f"The LoRA will be weak at {others}. Add some of those.",
        )
    return Finding(code="framing", topic=topic, severity=GOOD, words=f"{told}: {mix}{f', {len(found) - known} unknown' if known < len(found) else ''}.")


def _have(names: tuple[str, ...], one: str = "has", more: str = "have") -> str:
    return one if len(names) == 1 else more
