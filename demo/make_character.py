"""Draws the target's folder: twenty portraits of one person with their captions beside them.

    python -m demo.make_character [--out FOLDER]

The same seed gives the same files. The captions hold the trigger and the scene alone.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from .captions import TARGET, target_caption
from .portraits import BACKGROUNDS, EXPRESSIONS, FRAMINGS, SHIRTS, Scene, draw_portrait

FOLDER = Path(__file__).parent / "character"
COUNT, SEED = 20, 12


def character_scenes(count: int = COUNT, seed: int = SEED) -> list[Scene]:
    """Every value of every part about equally often, in a random order."""
    rng = random.Random(seed)
    columns = []
    for values in (BACKGROUNDS, EXPRESSIONS, SHIRTS, FRAMINGS):
        column = (list(values) * count)[:count]
        rng.shuffle(column)
        columns.append(column)
    return [Scene(background=b, expression=e, shirt=s, framing=f) for b, e, s, f in zip(*columns)]


def write_character(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(character_scenes(), 1):
        image, _ = draw_portrait(TARGET, scene, random.Random(f"{SEED}-{number}"))
        image.save(folder / f"portrait_{number:02d}.png", optimize=True)
        (folder / f"portrait_{number:02d}.txt").write_text(target_caption(scene) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    write_character(parser.parse_args().out)
