"""Presets by the card's memory: what people set by hand on such cards, to begin from. The plan still decides what fits."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.memory import MemoryConfig

# What a driver and the desktop take of a card before anybody trains: a card is never planned to its last byte.
RESERVED_SHARE = 0.04


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    size_gb: int
    examples: str
    memory: MemoryConfig


def _card(size_gb: int, examples: str) -> Card:
    return Card(
        size_gb=size_gb, examples=examples,
        memory=MemoryConfig(limit_gb=round(size_gb * (1 - RESERVED_SHARE), 1), batch="effective"),
    )


ASK_THE_CARD = "ask the card"
# With a preset, batch size and accumulation may be split anew at the same effective batch: 8 at once on the largest, one by one on the smallest.
CARDS = {
    f"{card.size_gb} GB": card for card in (
        _card(12, "RTX 3060, 4070"),
        _card(16, "RTX 4060 Ti 16 GB, 4080, 5080"),
        _card(24, "RTX 3090, 4090"),
        _card(48, "RTX A6000, A40, L40S"),
        _card(80, "A100, H100"),
        _card(141, "H200"),
    )
}
PRESETS = (ASK_THE_CARD, *CARDS)


def preset(name: str) -> MemoryConfig:
    """Raises KeyError for a name that is no preset."""
    return MemoryConfig() if name == ASK_THE_CARD else CARDS[name].memory
