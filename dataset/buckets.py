"""Aspect buckets: the training size of each picture, and the crop that makes it so.

A bucket's sides are multiples of `step` and its area is at most resolution squared.
Knows nothing about latents or models beyond that step.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..training.errors import PistachioError

MAX_ASPECT = 4.0  # longer pictures are cropped to 4:1
NOTABLE_CROP = 0.75  # a picture that keeps less than this share of its area gets a note


@functools.lru_cache(maxsize=20_000)
def assign_bucket(width: int, height: int, *, resolution: int, step: int = 64) -> tuple[int, int]:
    """Training size (w, h) in pixels of a width x height picture.

    Weighs what is cropped (squared) against the area that is lost to the grid. A picture smaller
    than resolution squared keeps its own area; it is enlarged only where a side is below `step`.
    """
    if step < 1 or resolution < step:
        raise PistachioError(f"The resolution is {resolution}, below this model's step of {step} pixels. Raise it on Encode Dataset.")
    assert width > 0 and height > 0
    if width < height:  # ties then fall alike for a picture and its quarter turn
        w, h = assign_bucket(height, width, resolution=resolution, step=step)
        return h, w
    aspect = min(max(width / height, 1 / MAX_ASPECT), MAX_ASPECT)
    area = max(min(resolution * resolution, width * height), step * step)
    best, best_score = (step, step), -1.0
    for w in range(step, int(math.sqrt(area * MAX_ASPECT)) + step, step):
        tallest = int(area // w) // step * step
        ideal = w / aspect
        for h in {min(tallest, math.floor(ideal / step) * step), min(tallest, math.ceil(ideal / step) * step)}:
            if h < step:
                continue
            kept = min((w / h) / aspect, aspect / (w / h))
            score = kept * kept * (w * h / area)
            if score > best_score:
                best, best_score = (w, h), score
    return best


def bucket_note(name: str, width: int, height: int, bucket: tuple[int, int], resolution: int) -> str | None:
    """A sentence when the picture is too small or loses much to the crop."""
    w, h = bucket
    aspect, target = width / height, w / h
    kept = min(aspect / target, target / aspect)
    if kept < NOTABLE_CROP:
        return f"'{name}' ({width}x{height}) is cropped to {w}x{h}: {1 - kept:.0%} of it is cut off."
    if width * height < 0.5 * resolution * resolution:
        verb = "is enlarged" if w * h > width * height * 1.05 else "is trained at its own size"
        return f"'{name}' ({width}x{height}) is small for a resolution of {resolution}: it {verb}, {w}x{h}."
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """Which part of a picture is trained."""

    box: tuple[float, float, float, float]  # left, top, right, bottom in the picture's pixels
    flip: bool = False  # mirrored left to right
    name: str = ""  # tells it apart on disk; "" is the crop at the centre


def centre_crop(image_width: int, image_height: int, width: int, height: int) -> Crop:
    """The largest part of the bucket's shape."""
    scale = max(width / image_width, height / image_height)
    crop_width, crop_height = min(width / scale, image_width), min(height / scale, image_height)
    left, top = (image_width - crop_width) / 2, (image_height - crop_height) / 2
    return Crop(box=(left, top, left + crop_width, top + crop_height))


def fit(image: Image.Image, width: int, height: int, crop: Crop | None = None) -> Tensor:
    """Crop (by default the centre) and resize (Lanczos): float32 [1, height, width, 3] in 0..1."""
    crop = crop or centre_crop(image.width, image.height, width, height)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS, box=crop.box)
    if crop.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0)[None]


def fit_mask(mask: Image.Image, width: int, height: int, crop: Crop) -> Tensor:
    """The same part of a mask, each value the mean of what it covers: float32 [height, width] in 0..1."""
    resized = mask.resize((width, height), Image.Resampling.BOX, box=crop.box)
    if crop.flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255.0)
