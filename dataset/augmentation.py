"""What a picture is trained as besides itself: other crops, sizes, captions, masks, and how often.

Owns the settings and what follows from them for one picture; every choice is a function of the seed
and the picture. Reads no file and encodes nothing.
"""

from __future__ import annotations

import fnmatch
import random
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..training.errors import PistachioError
from .buckets import Crop, centre_crop
from .captions import has_trigger
from .types import Picture

MASK_SOURCES = ("off", "file", "alpha")
MOST_REPEATS = 1000

_FOLDER_REPEATS = re.compile(r"(\d+)_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The defaults change nothing: each picture once, at one size, with its own caption."""

    flip: bool = False  # also train the mirror image
    random_crops: int = 0  # further crops of each picture
    smallest_crop: float = 0.8  # of the largest crop's sides
    more_resolutions: tuple[int, ...] = ()  # pixels; each picture is trained at these too
    folder_repeats: bool = False  # "10_name" is drawn ten times as often
    repeats: tuple[tuple[str, int], ...] = ()  # (pattern of relative paths, times); the first match counts
    shuffle_tags: bool = False
    keep_tokens: int = 0  # tags after the trigger that stay in front
    shuffle_variants: int = 8  # orders of the tags that are encoded for each caption
    caption_dropout: float = 0.0
    masks: str = "off"
    mask_minimum: float = 0.0  # weight of what the mask blacks out
    seed: int = 0

    def __post_init__(self):
        _check(0 <= self.random_crops <= 64, f"{self.random_crops} random crops. Set it between 0 (off) and 64")
        _check(0.1 <= self.smallest_crop <= 1, f"The smallest crop is {self.smallest_crop}. Set it between 0.1 and 1")
        _check(all(r >= 64 for r in self.more_resolutions), f"A further resolution is {min(self.more_resolutions, default=0)}. Set it to 64 or more")
        _check(all(1 <= n <= MOST_REPEATS for _, n in self.repeats), f"A number of repeats is outside 1 to {MOST_REPEATS}. Correct it")
        _check(0 <= self.keep_tokens <= 1000, f"{self.keep_tokens} kept tokens. Set it between 0 and 1000")
        _check(1 <= self.shuffle_variants <= 256, f"{self.shuffle_variants} orders of the tags. Set it between 1 and 256")
        _check(0 <= self.caption_dropout <= 1, f"The caption dropout is {self.caption_dropout}. Set it between 0 (off) and 1")
        _check(self.masks in MASK_SOURCES, f"Masks '{self.masks}' are unknown. Choose one of {', '.join(MASK_SOURCES)}")
        _check(0 <= self.mask_minimum <= 1, f"The mask's minimum is {self.mask_minimum}. Set it between 0 and 1")


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise PistachioError(f"{problem} in Augmentation Settings.")


def parse_resolutions(text: str) -> tuple[int, ...]:
    """'512, 768' -> (512, 768)."""
    parts = [part for part in re.split(r"[,;\s]+", text) if part]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise PistachioError(f"'{wrong[0]}' is no resolution. Write whole numbers such as '512, 768' in Augmentation Settings.")
    return tuple(dict.fromkeys(map(int, parts)))


def parse_repeats(text: str) -> tuple[tuple[str, int], ...]:
    """Lines 'pattern = times' -> ((pattern, times), ...)."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        pattern, sign, times = line.rpartition("=")
        if not sign or not pattern.strip() or not times.strip().isdecimal():
            raise PistachioError(f"'{line}' gives no repeats. Write lines such as 'close-up* = 3' in Augmentation Settings.")
        found.append((pattern.strip(), int(times)))
    return tuple(found)


def repeats_of(picture: Picture, settings: Augmentation) -> int:
    """By the first pattern that fits, else by the nearest folder '<times>_name' where that is switched on, else 1."""
    path = PurePosixPath(picture.relative_path)
    for pattern, times in settings.repeats:
        if fnmatch.fnmatchcase(picture.relative_path, pattern) or fnmatch.fnmatchcase(path.name, pattern) or path.stem == pattern:
            return times
    if settings.folder_repeats:
        for parent in path.parents:
            match = _FOLDER_REPEATS.match(parent.name)
            if match:
                return min(max(1, int(match[1])), MOST_REPEATS)
    return 1


def crops_of(picture: Picture, bucket: tuple[int, int], settings: Augmentation) -> list[Crop]:
    """The centre first, then its mirror image, then the random ones."""
    centre = centre_crop(picture.width, picture.height, *bucket)
    crops = [centre]
    if settings.flip:
        crops.append(Crop(box=centre.box, flip=True, name="flip"))
    left, top, right, bottom = centre.box
    for index in range(settings.random_crops):
        source = random.Random(f"crop|{settings.seed}|{picture.content_hash}|{index}")
        share = source.uniform(settings.smallest_crop, 1.0)
        width, height = (right - left) * share, (bottom - top) * share
        x, y = source.uniform(0, picture.width - width), source.uniform(0, picture.height - height)
        flip = settings.flip and source.random() < 0.5
        box = (x, y, x + width, y + height)
        crops.append(Crop(box=box, flip=flip, name=f"{','.join(f'{v:.3f}' for v in box)}{' flip' if flip else ''}"))
    return crops


def caption_versions(caption: str, trigger: str, settings: Augmentation) -> list[str]:
    """The caption as it is, then its tags in other orders: the trigger first, then the kept tags, then the rest."""
    versions = [caption]
    if not settings.shuffle_tags:
        return versions
    tags = [tag for tag in map(str.strip, caption.split(",")) if tag]
    leading = [tag for tag in tags if has_trigger(tag, trigger)]
    others = [tag for tag in tags if not has_trigger(tag, trigger)]
    kept, loose = others[: settings.keep_tokens], others[settings.keep_tokens :]
    for index in range(settings.shuffle_variants if len(loose) > 1 else 0):
        order = loose.copy()
        random.Random(f"tags|{settings.seed}|{caption}|{index}").shuffle(order)
        versions.append(", ".join([*leading, *kept, *order]))
    return list(dict.fromkeys(versions))
