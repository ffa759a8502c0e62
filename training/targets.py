"""Which layers of a network carry an adapter."""

from __future__ import annotations

import re

import torch

from .config import AdapterConfig
from .errors import PistachioError
from .model import TrainableModel

# Flux's single blocks fuse q, k, v with the MLP in linear1 and the output projections in linear2.
ATTENTION = re.compile(r"attn|attention|single_blocks\.\d+\.linear[12]$")


def select_targets(model: TrainableModel, config: AdapterConfig) -> list[tuple[str, torch.nn.Module, bool]]:
    """(module path, module, is convolution) for the preset, in the network's own order."""
    chosen = []
    for path, module in model.network.named_modules():
        if model.is_linear(module):
            if config.targets != "attention" or ATTENTION.search(path):
                chosen.append((path, module, False))
        elif config.targets == "all-linear+conv" and model.is_conv(module) and module.groups == 1:
            chosen.append((path, module, True))
    if not chosen:
        raise PistachioError(
            f"The target preset '{config.targets}' matches no layer of this {model.family} model. "
            "Choose 'all-linear' in Adapter Settings."
        )
    return chosen
