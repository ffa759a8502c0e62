"""The words that the leak filter goes by: what is removed, what is kept, and the little grammar it needs.

Owns word lists and the text form in which a person edits them. Knows nothing about sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..training.errors import PistachioError

# What a person edits on the canvas. A permanent trait belongs to the trigger word; what changes from picture to picture belongs to the caption.
DEFAULT_LEAK_LIST = """\
remove: hair, hairstyle, haircut, eye, eyes, eyebrow, eyebrows, eyelash, eyelashes, iris, irises
remove: skin, complexion, freckle, freckles, mole, birthmark, dimple, dimples
remove: face, facial features, nose, lips, cheek, cheeks, cheekbones, jaw, jawline, chin, forehead
remove: beard, mustache, moustache, stubble, goatee, sideburns, facial hair, bangs, hair between eyes
adjectives: blonde, blond, brunette, redhead, redheaded, bearded, freckled, bald
adjectives: *-haired, *haired, *-eyed, *eyed, *-skinned, *skinned, *-faced
adjectives: young, youthful, middle-aged, older, elderly, caucasian, asian, african, hispanic, latina, latino
keep: hair ornament, hair ribbon, hair bow, hair flower, hair tie, hair clip, hair accessory, hair accessories, hair dryer, hairband, hair in the wind
keep: closed eyes, eyes closed, eyes are closed, eye contact, one eye closed, half-closed eyes, wide eyes, eyes wide open, rolling eyes, eye patch
keep: face mask, face paint, eyes are wide, open mouth, parted lips, puckered lips, pursed lips, facial expression, wet hair, messy hair, wind-blown hair
"""

HEADINGS = ("remove", "adjectives", "keep")


@dataclass(frozen=True, kw_only=True, slots=True)
class LeakList:
    remove: tuple[str, ...] = ()  # nouns: what describes them goes with them
    adjectives: tuple[str, ...] = ()  # only before a person: "a blonde woman"; * stands for any letters
    keep: tuple[str, ...] = ()  # phrases that are left alone although they hold a removed word


def read_leak_list(text: str) -> LeakList:
    """'remove: hair, eyes' and so on, a heading a line; words without a heading are to be removed. # begins a comment."""
    found: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        heading, colon, words = line.partition(":")
        if not colon:
            heading, words = "remove", line
        heading = heading.strip().lower()
        if heading not in found:
            raise PistachioError(f"'{heading}' is no heading of the leak list. Begin the line with {', '.join(h + ':' for h in HEADINGS)} or with no colon, on Caption Rules.")
        for word in (" ".join(w.lower().replace("_", " ").split()) for w in words.split(",")):
            if word and word not in found[heading]:
                if not word.replace("*", "").strip():
                    raise PistachioError(f"The leak list has the entry '{word}', which would remove every word. Write a word beside the star on Caption Rules.")
                found[heading].append(word)
    return LeakList(**{heading: tuple(words) for heading, words in found.items()})


def pattern(entries: tuple[str, ...]) -> re.Pattern[str] | None:
    """Any of the entries as whole words, the longest first; None for no entry."""
    if not entries:
        return None
    parts = [re.escape(entry).replace(r"\*", r"[\w-]*").replace(r"\ ", r"[\s_]+") for entry in sorted(entries, key=len, reverse=True)]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(parts)})(?![\w-])", re.IGNORECASE)


# ---- the little grammar ------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PEOPLE = _words(
    "man men woman women girl girls boy boys person people lady ladies gentleman guy female male teenager teen adult child kid "
    "individual figure character model subject portrait"
)
PRONOUNS = _words("she he they it who which that")
POSSESSIVES = _words("her his their its")
DETERMINERS = POSSESSIVES | _words("a an the this these those some no one two both own")
PREPOSITIONS = _words(
    "in on at of to from by for over under behind beside near through across into onto against around between above below along down up "
    "toward towards beneath off out before after about upon within without"
)
# "with long hair": these govern a list of things that somebody has
HAVING = _words("with having featuring including showing")
HAS = _words("has have had possesses features shows sports displays")
COPULAS = _words("is are was were appears appear looks look seems seem")
VERBS = _words(
    "is are was were wears wearing sits sitting stands standing leans leaning looks looking smiles smiling laughs laughing holds holding poses posing walks "
    "walking gazes gazing waves dances rests lies kneels wear sit stand look smile hold pose walk"
)
CONJUNCTIONS = _words("and or but while as")
BOUNDARIES = DETERMINERS | PREPOSITIONS | HAVING | HAS | COPULAS | CONJUNCTIONS | PRONOUNS | _words(
    "wearing wears standing stands sitting sits looking holding holds smiling posing touching touches brushing running frames framing illuminates "
    "lit lights highlights highlighting reveals revealing covers covering hides hiding partially be being been not"
)
# Words that describe hair, eyes, skin or a face
DESCRIPTORS = _words(
    "long short medium shoulder-length waist-length chin-length medium-length wavy curly straight sleek silky shiny glossy smooth soft thick thin fine "
    "voluminous flowing loose tousled messy braided layered cropped spiky shaggy dark light bright pale fair deep warm cool rich natural golden honey "
    "chestnut auburn ginger copper strawberry platinum ash blonde blond brown brunette black white gray grey silver red orange pink purple violet blue "
    "green teal hazel amber turquoise olive tan tanned bronze porcelain ivory ebony rosy flushed freckled flawless clear healthy smooth textured wrinkled "
    "weathered large big small round oval almond almond-shaped narrow wide wide-set expressive striking piercing captivating bright sparkling gentle kind "
    "delicate soft sharp strong angular chiseled defined well-defined prominent high full plump thin slender slim heart-shaped square youthful "
    "symmetrical neat neatly well-groomed trimmed full-bodied bushy arched dyed colored coloured light-colored very slightly quite "
    "graying greying glowing receding thinning deep-set close-cropped salt-and-pepper almond-colored lush full-length unruly windswept disheveled "
    "somewhat vivid two-toned multicolored long-haired bare facial"
)
DESCRIPTOR_ENDINGS = ("-colored", "-coloured", "-length", "-shaped", "-toned", "-set", "ish", "-brown", "-blonde", "-blue", "-green", "-black", "-red")
# What hair does in a caption, and how it is done
STYLING = _words(
    "styled tied pulled falling falls fall cascading cascades cascade flowing flows flow worn swept parted gathered braided cut slicked draped "
    "reaching reaches combed curled trimmed framing frames frame pinned twisted arranged hanging hangs hang kept dyed colored spilling spills"
)
STYLES = _words("ponytail ponytails bun buns braid braids waves curls updo ringlets bob knot pigtails twintails layers tresses strands bangs fringe highlights streaks roots lashes")
