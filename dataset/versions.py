"""The pixels, masks and texts of one picture in all the versions that it is trained in.

Owns reading the file again, once, when something of it is not in the cache yet, and the mask's place on the
latent. Knows nothing about encoders or about which versions are asked for.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..training.errors import PistachioError
from .augmentation import Augmentation, caption_versions
from .buckets import Crop, fit, fit_mask
from .captions import with_trigger, without_trigger
from .images import content_hash, read_alpha, read_rgb
from .types import Picture
from .video import ClipHash, frames_of

MASK_VERSION = "cover-box-1"  # change it when `PictureSource.mask` changes its values


class PictureSource:
    """A picture's pixels, read at the first need."""

    def __init__(self, picture: Picture):
        self.picture = picture
        self._image: Image.Image | None = None
        self._mask: Image.Image | None = None

    def pixels(self, width: int, height: int, crop: Crop) -> Tensor:
        """[frames, height, width, 3] in 0..1. PistachioError if the file is no longer the one that was read."""
        if self.picture.clip is not None:
            return self._clip_pixels(width, height, crop)
        if self._image is None:
            self._image = read_rgb(self.picture.path)
            if content_hash(self._image) != self.picture.content_hash:
                raise self._changed()
        return fit(self._image, width, height, crop)

    def _clip_pixels(self, width: int, height: int, crop: Crop) -> Tensor:
        """Whole frames are held one at a time, whatever the video's size."""
        digest, frames = ClipHash(), []
        for frame in frames_of(self.picture.path, self.picture.clip):
            digest.add(frame)
            frames.append(fit(frame, width, height, crop))
        if digest.hexdigest() != self.picture.content_hash:
            raise self._changed()
        return torch.cat(frames)

    def _changed(self) -> PistachioError:
        return PistachioError(f"'{self.picture.relative_path}' changed after the folder was read. Queue again.")

    def mask(self, path: Path, crop: Crop, shape: tuple[int, ...], settings: Augmentation) -> Tensor:
        """Weights [1, 1, (1,) h, w] for a latent of `shape`: 1 counts in full, `mask_minimum` is the least."""
        if self._mask is None:
            self._mask = read_alpha(path) if settings.masks == "alpha" else read_rgb(path).convert("L")
            if self._mask.size != (self.picture.width, self.picture.height):
                self._mask = self._mask.resize((self.picture.width, self.picture.height), Image.Resampling.BOX)
        h, w = shape[-2:]
        mask = settings.mask_minimum + (1 - settings.mask_minimum) * fit_mask(self._mask, w, h, crop)
        return mask.reshape(*(1,) * (len(shape) - 2), h, w)


def first_frame(picture: Picture) -> Image.Image:
    """What a preview shows."""
    return read_rgb(picture.path) if picture.clip is None else next(iter(frames_of(picture.path, picture.clip)))


def mask_file(picture: Picture, settings: Augmentation) -> Path | None:
    """Where the picture's mask comes from; None if it has none."""
    if settings.masks == "file":
        return picture.mask_path
    if settings.masks == "alpha" and picture.clip is None and read_alpha(picture.path) is not None:
        return picture.path
    return None


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise PistachioError(f"'{path}' can't be read any more ({error.strerror}). Queue again to read the folder afresh.") from error
    return digest.hexdigest()


def is_black(mask: Tensor) -> bool:
    return not bool(torch.any(mask > 0))


def texts_of(picture: Picture, trigger: str, settings: Augmentation, *, held_out: bool) -> list[tuple[str, str]]:
    """(caption, the same without the trigger) in every version; a held-out picture has its first caption alone."""
    first = with_trigger(picture.caption or "", trigger)
    captions = [first]
    if not held_out:
        for caption in (first, *(with_trigger(text, trigger) for text in picture.more_captions)):
            captions += caption_versions(caption, trigger, settings)
    return [(caption, without_trigger(caption, trigger)) for caption in dict.fromkeys(captions)]
