"""The demo's fixed evaluation prompts: 32 scenes with the trigger, the same without it, and their seeds.

The scenes are not those of the training pictures. Also prompts for other, described people, which
show whether a LoRA leaves them alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .captions import base_identity, caption, target_caption
from .make_character import character_scenes
from .portraits import Identity, Scene, random_scene

COUNT, SEED, FIRST_NOISE_SEED = 32, 23, 1000
NEGATIVE = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPrompt:
    scene: Scene
    seed: int
    with_trigger: str
    without_trigger: str
    other_person: Identity
    other_prompt: str


def evaluation_prompts(count: int = COUNT, seed: int = SEED) -> list[EvaluationPrompt]:
    """`seed`: of the scenes and of the noises; another one shows whether a figure hangs on these prompts."""
    rng = random.Random(seed)
    trained = set(character_scenes())
    out: list[EvaluationPrompt] = []
    while len(out) < count:
        scene = random_scene(rng)
        if scene in trained:
            continue
        other = base_identity(rng)
        out.append(EvaluationPrompt(
            scene=scene, seed=FIRST_NOISE_SEED + 1000 * (seed - SEED) + len(out), with_trigger=target_caption(scene),
            without_trigger=caption(scene), other_person=other, other_prompt=caption(scene, identity=other),
        ))
    return out
