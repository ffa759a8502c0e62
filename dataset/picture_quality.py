"""How sharp a picture is and how hard it was compressed, measured from its pixels.

Owns the two measures and their limits, which were set on photographs blurred and recompressed by known
amounts. Knows nothing about datasets or about what is done with a bad picture.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from .images import DECODE_ERRORS, read_rgb

# 23 photographs as they are measured 0 to 0.4, blurred by a Gaussian of 1 pixel 0 to 1.04, of 3 pixels 1.5 to 2.9.
BLURRED_PX = 1.2
# None of them is above both when saved at quality 85 or better, two at 75, sixteen at 10; drawings without texture seldom are.
BLOCK_SHARE, BLOCK_STEP = 0.30, 0.7
LOW_JPEG_QUALITY = 40  # where a JPEG's own tables say it
FINE_SIGMA, COARSE_SIGMA = 0.7, 1.6  # pixels
TILES = 8  # a side: a blurred background is no fault, so the sharpest tiles decide
MIN_SIDE_PX = 32
BLOCK_PX = 8
BLOCKING_PX = 1024  # a side: the middle of a large picture tells as much as all of it

# The luminance table of the JPEG standard, from which all qualities are scaled; its order does not matter here.
_LUMINANCE = np.array([
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
])


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    blur_px: float | None  # standard deviation of the blur of the sharpest edges, at training size; None: no edges to measure
    block_share: float  # how much more often a line of the 8-pixel grid stands out than any other line, 0..1
    block_step: float  # by how many grey levels
    jpeg_quality: int | None  # as the file's tables say, 1..100; None: no JPEG

    @property
    def is_blurred(self) -> bool:
        return self.blur_px is not None and self.blur_px >= BLURRED_PX

    @property
    def is_over_compressed(self) -> bool:
        if self.jpeg_quality is not None and self.jpeg_quality < LOW_JPEG_QUALITY:
            return True
        return self.block_share >= BLOCK_SHARE and self.block_step >= BLOCK_STEP


def measure_file(path: Path, resolution: int) -> Quality:
    """PistachioError as `read_rgb`. A file that did not change is not measured again."""
    status = path.stat()
    return _measured(str(path), status.st_mtime_ns, status.st_size, resolution)


@functools.lru_cache(maxsize=20_000)
def _measured(path: str, mtime_ns: int, size_bytes: int, resolution: int) -> Quality:
    return measure(read_rgb(Path(path)), resolution, jpeg_quality=jpeg_quality(Path(path)))


def measure(image: Image.Image, resolution: int, *, jpeg_quality: int | None = None) -> Quality:
    """`resolution`: pictures larger than its square are measured at that size, as they are trained."""
    grey = image.convert("L")
    left, top = max(0, grey.width - BLOCKING_PX) // 2, max(0, grey.height - BLOCKING_PX) // 2
    share, step = blocking(np.asarray(grey.crop((left, top, min(grey.width, left + BLOCKING_PX), min(grey.height, top + BLOCKING_PX)))))
    scale = resolution / math.sqrt(grey.width * grey.height)
    if scale < 1:
        grey = grey.resize((max(1, round(grey.width * scale)), max(1, round(grey.height * scale))), Image.Resampling.LANCZOS)
    blur = blur_px(np.asarray(grey, dtype=np.float32))
    return Quality(blur_px=blur, block_share=share, block_step=step, jpeg_quality=jpeg_quality)


def blur_px(grey: np.ndarray) -> float | None:
    """Standard deviation in pixels of the Gaussian that the sharpest edges of `grey` [h, w] look blurred with.

    An edge of width s that is blurred by a has gradient energy proportional to 1 / sqrt(s² + a²). Two such
    energies, at a fine and a coarse a, give s. The fine one keeps noise from passing for edges.
    """
    if min(grey.shape) < MIN_SIDE_PX:
        return None
    fine, coarse = (_tile_energy(gaussian_filter(grey, sigma)) for sigma in (FINE_SIGMA, COARSE_SIGMA))
    # tiles with next to no contrast hold noise alone
    seen = fine > max(4.0, 0.2 * float(np.median(fine)))
    if np.count_nonzero(seen) < 3:
        return None
    ratio2 = (fine[seen] / np.maximum(coarse[seen], 1e-6)) ** 2
    variance = (COARSE_SIGMA**2 - ratio2 * FINE_SIGMA**2) / np.maximum(ratio2 - 1, 1e-6)
    return float(np.percentile(np.sqrt(np.clip(variance, 0, 400)), 15))


def _tile_energy(grey: np.ndarray) -> np.ndarray:
    across, down = np.diff(grey, axis=1)[:-1], np.diff(grey, axis=0)[:, :-1]
    energy = across * across + down * down
    height, width = (side // TILES for side in energy.shape)
    return energy[: height * TILES, : width * TILES].reshape(TILES, height, TILES, width).mean((1, 3)).ravel()


def blocking(grey: np.ndarray) -> tuple[float, float]:
    """(share, step) of the 8-pixel grid that JPEG leaves, at whatever offset; the weaker of the two directions."""
    if min(grey.shape) < 4 * BLOCK_PX:
        return 0.0, 0.0
    found = [_grid(lines) for lines in (grey, grey.T)]
    return min(share for share, _ in found), min(step for _, step in found)


def _grid(lines: np.ndarray) -> tuple[float, float]:
    steps = np.abs(np.diff(lines.astype(np.int16), axis=1))
    here, before, behind = steps[:, 1:-1], steps[:, :-2], steps[:, 2:]
    whole = here.shape[1] // BLOCK_PX * BLOCK_PX
    around = np.maximum(before, behind)
    seen = (np.maximum(here, around) > 0) & (here < 40)  # neither flat nor an edge of the picture itself

    def by_offset(values: np.ndarray) -> np.ndarray:
        return values[:, :whole].sum(0, dtype=np.float64).reshape(-1, BLOCK_PX).sum(0)

    shares = by_offset((here > around) & seen) / np.maximum(by_offset(seen), 1)
    extra = np.clip(here - (before + behind) / 2, -6, 6)  # a strong edge counts no more than a visible step
    heights = by_offset(extra) / (extra.shape[0] * whole / BLOCK_PX)
    return _stands_out(shares), _stands_out(heights)


def _stands_out(by_offset: np.ndarray) -> float:
    """How far the highest of the eight lies above the others."""
    highest = int(by_offset.argmax())
    near = [highest, (highest - 1) % BLOCK_PX, (highest + 1) % BLOCK_PX]
    return float(by_offset[highest] - np.median(np.delete(by_offset, near)))


def jpeg_quality(path: Path) -> int | None:
    """The quality that the file's quantisation table stands for, 1..100; None for other formats."""
    try:
        with Image.open(path) as image:
            tables = getattr(image, "quantization", None)
    except DECODE_ERRORS:
        return None  # read_rgb tells what is wrong with it
    if not tables:
        return None
    total = sum(tables[min(tables)])
    return min(range(1, 101), key=lambda quality: abs(_table_sum(quality) - total))


@functools.cache
def _table_sum(quality: int) -> int:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return int(np.clip((_LUMINANCE * scale + 50) // 100, 1, 255).sum())
