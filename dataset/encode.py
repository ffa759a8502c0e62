"""Dataset -> EncodedDataset: every picture through the VAE once, every distinct caption through CLIP once.

The encoders come in as two callables and two fingerprints. Owns what is cached under which key and
the order of work: all texts first, then all pictures, so that the host swaps models once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Callable

from torch import Tensor

from ..training.errors import PistachioError
from .buckets import assign_bucket, bucket_note, fit
from .cache import (
    CacheMiss, ConditionCache, LatentCache, load_condition, load_latent, save_condition, save_latent, total_finite,
)
from .captions import with_trigger, without_trigger
from .checks import check_trainable
from .folder import plural
from .images import content_hash, read_rgb
from .split import is_held_out, split_dataset
from .types import Dataset, EncodedDataset, EncodedItem, Picture

log = logging.getLogger(__name__)

CROP_VERSION = "cover-lanczos-centre-1"  # change it when `buckets.fit` changes its pixels


def encode_dataset(
    dataset: Dataset,
    *,
    encode_latent: Callable[[Tensor], Tensor],  # [1, H, W, 3] in 0..1 -> [1, C, (T,) h, w]
    encode_text: Callable[[str], Any],  # -> the host's conditioning
    vae_fingerprint: str,
    clip_fingerprint: str,
    cache_folder: Path,
    trigger_word: str = "",
    resolution: int,  # pixels: buckets have about this area squared
    step: int,  # bucket sides are multiples of it
    allow_missing: bool = False,  # a picture without a caption gets the trigger word alone
    progress: Callable[[int, int], None] = lambda done, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> EncodedDataset:
    """Encode what is not in the cache yet; each file is saved at once, so a cancelled job goes on where it was.

    A dataset without a split gets the default one. Raises PistachioError as `check_trainable` does,
    and when an encoder gives NaN or a picture changed since the folder was read.
    """
    trigger = trigger_word.strip() or dataset.trigger_word
    notes = list(check_trainable(dataset, trigger_word=trigger, allow_missing_captions=allow_missing))
    if dataset.split is None:
        dataset = split_dataset(dataset)
        notes.append(f"No split was connected: {plural(len(dataset.split.held_out), 'picture')} of {len(dataset.pictures)} held out, the usual 20 %.")
    pictures = _distinct(dataset)
    captions = {p.content_hash: with_trigger(p.caption or "", trigger) for p in pictures}
    priors = {key: without_trigger(caption, trigger) for key, caption in captions.items()}
    texts = sorted(set(captions.values()) | set(priors.values()))
    latents, conditions = LatentCache(folder=Path(cache_folder)), ConditionCache(folder=Path(cache_folder))
    latents.remove_stale()
    conditions.remove_stale()
    total = len(texts) + len(pictures)
    done = encoded = 0

    text_paths: dict[str, Path] = {}
    for text in texts:
        check_interrupted()
        text_paths[text] = path = conditions.path_for(clip_fingerprint, text)
        if not _is_intact(path, load_condition):
            conditioning = encode_text(text)
            if not total_finite(conditioning):
                raise PistachioError(f"The text encoder gave NaN or infinity for the caption '{text}'. Load the CLIP in fp16 or fp32, or use another file.")
            save_condition(path, conditioning)
            encoded += 1
        done += 1
        progress(done, total)

    items = []
    for picture in pictures:
        check_interrupted()
        width, height = bucket = assign_bucket(picture.width, picture.height, resolution=resolution, step=step)
        note = bucket_note(picture.relative_path, picture.width, picture.height, bucket, resolution)
        if note:
            notes.append(note)
        path = latents.path_for(picture.content_hash, vae_fingerprint, width, height, CROP_VERSION)
        if not _is_intact(path, load_latent):
            save_latent(path, _encode_picture(picture, width, height, encode_latent))
            encoded += 1
        caption, prior = captions[picture.content_hash], priors[picture.content_hash]
        items.append(
            EncodedItem(
                content_hash=picture.content_hash, relative_path=picture.relative_path, caption=caption, prior_caption=prior,
                width=width, height=height, latent_path=path, caption_path=text_paths[caption], prior_path=text_paths[prior],
                held_out=is_held_out(dataset, picture),
            )
        )
        done += 1
        progress(done, total)
    log.info("Encoded %d of %d pictures and captions; the rest were in the cache.", encoded, total)
    return EncodedDataset(
        items=tuple(items), trigger_word=trigger, split_id=dataset.split.split_id, folder=dataset.folder,
        vae_fingerprint=vae_fingerprint, clip_fingerprint=clip_fingerprint,
        notes=(*dataset.notes, *dataset.split.notes, *notes),
    )


def _distinct(dataset: Dataset) -> list[Picture]:
    """The first of each set of equal pictures, one with a caption if any has; folder order."""
    chosen: dict[str, Picture] = {}
    for picture in dataset.pictures:
        known = chosen.get(picture.content_hash)
        if known is None or (not known.caption and picture.caption):
            chosen[picture.content_hash] = picture
    return list(chosen.values())


def _is_intact(path: Path, load: Callable[[Path], Any]) -> bool:
    if not path.exists():
        return False
    try:
        load(path)
    except CacheMiss as error:
        log.warning("%s", error)
        return False
    return True


def _encode_picture(picture: Picture, width: int, height: int, encode_latent: Callable[[Tensor], Tensor]) -> Tensor:
    image = read_rgb(picture.path)
    if content_hash(image) != picture.content_hash:
        raise PistachioError(f"'{picture.relative_path}' changed after the folder was read. Queue again.")
    latent = encode_latent(fit(image, width, height))
    if not total_finite(latent):
        raise PistachioError(
            f"The VAE gave NaN or infinity for '{picture.relative_path}'. Use a VAE that works in half precision, or start ComfyUI with --fp32-vae."
        )
    return latent
