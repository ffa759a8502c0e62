"""Prompts in the mix of a set: framing, angle, expression, background and light as often as the captions name them.

Owns the tables by which a caption's words are read and how a mix becomes prompts. Knows nothing about pixels or about
what the prompts are for.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..training.errors import PistachioError
from .caption_checks import BUST, CLOSE_UP, FULL_BODY, framing
from .captions import with_trigger, without_trigger
from .character_sheet import ANGLES, BACKGROUNDS, EXPRESSIONS, LIGHTS

MAX_PROMPTS = 64
FRAMING_WORDS = {CLOSE_UP: "close-up", BUST: "upper body shot", FULL_BODY: "full body shot"}

# Topic -> (what the prompt says, what captions say). The first that fits counts, so the closer description comes first.
TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "angle": (
        ("looking over the shoulder", r"over (?:the|his|her|their) shoulder"),
        ("three-quarter view to the left", r"three[- ]quarters? view to the left|turned (?:slightly )?to the left"),
        ("three-quarter view to the right", r"three[- ]quarters? view to the right|turned (?:slightly )?to the right"),
        ("profile to the left", r"profile to the left|left profile"),
        ("profile to the right", r"profile to the right|right profile"),
        ("three-quarter view", r"three[- ]quarters?(?: view| angle)?"),
        ("in profile", r"(?:in|side) profile|profile view|side view|from the side"),
        ("seen from behind", r"(?:seen )?from behind|back view|rear view"),
        ("seen from above", r"(?:seen )?from (?:slightly )?above|high[- ]angle|bird'?s[- ]eye|overhead"),
        ("seen from below", r"(?:seen )?from (?:slightly )?below|low[- ]angle|worm'?s[- ]eye"),
        ("facing the camera", r"facing the (?:camera|viewer)|looking (?:directly |straight )?(?:at|into) the (?:camera|viewer|lens)|looking at viewer|front view|eye[- ]level"),
    ),
    "expression": (
        ("an open laugh", r"open laugh|laugh\w*"),
        ("a broad smile", r"(?:broad|wide|big|bright|toothy) (?:smile|grin)|grin\w*"),
        ("a gentle smile", r"smil\w+"),
        ("a surprised look", r"surpris\w+|astonish\w+"),
        ("a slight frown", r"frown\w*|angry|anger"),
        ("a thoughtful look", r"thoughtful\w*|pensive\w*|contemplative"),
        ("a serious look", r"serious\w*|stern|solemn"),
        ("a sad look", r"sad\b|sorrow\w*|tear(?:s|ful)\b|crying"),
        ("a neutral expression", r"neutral (?:facial )?expression|(?:calm|relaxed|blank) expression|expressionless"),
    ),
    "background": (
        ("against a plain light grey wall", r"plain light gr[ae]y wall"),
        ("against a plain background", r"(?:plain|simple|blank|solid|white|gr[ae]y|gradient|neutral|dark|black)[\w -]{0,20} (?:background|backdrop|wall)|studio (?:background|backdrop)"),
        ("in a park with trees", r"park|garden|meadow|lawn"),
        ("in a forest", r"forest|woods|woodland"),
        ("on a beach", r"beach|seaside|shore\w*|by the sea"),
        ("on a mountain path", r"mountain\w*|hill(?:s|side)?|cliff\w*"),
        ("in a city street", r"street|city|urban|sidewalk|pavement|alley|downtown"),
        ("in a cafe", r"caf[eé]|coffee shop|restaurant|bar\b|diner"),
        ("in a library", r"library|bookshel\w+|bookstore"),
        ("in a kitchen", r"kitchen"),
        ("in a bedroom", r"bedroom|on (?:a|the) bed"),
        ("in a living room", r"living room|sofa|couch|armchair"),
        ("in an office", r"office|at (?:a|the) desk"),
        ("in a car", r"in (?:a|the) car|car interior"),
        ("in the snow", r"snow\w*"),
        ("in a field", r"fields?"),
        ("on a stage", r"stage|concert"),
        ("indoors", r"indoors?|interior|room"),
        ("outdoors", r"outdoors?|outside"),
    ),
    "light": (
        ("light from behind with a bright rim", r"light from behind|back[- ]?lit|back[- ]?light\w*|rim light\w*|silhouett\w+"),
        ("warm low sunlight", r"low sunlight|golden[- ]hour|sunset|sunrise|(?:warm|golden) (?:sun)?light"),
        ("dim evening light", r"dim[\w -]{0,12} light\w*|dimly lit|low[- ]light|evening light|candle\w*|twilight|dusk"),
        ("night lights", r"night\w*|neon"),
        ("hard light from the side", r"hard light|harsh (?:sun)?light\w*|dramatic light\w*|side[- ]?lit|side light\w*|chiaroscuro|strong shadows"),
        ("cool overcast light", r"overcast|cloudy|cool light\w*|grey sky|gray sky"),
        ("studio light", r"studio light\w*|softbox|flash\b"),
        ("soft even light", r"(?:soft|even|diffused?)[\w, -]{0,14} light\w*|softly lit|evenly lit"),
        ("bright sunlight", r"sunlight|sunlit|sunny|bright (?:day)?light\w*|daylight|natural light\w*"),
    ),
}
TOPICS = ("framing", *TABLES)
_PATTERNS = {topic: tuple((words, re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)) for words, pattern in table) for topic, table in TABLES.items()}
# A sheet's own phrases, told as they are.
_LITERAL = {
    "angle": tuple(phrase.caption for phrase in ANGLES), "expression": EXPRESSIONS, "background": BACKGROUNDS, "light": LIGHTS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """How often the captions of a set say what, by topic; what isn't said counts under None."""

    captions: int
    counts: dict[str, dict[str | None, int]]

    @property
    def words(self) -> tuple[str, ...]:
        """A sentence a topic, the most frequent first."""
        return tuple(f"{topic.capitalize()}: {_shares(self.counts[topic])}." for topic in TOPICS)


def read_mix(captions: Iterable[str | None], trigger: str = "") -> Mix:
    """PistachioError when there is no caption to read."""
    texts = [without_trigger(caption, trigger) for caption in captions if caption and caption.strip()]
    if not texts:
        raise PistachioError("No picture of the set has a caption to read the mix from. Caption them first, with Caption Dataset.")
    counts = {topic: dict(Counter(read_topic(topic, text) for text in texts).most_common()) for topic in TOPICS}
    return Mix(captions=len(texts), counts=counts)


def read_topic(topic: str, caption: str) -> str | None:
    """What a caption says of a topic, in the words of a prompt."""
    if topic == "framing":
        kind = framing(caption)
        return FRAMING_WORDS[kind] if kind else None
    lower = caption.lower()
    for literal in _LITERAL[topic]:
        if literal in lower:
            return literal
    return next((words for words, pattern in _PATTERNS[topic] if pattern.search(caption)), None)


def build_prompts(mix: Mix, count: int, *, trigger: str, class_noun: str = "", topics: tuple[str, ...] = TOPICS, seed: int = 0) -> tuple[str, ...]:
    """`count` prompts in which each phrase is as frequent as in the captions; combined anew, so that few repeat a caption."""
    if not 1 <= count <= MAX_PROMPTS:
        raise PistachioError(f"{count} prompts can't be built. Ask for 1 to {MAX_PROMPTS} on Build Prompts.")
    trigger, noun = trigger.strip(), class_noun.strip()
    if not trigger:
        raise PistachioError("There is no trigger word, and without one the prompts would not ask for the character. Write it on Build Prompts.")
    columns = [_column(mix.counts[topic], count, f"{seed}|{topic}") for topic in topics]
    prompts = []
    for row in zip(*columns) if columns else [()] * count:
        said = ", ".join(part for part in (noun, *row) if part)
        prompts.append(f"{trigger} {said}" if noun else with_trigger(said, trigger))
    return tuple(prompts)


def _column(counts: dict[str | None, int], count: int, seed: str) -> list[str | None]:
    """The phrases of one topic, a prompt each: shares by largest remainder, in an order that the seed gives."""
    total = sum(counts.values())
    exact = {words: count * number / total for words, number in counts.items()}
    quota = {words: math.floor(share) for words, share in exact.items()}
    by_remainder = sorted(exact, key=lambda words: (quota[words] - exact[words], _digest(seed, words)))
    for words in by_remainder[: count - sum(quota.values())]:
        quota[words] += 1
    column = [words for words, number in quota.items() for _ in range(number)]
    order = sorted(range(count), key=lambda index: _digest(seed, "place", index))
    return [column[index] for index in order]


def _digest(*parts) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _shares(counts: dict[str | None, int]) -> str:
    said = ", ".join(f"{number} {words}" for words, number in counts.items() if words)
    silent = counts.get(None, 0)
    return (said or "no caption says it") + (f", {silent} not said" if said and silent else "")
