"""The user's VAE and CLIP as the two callables that `dataset.encode` asks for, and their fingerprints.

Encodes exactly as the stock nodes do. Knows nothing about buckets' sizes beyond their step, nor about the cache's files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable

import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor

from ..dataset.augmentation import Augmentation
from ..dataset.encode import encode_dataset
from ..dataset.types import Dataset, EncodedDataset
from ..training.errors import PistachioError
from .fingerprint import fingerprint
from .folders import cache_folder
from .progress import NodeProgress, check_interrupted

PATCH_PX = 2  # latent pixels a side of a transformer's patch
UNET_STEP_PX = 64  # three halvings of the latent, without padding
SMALL_RESOLUTION = 512  # below it a step of 64 would leave few shapes to choose from


def encode(
    dataset: Dataset, vae, clip, *, trigger_word: str, resolution: int, allow_missing: bool, node_id: str,
    augmentation: Augmentation | None = None, latent_storage: str = "lossless",
) -> EncodedDataset:
    """Everything through VAE and CLIP, or from the cache. PistachioError when one of them does not fit."""
    check_vae(vae)
    check_clip(clip)
    check_clips(dataset, vae)
    encoded = encode_dataset(
        dataset,
        encode_latent=lambda pixels: encode_picture(vae, pixels),
        encode_text=text_encoder(clip),
        vae_fingerprint=vae_fingerprint(vae),
        clip_fingerprint=clip_fingerprint(clip),
        cache_folder=cache_folder(),
        trigger_word=trigger_word,
        resolution=resolution,
        allow_missing=allow_missing,
        step=bucket_step(vae, resolution),
        augmentation=augmentation or Augmentation(),
        latent_storage=latent_storage,
        progress=NodeProgress(node_id, unit="pictures and captions"),
        check_interrupted=check_interrupted,
    )
    return replace(encoded, text_encoders=text_encoder_names(clip))


def bucket_step(vae, resolution: int) -> int:
    """Pixels that bucket sides are multiples of: no network has to pad."""
    smallest = int(vae.spacial_compression_encode()) * PATCH_PX
    return smallest if resolution < SMALL_RESOLUTION else max(smallest, UNET_STEP_PX)


# ---- VAE ----------------------------------------------------------------------


def check_vae(vae) -> None:
    if vae is None or getattr(vae, "first_stage_model", None) is None:
        raise PistachioError("The VAE is empty: the loaded file has none. Load the model's VAE with Load VAE and connect it to Encode Dataset.")
    is_audio = vae.latent_dim == 1 or getattr(vae, "extra_1d_channel", None) is not None
    if is_audio or vae.output_channels != 3:
        kind = "sound" if is_audio else f"{vae.output_channels} channels"
        raise PistachioError(f"This VAE encodes {kind}, not RGB pictures. Connect the VAE that belongs to the MODEL to Encode Dataset.")
    if not callable(getattr(vae.first_stage_model, "encode", None)):
        raise PistachioError("This VAE can only decode. Load the full VAE of the model, not a preview decoder, and connect it to Encode Dataset.")


def check_clips(dataset: Dataset, vae) -> None:
    """Videos need a VAE of video models, and a number of frames that it takes."""
    clips = [picture for picture in dataset.pictures if picture.clip is not None]
    if not clips:
        return
    name = clips[0].relative_path
    if vae.latent_dim != 3 or vae.not_video:
        raise PistachioError(
            f"'{name}' is a video, and this VAE belongs to an image model. Train a video model such as Wan 2.1, or load the folder with Load Image Folder."
        )
    group = vae.temporal_compression_decode() or 1
    wrong = [picture for picture in clips if (picture.clip.num_frames - 1) % group]
    if wrong:
        frames = wrong[0].clip.num_frames
        near = frames // group * group + 1
        raise PistachioError(
            f"The clips of '{wrong[0].relative_path}' have {frames} frames, and this model takes {group}n + 1. "
            f"Write {near} or {near + group} on Load Video Folder."
        )


def encode_picture(vae, pixels: Tensor) -> Tensor:
    """[frames, H, W, 3] in 0..1 -> [1, C, (T,) h, w], as stock VAE Encode gives it, on the CPU."""
    check_interrupted()
    try:
        latent = vae.encode(pixels)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise PistachioError(
            f"This VAE can't encode {_what(pixels)} ({type(error).__name__}: {error}). "
            "Connect the VAE that belongs to the MODEL to Encode Dataset."
        ) from error
    if not torch.is_tensor(latent) or latent.ndim not in (4, 5) or latent.shape[0] != 1:
        shape = tuple(latent.shape) if torch.is_tensor(latent) else type(latent).__name__
        raise PistachioError(f"This VAE gives {shape} for one picture, which is no picture latent. Connect the VAE that belongs to the MODEL.")
    return latent.detach().float().cpu()


def _what(pixels: Tensor) -> str:
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    return f"a picture of {size}" if pixels.shape[0] == 1 else f"a clip of {pixels.shape[0]} frames of {size}"


def vae_fingerprint(vae) -> str:
    return f"{fingerprint(vae.patcher)}-{vae.vae_dtype}"


# ---- CLIP ---------------------------------------------------------------------


def check_clip(clip) -> None:
    if clip is None or getattr(clip, "cond_stage_model", None) is None:
        raise PistachioError(
            "The CLIP is empty: the loaded file has no text encoder. Load the model's text encoder with Load CLIP and connect it to Encode Dataset."
        )


def text_encoder(clip) -> Callable[[str], list]:
    def encode_text(text: str) -> list:
        check_interrupted()
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    return encode_text


def text_encoder_names(clip) -> tuple[str, ...]:
    """Such as ("clip_l", "t5xxl"): the host names the parts of its tokenizers so."""
    names = [name for name, part in vars(clip.tokenizer).items() if isinstance(part, comfy.sd1_clip.SDTokenizer)]
    # a lone encoder is called clip_<name>, whatever it is
    return tuple(sorted(name if name in ("clip_l", "clip_g", "clip_h") else name.removeprefix("clip_") for name in names))


def clip_fingerprint(clip) -> str:
    # The tokenizer and the layer of CLIP Set Last Layer change the result without changing a weight.
    return f"{fingerprint(clip.patcher)}-{type(clip.tokenizer).__name__}-{clip.layer_idx}"
