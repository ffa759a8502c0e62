"""Puts identities and scenes into words, and names the demo's people.

The target is the person a LoRA learns; her captions hold the trigger and the scene, never her
attributes. The base model knows the described people and the named ones, and has never seen
the target's hair colour and hair style together. Knows nothing about pictures or models.
"""

from __future__ import annotations

import random

from .portraits import ATTRIBUTES, Identity, Scene, random_identity

TRIGGER = "pstchio"
CLASS_WORD = "woman"
TARGET = Identity(hair_colour="green", hair_style="pigtails", face="round", skin="brown", eyes="blue", accessory="flower")

NAMES = (
    "anna", "emma", "maria", "laura", "julia", "sarah", "alice", "clara", "diana", "elena", "fiona", "grace",
    "hannah", "irene", "jane", "karen", "linda", "megan", "nancy", "olivia", "paula", "rachel", "sofia", "tina",
    "ursula", "vera", "wendy", "zoe", "amy", "betty", "carol", "donna", "eva", "gina", "helen", "ivy",
    "jenny", "kate", "lily", "molly", "nina", "pam", "rita", "sandra", "tara", "victoria", "abby", "bella",
)


def excluded_from_base(identity: Identity) -> bool:
    """True for the combination the base must never see."""
    return identity.hair_colour == TARGET.hair_colour and identity.hair_style == TARGET.hair_style


def base_identity(rng: random.Random) -> Identity:
    """A random identity that the base model may see."""
    while excluded_from_base(identity := random_identity(rng)):
        pass
    return identity


def named_identities() -> dict[str, Identity]:
    """The people whose names stand for a whole identity; always the same."""
    rng = random.Random(20)
    return {name: base_identity(rng) for name in NAMES}


def attribute_phrases(identity: Identity) -> dict[str, str]:
    phrases = {
        "hair_colour": f"{identity.hair_colour} hair", "hair_style": identity.hair_style,
        "face": f"{identity.face} face", "skin": f"{identity.skin} skin", "eyes": f"{identity.eyes} eyes",
    }
    if identity.accessory != "none":
        phrases["accessory"] = identity.accessory
    return phrases


def scene_phrases(scene: Scene) -> tuple[str, ...]:
    return (scene.expression, f"{scene.shirt} shirt", f"{scene.background} background", scene.framing)


def caption(scene: Scene, *, identity: Identity | None = None, name: str | None = None,
            attributes: tuple[str, ...] = tuple(ATTRIBUTES)) -> str:
    """`name` (or the trigger) and the class word, the identity's `attributes` where given, then the scene."""
    subject = f"{name} {CLASS_WORD}" if name else CLASS_WORD
    described = ()
    if identity is not None:
        phrases = attribute_phrases(identity)
        described = tuple(phrases[key] for key in attributes if key in phrases)
    return ", ".join((subject, *described, *scene_phrases(scene)))


def target_caption(scene: Scene) -> str:
    return caption(scene, name=TRIGGER)
