"""What the captions of a set will teach, before it is trained: findings from their words alone.

Owns the limits on words and how framing is read from them. Knows nothing about pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from statistics import median

from ..training.messages import Listed, Message, counted, message
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
    topic = message("topic.captions", "Captions")
    if not missing:
        return Finding(code="captions", topic=topic, severity=GOOD, words=f"All {plural(len(captions), 'picture')} have a caption.")
    words = counted(
        "check.no_caption", len(missing), "{count} picture has no caption: {names}.", "{count} pictures have no caption: {names}.", names=name_list(list(missing)),
    )
    advice = message(
        "check.no_caption.advice_trigger",
        "Caption them with Caption Dataset, or write a .txt file of the same name beside each. "
        "Encode Dataset can also train them on the trigger word alone.",
    ) if trigger else message(
        "check.no_caption.advice", "Caption them with Caption Dataset, or write a .txt file of the same name beside each.",
    )
    return Finding(code="no_caption", topic=topic, severity=STOP, pictures=missing, words=words, advice=advice)


def _lengths(texts: dict[str, str]) -> Finding:
    counts = {name: len(text.split()) for name, text in texts.items()}
    short = tuple(name for name, count in counts.items() if count < SHORT_WORDS)
    long = tuple(name for name, count in counts.items() if count > LONG_WORDS)
    topic = message("topic.lengths", "Caption lengths")
    if short and len(short) * 3 > len(texts):
        return Finding(
            code="short_captions", topic=topic, severity=WARNING, pictures=short,
            words=counted(
                "check.short_captions", len(short), "{count} caption has fewer than {words} words.", "{count} captions have fewer than {words} words.", words=SHORT_WORDS,
            ),
            advice=message(
                "check.short_captions.advice",
                "What a caption does not name, clothes and background too, is learned as part of the character. Describe what changes from picture to picture.",
            ),
        )
    if long and len(long) * 3 > len(texts):
        return Finding(
            code="long_captions", topic=topic, severity=WARNING, pictures=long,
            words=counted(
                "check.long_captions", len(long), "{count} caption has more than {words} words.", "{count} captions have more than {words} words.", words=LONG_WORDS,
            ),
            advice=message(
                "check.long_captions.advice",
                "SD1.5 and SDXL read 75 tokens, about 55 words, at a time, and the trigger word counts for less in a long text. Choose a shorter caption length.",
            ),
        )
    if not counts:
        words, advice = message("check.no_lengths", "There is no caption to measure."), message("check.no_lengths.advice", "Caption the pictures first.")
        return Finding(code="caption_lengths", topic=topic, severity=NOTE, words=words, advice=advice)
    outliers = short + long
    least, most = min(counts.values()), max(counts.values())
    if not outliers:
        words = f"{least} to {most} words, half of them up to {round(median(counts.values()))}." if most > least else f"{least} words each."
        return Finding(code="caption_lengths", topic=topic, severity=GOOD, words=words)
    names = name_list(list(outliers))
    return Finding(
        code="odd_lengths", topic=topic, severity=NOTE, pictures=outliers,
        words=message(
            "check.odd_lengths", "{least} to {most} words, half of them up to {median}. Very short or very long: {names}.",
            least=least, most=most, median=round(median(counts.values())), names=names,
        ) if most > least else message("check.odd_lengths_alike", "{least} words each. Very short or very long: {names}.", least=least, names=names),
        advice=message("check.odd_lengths.advice", "Look whether these say what the others say."),
    )


def _same(texts: dict[str, str]) -> Finding:
    counts = Counter(texts.values())
    repeated = tuple(name for name, text in texts.items() if counts[text] > 1)
    topic = message("topic.different", "Different captions")
    if len(repeated) * 2 > len(texts) and len(texts) > 1:
        return Finding(
            code="same_captions", topic=topic, severity=WARNING, pictures=repeated,
            words=message("check.same_captions", "{repeated} of {count} captions say the same as another one.", repeated=len(repeated), count=len(texts)),
            advice=message(
                "check.same_captions.advice",
                "Captions that don't tell the pictures apart teach clothes and background as part of the character. Caption them anew.",
            ),
        )
    return Finding(code="different_captions", topic=topic, severity=GOOD, words="The captions tell the pictures apart.")


def _trigger(texts: dict[str, str], trigger: str) -> Finding:
    topic = message("topic.trigger", "Trigger word")
    if not trigger:
        return Finding(
            code="no_trigger", topic=topic, severity=WARNING, words=message("check.no_trigger", "There is no trigger word."),
            advice=message(
                "check.no_trigger.advice",
                "Without one, the character shows in every picture of a person. Write a rare word such as 'ohwx' on Caption Rules, Caption Dataset or Encode Dataset.",
            ),
        )
    without = tuple(name for name, text in texts.items() if not has_trigger(text, trigger))
    if without:
        return Finding(
            code="without_trigger", topic=topic, severity=NOTE, pictures=without,
            words=counted(
                "check.without_trigger", len(without), "{count} of {captions} lacks '{trigger}': {names}.", "{count} of {captions} lack '{trigger}': {names}.",
                captions=_captions(len(texts)), trigger=trigger, names=name_list(list(without)),
            ),
            advice=message("check.without_trigger.advice", "Encode Dataset puts it before them. Other trainers don't: write it with Caption Rules."),
        )
    return Finding(code="trigger", topic=topic, severity=GOOD, words=f"'{trigger}' is in every caption.")


def _beside(texts: dict[str, str], trigger: str, class_noun: str) -> Finding:
    topic = message("topic.words", "Words beside the trigger")
    # with the trigger in front of all, as encoding does
    words = words_beside_trigger([f"{trigger}, {text}" for text in texts.values()], trigger, class_noun=class_noun) if trigger else {}
    if words and len(texts) >= FEW_FOR_WORDS:
        shown = ", ".join(f"'{word}'" for word in list(words)[:6])
        if len(words) > 6:
            shown = message("names.more", "{names} and {count} more", names=shown, count=len(words) - 6)
        everywhere = all(count == len(texts) for count in words.values())
        return Finding(
            code="same_words", topic=topic, severity=WARNING,
            words=counted(
                "check.same_words", len(words), "{names} stands in every caption.", "{names} stand in every caption.", names=shown,
            ) if everywhere else counted(
                "check.same_words_nearly", len(words), "{names} stands in nearly every caption.", "{names} stand in nearly every caption.", names=shown,
            ),
            advice=message(
                "check.same_words.advice",
                "Training can't tell such a word from the trigger: part of the character is learned under it, and it shows up without the trigger. "
                "Take it out with Caption Rules, or add pictures without what it names.",
            ),
        )
    if not trigger or len(texts) < FEW_FOR_WORDS:
        return Finding(
            code="words_unknown", topic=topic, severity=NOTE,
            words=message("check.words_unknown", "Not checked: this needs a trigger word and five captions."),
            advice=message("check.words_unknown.advice", "Check again when there are."),
        )
    return Finding(code="words", topic=topic, severity=GOOD, words="No word stands in nearly every caption beside it.")


def _framing(texts: dict[str, str], detected: dict[str, str]) -> Finding:
    topic = message("topic.framing", "Framing")
    found = {name: framing(text) for name, text in texts.items()} | detected
    counts = Counter(kind for kind in found.values() if kind)
    known, by_caption = sum(counts.values()), sum(1 for name, kind in found.items() if kind and name not in detected)
    mix = ", ".join(f"{counts[kind]} {kind}" for kind in (CLOSE_UP, BUST, FULL_BODY) if counts[kind])
    if known * 2 < len(found) or not known:
        return Finding(
            code="framing_unknown", topic=topic, severity=NOTE, words=_unknown_framing(by_caption, len(texts), counts, len(detected)),
            advice=message(
                "check.framing_unknown.advice",
                "JoyCaption names it with the option shot_size; Crop Subjects finds faces, which tell it too. About half close-ups and half larger framings is a good mix.",
            ),
        )
    told = message("framing.by_captions", "By their captions") if not detected else (
        message("framing.by_figures", "By the faces and figures found in them") if not by_caption else message(
            "framing.by_both", "By the faces and figures found in {detected} and the captions of {captions}", detected=len(detected), captions=by_caption,
        )
    )
    kind, most = counts.most_common(1)[0]
    if most > 0.85 * known and known >= FEW_FOR_WORDS:
        others = Listed([_framing_name(other) for other in (CLOSE_UP, BUST, FULL_BODY) if other != kind])
        return Finding(
            code="one_framing", topic=topic, severity=WARNING, pictures=tuple(name for name, value in found.items() if value == kind),
            words=message(
                "check.one_framing", "{told}, {most} of {count} pictures are {kind}.", told=told, most=most, count=known, kind=_framing_name(kind),
            ),
            advice=message("check.one_framing.advice", "The LoRA will be weak at {others}. Add some of those.", others=others),
        )
    return Finding(code="framing", topic=topic, severity=GOOD, words=f"{told}: {mix}{f', {len(found) - known} unknown' if known < len(found) else ''}.")


def _unknown_framing(by_caption: int, num_captions: int, counts: Counter, num_detected: int) -> Message:
    captions = _captions(num_captions)
    if counts:
        mix = Listed([
            message("framing.count", "{count} {kind}", count=counts[kind], kind=_framing_name(kind)) for kind in (CLOSE_UP, BUST, FULL_BODY) if counts[kind]
        ], last=", ")
        told = counted(
            "framing.told_mix", by_caption, "Only {count} of {captions} says how the picture is framed ({mix})",
            "Only {count} of {captions} say how the picture is framed ({mix})", captions=captions, mix=mix,
        )
    else:
        told = counted(
            "framing.told", by_caption, "Only {count} of {captions} says how the picture is framed",
            "Only {count} of {captions} say how the picture is framed", captions=captions,
        )
    rest = counted(
        "framing.found", num_detected, "and {count} picture tells it by what was found in it", "and {count} pictures tell it by what was found in them",
    ) if num_detected else message("framing.none_found", "and nothing else here can tell")
    return message("check.framing_unknown", "{told}, {rest}.", told=told, rest=rest)


def _framing_name(kind: str) -> Message:
    return {
        CLOSE_UP: message("framing.close_up", "close-up"), BUST: message("framing.half_body", "half body"), FULL_BODY: message("framing.full_body", "full body"),
    }[kind]


def _captions(count: int) -> Message:
    return counted("captions", count, "{count} caption", "{count} captions")
