"""Reads a portrait's six attributes (and its scene) back from the picture with a small classifier.

Trained by `pretrain/train_attributes.py` on drawings and on what the VAE makes of them. This is
the demo's measure: `identity_share` is the share of a person's attributes found in pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .portraits import ATTRIBUTES, SCENE_VALUES, SIZE_PX, Identity

HEADS = ATTRIBUTES | SCENE_VALUES
WEIGHTS = Path(__file__).parent / "weights" / "attributes.safetensors"


class AttributeReader(nn.Module):
    """Pictures (batch, 3, 96, 96) in 0..1 to one row of logits per head."""

    def __init__(self):
        super().__init__()
        widths = ((3, 24, 1), (24, 48, 2), (48, 64, 2), (64, 128, 2))
        layers: list[nn.Module] = [nn.AvgPool2d(2)]
        for n_in, n_out, stride in widths:
            layers += [nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(128 * 36, sum(len(v) for v in HEADS.values()))

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = self.head(self.body(pictures - 0.5)).split([len(v) for v in HEADS.values()], dim=1)
        return dict(zip(HEADS, parts))


@lru_cache(maxsize=1)
def _reader() -> AttributeReader:
    from safetensors.torch import load_file

    reader = AttributeReader().eval()
    reader.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in load_file(WEIGHTS).items()})
    return reader


def _as_batch(images) -> torch.Tensor:
    """PIL pictures, uint8 arrays, or one (batch, 96, 96, 3) array or tensor in 0..1 (the canvas's IMAGE)."""
    if isinstance(images, torch.Tensor):
        batch = images.detach().float().cpu()
    else:
        arrays = [np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image) for image in images]
        batch = torch.from_numpy(np.stack([a.astype(np.float32) / (255 if a.dtype == np.uint8 else 1) for a in arrays]))
    if batch.ndim != 4 or batch.shape[1:] != (SIZE_PX, SIZE_PX, 3):
        raise ValueError(f"expected {SIZE_PX}x{SIZE_PX} RGB pictures, got shape {tuple(batch.shape)}; render the demo at {SIZE_PX}x{SIZE_PX}")
    return batch.permute(0, 3, 1, 2).clamp(0, 1)


@torch.no_grad()
def read_attributes(images) -> list[dict[str, str]]:
    """For each picture the value of every attribute and scene part."""
    logits = _reader()(_as_batch(images))
    chosen = {key: value.argmax(1).tolist() for key, value in logits.items()}
    count = len(next(iter(chosen.values())))
    return [{key: HEADS[key][chosen[key][i]] for key in HEADS} for i in range(count)]


def identity_matches(images, identity: Identity) -> list[int]:
    """For each picture how many of the six attributes are the identity's."""
    return [sum(found[key] == getattr(identity, key) for key in ATTRIBUTES) for found in read_attributes(images)]


def identity_share(images: Sequence, identity: Identity) -> float:
    """Mean share of the identity's six attributes found in the pictures; about 0.22 for strangers."""
    matches = identity_matches(images, identity)
    return sum(matches) / (len(ATTRIBUTES) * len(matches))
