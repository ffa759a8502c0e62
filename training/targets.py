"""Which layers of a network carry an adapter, and of what rank.

A preset gives the layers; `include` and `exclude` narrow it; `rank_pattern` sets single ranks.
Nothing here knows what an adapter does with a layer.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Sequence

import torch

from .config import AdapterConfig
from .config.adapter import lines
from .errors import PistachioError
from .messages import message
from .model import TrainableModel

# Flux's single blocks fuse q, k, v with the MLP in linear1 and the output projections in linear2.
ATTENTION = re.compile(r"attn|attention|single_blocks\.\d+\.linear[12]$")
MLP = re.compile(r"(^|[._])(mlp[XC]?|ff|ffn|feed_forward)([._]|$)|\.block\.layer[12]$")  # AuraFlow's mlpX and mlpC; Cosmos 1's unnamed one
MODULATION = re.compile(r"modulation|adaln|(^|[._])mod([._]|$)", re.IGNORECASE)
NEAR_CANDIDATES = 5


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layer that gets an adapter."""

    path: str
    module: torch.nn.Module
    is_conv: bool
    rank: int
    scale: float  # of the update: alpha / rank, or alpha / sqrt(rank)


def select_targets(model: TrainableModel, config: AdapterConfig) -> list[Target]:
    """The chosen layers, in the network's own order. PistachioError when a setting chooses nothing."""
    layers = [
        (path, module, model.is_conv(module))
        for path, module in model.network.named_modules()
        if model.is_linear(module) or (model.is_conv(module) and module.groups == 1)
    ]
    in_preset = _preset(config.targets, model)
    chosen = [layer for layer in layers if in_preset(layer[0], layer[2])]
    if not chosen:
        raise PistachioError(
            f"The target preset '{config.targets}' matches no layer of this {model.family} model. "
            "Choose 'all-linear' in Adapter Settings."
        )
    include, exclude = lines(config.include), lines(config.exclude)
    _check_found(include, "include", chosen, layers, config)
    _check_found(exclude, "exclude", chosen, layers, config)
    chosen = [
        layer for layer in chosen
        if (not include or _finds(include, layer[0])) and not _finds(exclude, layer[0])
    ]
    if not chosen:
        raise PistachioError(
            f"'exclude' takes away every layer that 'include' and the preset '{config.targets}' leave. Shorten it in Adapter Settings."
        )
    patterns = config.rank_patterns()
    _check_found([pattern for pattern, _ in patterns], "rank_pattern", chosen, layers, config)
    return [_target(layer, patterns, config) for layer in chosen]


def _preset(name: str, model: TrainableModel):
    """(path, is convolution) -> whether the preset holds the layer."""
    if name == "attention":
        # Cosmos Predict2 names its modulations after the attention they feed.
        return lambda path, is_conv: not is_conv and bool(ATTENTION.search(path)) and not MODULATION.search(path)
    if name == "attention+mlp":
        blocks = tuple(f"{path}." for path, _ in model.blocks())

        def in_block(path: str, is_conv: bool) -> bool:
            inside = not blocks or path.startswith(blocks)
            return not is_conv and inside and bool(ATTENTION.search(path) or MLP.search(path)) and not MODULATION.search(path)

        return in_block
    return lambda path, is_conv: not is_conv or name == "all-linear+conv"


def _target(layer: tuple, patterns: Sequence[tuple[str, int]], config: AdapterConfig) -> Target:
    path, module, is_conv = layer
    own = is_conv and max(module.kernel_size) > 1
    rank = config.conv_rank if own and config.conv_rank else config.rank
    alpha = config.conv_alpha if own and config.conv_alpha else config.alpha
    rank = next((given for pattern, given in patterns if re.search(pattern, path)), rank)
    return Target(path=path, module=module, is_conv=is_conv, rank=rank, scale=alpha / (rank**0.5 if config.rank_stabilised else rank))


def target_notes(targets: Sequence[Target], config: AdapterConfig, family: str) -> tuple[str, ...]:
    """Sentences on settings that this model has nothing for."""
    if not config.targets.endswith("+conv") or any(target.is_conv for target in targets):
        return ()
    return (message(
        "note.no_convolutions",
        "The preset '{preset}' asks for convolutions, and none of {family}'s is trained: it is as 'all-linear', and conv_rank has no effect.",
        preset=config.targets, family=family,
    ),)


def _finds(patterns: Sequence[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _check_found(patterns: Sequence[str], name: str, chosen: list, layers: list, config: AdapterConfig) -> None:
    for pattern in patterns:
        if any(re.search(pattern, path) for path, _, _ in chosen):
            continue
        outside = next((path for path, _, _ in layers if re.search(pattern, path)), None)
        if outside is not None:
            why = f"finds only layers that the other settings leave out ('{outside}'), with the preset '{config.targets}'"
            fix = "Choose a larger preset, or correct it in Adapter Settings."
        else:
            near = ", ".join(_near(pattern, [path for path, _, _ in chosen]))
            why, fix = "finds no layer of this model", f"Correct it in Adapter Settings; near it are: {near}."
        raise PistachioError(f"'{pattern}' in {name} {why}. {fix}")


def _near(pattern: str, paths: list[str]) -> list[str]:
    """Layer paths that look most like the pattern; of repeated blocks the first alone."""
    firsts = list({re.sub(r"\d+", "#", path): path for path in reversed(paths)}.values())[::-1]
    words = re.sub(r"\\[dw.]|[\\^$.*+?()\[\]{}|]", " ", pattern).split() or [pattern]
    word = max(words, key=len)

    def likeness(path: str) -> float:
        return max(difflib.SequenceMatcher(None, word, part).ratio() for part in path.split("."))

    return sorted(firsts, key=likeness, reverse=True)[:NEAR_CANDIDATES]
