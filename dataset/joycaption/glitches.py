"""What can be wrong with a generated caption, found in its text alone.

JoyCaption is known to fail on 1.5 to 3 % of pictures. Some failures leave no caption at all (a loop, a refusal, an
answer that was cut off), others one that a person should look at (a meta phrase, a watermark, a sentence without an end).
Knows nothing about models, files or who tries again.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .prompts import NO_META_OPTION, PROSE_TYPES, TAG_TYPES, WATERMARK_OPTIONS, CaptionRequest

LOOP_REPEATS = 5  # the same words this often in a row are a stuck model
SENTENCE_REPEATS = 3
TAG_REPEATS, TAG_REPEATED_SHARE = 5, 0.3  # of a tag list: so many tags said again, and such a part of it

_PICTURE = r"(?:image|picture|photo|photograph|painting|drawing|illustration|artwork|render|screenshot)"
_META = re.compile(
    rf"^(?:(?:this|the|in this|in the)\s+(?:\w+\s+){{0,3}}?{_PICTURE}\b\s*,?\s*(?:is|are|was|shows?|depicts?|features?|captures?|portrays?|presents?|displays?|contains?|there|we|i|you|a|an|the)\b"
    rf"|this is (?:an?|the)\s+(?:[\w-]+\s+){{0,4}}?{_PICTURE}\b"
    r"|(?:sure|certainly|of course|okay|ok)\s*[,!.:]|here(?:'s| is| are)\b[^.]{0,40}\b(?:caption|description|prompt|tags)"
    r"|(?:caption|description|tags|prompt|straightforward caption)\s*:)",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"^(?:(?:i'?m|i am)\s+(?:really\s+|very\s+|so\s+)?(?:sorry|unable|not able)|sorry\b|i\s+(?:can'?t|cannot|can not|won'?t|will not|am not)\b|i\s+don'?t\s+(?:see|have|feel)\b|"
    r"as an? (?:ai|language|assistant)\b|unfortunately,? i\b|i apologi[sz]e)",
    re.IGNORECASE,
)
_WATERMARK = re.compile(r"\b(?:watermark(?:s|ed)?|signature|signed|copyright|logo of the (?:artist|photographer)|artist'?s name|photographer'?s name)\b", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:no|without|not|free of|absence of|lack of|lacks|isn'?t|aren'?t)\b[^.;,]{0,40}$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]*_]*$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Glitch:
    reason: str
    usable: bool  # False: nothing of the answer is a caption


def one_line(text: str) -> str:
    """Paragraphs joined and control characters taken out: the text is the same when it is read back."""
    return " ".join("".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc").split())


def find_glitch(text: str, request: CaptionRequest, *, num_tokens: int, finished: bool) -> Glitch | None:
    """The worst thing wrong with an answer; None if it is a good caption."""
    line = one_line(text).replace("’", "'")
    unusable = (
        "the answer was empty" if not line
        else f"the answer did not end within {num_tokens} token{'' if num_tokens == 1 else 's'}; raise max_new_tokens or ask for a shorter length" if not finished
        else _loop(line, request) or _refusal(line)
    )
    if unusable:
        return Glitch(reason=unusable, usable=False)
    marked = _watermark(line, request) or (meta_phrase(line) if asks_for_no_meta(request) else None) or _cut_sentence(line, request)
    return Glitch(reason=marked, usable=True) if marked else None


def asks_for_no_meta(request: CaptionRequest) -> bool:
    if request.custom_prompt.strip():
        return False
    return request.caption_type == "Straightforward" or NO_META_OPTION in request.options


def meta_phrase(text: str) -> str | None:
    """'This image shows ...': true of every caption, so nothing is learnt from it."""
    found = _META.match(one_line(text).replace("’", "'"))
    return f"it begins with the meta phrase '{found.group().strip()}'" if found else None


def _refusal(line: str) -> str | None:
    found = _REFUSAL.match(line)
    return f"the answer is a refusal ('{line[:60]}')" if found else None


def _watermark(line: str, request: CaptionRequest) -> str | None:
    if not request.custom_prompt.strip() and WATERMARK_OPTIONS & set(request.options):
        return None  # asked for
    if "watermark" in request.custom_prompt.lower():
        return None
    for found in _WATERMARK.finditer(line):
        if not _DENIED.search(line[: found.start()]):
            return f"it mentions '{found.group().lower()}', which the model invents now and then: look whether there is one"
    return None


def _cut_sentence(line: str, request: CaptionRequest) -> str | None:
    if request.custom_prompt.strip() or request.caption_type not in PROSE_TYPES or _SENTENCE_END.search(line):
        return None
    return f"its last sentence has no end ('...{line[-30:]}')"


def _loop(line: str, request: CaptionRequest) -> str | None:
    words = re.findall(r"\w+", line.lower())
    for width in range(1, 9):
        run = 0  # how many words in a row equal the one `width` before
        for i in range(width, len(words)):
            run = run + 1 if words[i] == words[i - width] else 0
            if run == width * (LOOP_REPEATS - 1):
                return f"the answer repeats '{' '.join(words[i - width + 1 : i + 1])}'"
    if request.caption_type in TAG_TYPES and not request.custom_prompt.strip():
        tags = [tag.strip().lower() for tag in line.split(",") if tag.strip()]
        again = len(tags) - len(set(tags))
        if again >= TAG_REPEATS and again > TAG_REPEATED_SHARE * len(tags):
            return f"{again} of its {len(tags)} tags are said more than once"
        return None
    sentences = [s.strip().lower() for s in re.split(r"(?<=[.!?])\s+", line) if len(s.split()) > 3]
    worst = max(set(sentences), key=lambda s: (sentences.count(s), s), default="")
    if worst and sentences.count(worst) >= SENTENCE_REPEATS:
        return f"the answer says '{worst[:60]}' {sentences.count(worst)} times"
    return None
