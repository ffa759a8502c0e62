"""Randomness without state.

Every random draw of a run comes from a generator seeded by what it is for (run seed, step,
sample), never from a global or running generator: so a resumed run draws the very same numbers.
"""

from __future__ import annotations

import hashlib

import torch


def seed_from(*parts: object) -> int:
    """A 63-bit seed from the text of its parts."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """On the CPU, so that the numbers don't depend on the card."""
    return torch.Generator("cpu").manual_seed(seed_from(*parts))
