"""Dataset -> EncodedDataset: every picture through the VAE once, every distinct caption through CLIP once.

The encoders come in as two callables and two fingerprints. Owns what is cached under which key and
the order of work: all texts first, then all pictures, so that the host swaps models once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..training.errors import PistachioError
from ..training.messages import counted
from . import cache
from .augmentation import Augmentation, crops_of, repeats_of
from .buckets import Crop, assign_bucket, bucket_note
from .cache import LATENT_STORAGE, CacheMiss, ConditionCache, LatentCache, MaskCache, total_finite
from .checks import check_trainable
from .duplicates import kin_groups
from .folder import name_list
from .split import is_held_out, split_dataset
from .types import Dataset, EncodedCaption, EncodedDataset, EncodedItem, EncodedLatent, EncodedSize, Picture
from .versions import MASK_VERSION, PictureSource, file_hash, is_black, mask_file, texts_of

log = logging.getLogger(__name__)

CROP_VERSION = "cover-lanczos-centre-1"  # change it when `buckets.fit` changes its pixels


def encode_dataset(
    dataset: Dataset,
    *,
    encode_latent: Callable[[Tensor], Tensor],  # [frames, H, W, 3] in 0..1 -> [1, C, (T,) h, w]
    encode_text: Callable[[str], Any],  # -> the host's conditioning
    vae_fingerprint: str,
    clip_fingerprint: str,
    cache_folder: Path,
    trigger_word: str = "",
    resolution: int,  # pixels: buckets have about this area squared
    step: int,  # bucket sides are multiples of it
    allow_missing: bool = False,  # a picture without a caption gets the trigger word alone
    augmentation: Augmentation = Augmentation(),
    latent_storage: str = "lossless",  # one of LATENT_STORAGE
    progress: Callable[[int, int], None] = lambda done, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> EncodedDataset:
    """Encode what is not in the cache yet; each file is saved at once, so a cancelled job goes on where it was.

    A dataset without a split gets the default one. Raises PistachioError as `check_trainable` does,
    and when an encoder gives NaN or a picture changed since the folder was read.
    """
    if latent_storage not in LATENT_STORAGE:
        raise PistachioError(f"Latents can't be stored as '{latent_storage}'. Choose one of {', '.join(LATENT_STORAGE)} on Encode Dataset.")
    trigger = trigger_word.strip() or dataset.trigger_word
    notes = list(check_trainable(dataset, trigger_word=trigger, allow_missing_captions=allow_missing))
    if dataset.split is None:
        dataset = split_dataset(dataset)
        notes.append(counted(
            "encode.no_split", len(dataset.split.held_out), "No split was connected: {count} picture of {pictures} held out, the usual 20 %.",
            "No split was connected: {count} pictures of {pictures} held out, the usual 20 %.", pictures=len(dataset.pictures),
        ))
    pictures = _distinct(dataset)
    held_out = {p.content_hash for p in pictures if is_held_out(dataset, p)}
    texts = {p.content_hash: texts_of(p, trigger, augmentation, held_out=p.content_hash in held_out) for p in pictures}
    wanted = {text for versions in texts.values() for pair in versions for text in pair}
    if augmentation.caption_dropout:
        wanted.add("")
    plans = [
        _Plan(picture, sizes=_sizes(picture, resolution, step, augmentation, held_out=picture.content_hash in held_out))
        for picture in pictures
    ]
    total = len(wanted) + sum(plan.num_latents for plan in plans)
    work = _Work(
        total=total, progress=progress, check_interrupted=check_interrupted, folder=Path(cache_folder), vae_fingerprint=vae_fingerprint,
        clip_fingerprint=clip_fingerprint, encode_latent=encode_latent, encode_text=encode_text, storage=latent_storage,
        augmentation=augmentation,
    )
    text_paths = {text: work.text(text) for text in sorted(wanted)}
    first_of = {p.content_hash: group[0].content_hash for group in kin_groups([plan.picture for plan in plans]) for p in group}
    items, masked = [], 0
    for plan in plans:
        picture = plan.picture
        bucket = plan.sizes[0][0]
        note = bucket_note(picture.relative_path, picture.width, picture.height, bucket, resolution)
        if note:
            notes.append(note)
        sizes = work.picture(plan)
        captions = [
            EncodedCaption(caption=caption, prior_caption=prior, caption_path=text_paths[caption], prior_path=text_paths[prior])
            for caption, prior in texts[picture.content_hash]
        ]
        first = sizes[0].latents[0]
        masked += first.mask_path is not None
        items.append(
            EncodedItem(
                content_hash=picture.content_hash, relative_path=picture.relative_path,
                caption=captions[0].caption, prior_caption=captions[0].prior_caption,
                width=sizes[0].width, height=sizes[0].height, latent_path=first.path,
                caption_path=captions[0].caption_path, prior_path=captions[0].prior_path,
                held_out=picture.content_hash in held_out, latent_shape=sizes[0].latent_shape, mask_path=first.mask_path,
                repeats=repeats_of(picture, augmentation),
                more_latents=sizes[0].latents[1:], more_captions=tuple(captions[1:]), more_sizes=tuple(sizes[1:]),
                near_duplicate_of=first_of[picture.content_hash],
            )
        )
    notes += _mask_notes(augmentation, masked, items)
    log.info("Encoded %d of %d pictures and captions; the rest were in the cache.", work.encoded, total)
    return EncodedDataset(
        items=tuple(items), trigger_word=trigger, split_id=dataset.split.split_id, folder=dataset.folder,
        vae_fingerprint=vae_fingerprint, clip_fingerprint=clip_fingerprint,
        notes=(*dataset.notes, *dataset.split.notes, *notes),
        latent_storage=latent_storage, caption_dropout=augmentation.caption_dropout, empty_path=text_paths[""] if augmentation.caption_dropout else None,
    )


class _Plan:
    """What is to be encoded of one picture."""

    def __init__(self, picture: Picture, *, sizes: list[tuple[tuple[int, int], list[Crop]]]):
        self.picture = picture
        self.sizes = sizes  # (bucket, its crops), the main size first

    @property
    def num_latents(self) -> int:
        return sum(len(crops) for _, crops in self.sizes)


def _sizes(picture: Picture, resolution: int, step: int, settings: Augmentation, *, held_out: bool) -> list[tuple[tuple[int, int], list[Crop]]]:
    """A held-out picture is measured at one size, as it is."""
    if held_out:
        settings = Augmentation()
    buckets = [assign_bucket(picture.width, picture.height, resolution=r, step=step) for r in (resolution, *settings.more_resolutions)]
    return [(bucket, crops_of(picture, bucket, settings)) for bucket in dict.fromkeys(buckets)]


class _Work:
    """The encoders, the cache and the count of what is done."""

    def __init__(
        self, *, total, progress, check_interrupted, folder, vae_fingerprint, clip_fingerprint, encode_latent, encode_text, storage, augmentation
    ):
        self.total, self.done, self.encoded = total, 0, 0
        self.progress, self.check_interrupted = progress, check_interrupted
        self.vae_fingerprint, self.clip_fingerprint = vae_fingerprint, clip_fingerprint
        self.encode_latent, self.encode_text = encode_latent, encode_text
        self.storage, self.augmentation = storage, augmentation
        self.latents, self.conditions, self.masks = LatentCache(folder=folder), ConditionCache(folder=folder), MaskCache(folder=folder)
        for part in (self.latents, self.conditions, self.masks):
            part.remove_stale()

    def _step(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)

    def text(self, text: str) -> Path:
        self.check_interrupted()
        path = self.conditions.path_for(self.clip_fingerprint, text)
        if not _is_intact(path, cache.check_condition):
            conditioning = self.encode_text(text)
            if not total_finite(conditioning):
                raise PistachioError(f"The text encoder gave NaN or infinity for the caption '{text}'. Load the CLIP in fp16 or fp32, or use another file.")
            cache.save_condition(path, conditioning)
            self.encoded += 1
        self._step()
        return path

    def picture(self, plan: _Plan) -> list[EncodedSize]:
        source = PictureSource(plan.picture)
        mask = mask_file(plan.picture, self.augmentation)
        mask_hash = file_hash(mask) if mask else ""
        sizes = []
        for (width, height), crops in plan.sizes:
            latents, shape = [], ()
            for crop in crops:
                self.check_interrupted()
                path, shape = self._latent(source, width, height, crop)
                mask_path = self._mask(source, mask, mask_hash, crop, shape) if mask else None
                if mask and mask_path is None and crop.name not in ("", "flip"):
                    continue  # a random crop without anything of the mask teaches nothing
                latents.append(EncodedLatent(path=path, mask_path=mask_path))
            sizes.append(EncodedSize(width=width, height=height, latent_shape=shape, latents=tuple(latents)))
        return sizes

    def _latent(self, source: PictureSource, width: int, height: int, crop: Crop) -> tuple[Path, tuple[int, ...]]:
        picture = source.picture
        # what every picture had before there were other crops and storages keeps its name
        further = [crop.name] if crop.name or self.storage != "lossless" else []
        further += [self.storage] if self.storage != "lossless" else []
        path = self.latents.path_for(picture.content_hash, self.vae_fingerprint, width, height, CROP_VERSION, *further)
        if not _is_intact(path, cache.latent_shape):
            latent = self.encode_latent(source.pixels(width, height, crop))
            if not total_finite(latent):
                raise PistachioError(
                    f"The VAE gave NaN or infinity for '{picture.relative_path}'. Use a VAE that works in half precision, or start ComfyUI with --fp32-vae."
                )
            cache.save_latent(path, latent, self.storage)
            self.encoded += 1
        self._step()
        return path, cache.latent_shape(path)

    def _mask(self, source: PictureSource, file: Path, file_digest: str, crop: Crop, shape: tuple[int, ...]) -> Path | None:
        """The mask of one crop; None if it is black, which only a random crop may be."""
        picture, settings = source.picture, self.augmentation
        box = ",".join(f"{v:.3f}" for v in crop.box)
        path = self.masks.path_for(
            picture.width, picture.height, settings.masks, file_digest, box, crop.flip, "x".join(map(str, shape)), settings.mask_minimum, MASK_VERSION
        )
        if not _is_intact(path, cache.check_mask):
            mask = source.mask(file, crop, shape, settings)
            if is_black(mask):
                if crop.name in ("", "flip"):
                    raise PistachioError(
                        f"The mask of '{picture.relative_path}' is black: nothing of the picture would be trained. "
                        "White is trained, black is not; correct the mask, or raise the mask's minimum in Augmentation Settings."
                    )
                return None
            cache.save_mask(path, mask)
        return path


def _mask_notes(settings: Augmentation, masked: int, items: list[EncodedItem]) -> list[str]:
    if settings.masks == "off":
        return []
    if not masked:
        where = "an alpha channel" if settings.masks == "alpha" else "a mask beside it ('name.mask.png' or 'masks/name.png')"
        raise PistachioError(f"No picture has {where}. Add masks, or set masks to 'off' in Augmentation Settings.")
    if masked == len(items):
        return []
    without = [item.relative_path for item in items if item.mask_path is None]
    return [counted(
        "encode.no_mask", len(without), "{count} picture without a mask is trained whole: {names}.",
        "{count} pictures without a mask are trained whole: {names}.", names=name_list(without),
    )]


def _distinct(dataset: Dataset) -> list[Picture]:
    """The first of each set of equal pictures, one with a caption if any has; folder order."""
    chosen: dict[str, Picture] = {}
    for picture in dataset.pictures:
        known = chosen.get(picture.content_hash)
        if known is None or (not known.caption and picture.caption):
            chosen[picture.content_hash] = picture
    return list(chosen.values())


def _is_intact(path: Path, check: Callable[[Path], Any]) -> bool:
    try:
        check(path)
    except CacheMiss as error:
        if path.exists():
            log.warning("%s", error)
        return False
    return True
