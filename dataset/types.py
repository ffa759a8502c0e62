"""The frozen records that flow between the stages: pictures -> Dataset -> EncodedDataset.

They hold paths, texts and hashes, never pixels: 10,000 pictures cost a few tens of megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """Which frames of a video: frame i is the one shown at start_seconds + i / fps."""

    start_seconds: float
    num_frames: int  # 4n + 1
    fps: float  # frames a second after resampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """What a detector found in a picture, in the picture's pixels."""

    left: float
    top: float
    width: float
    height: float
    kind: str = "subject"  # "face" or "subject"
    score: float = 1.0  # 0..1, where the detector gives one


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    path: Path  # absolute
    relative_path: str  # from the dataset's folder, with forward slashes
    width: int  # pixels, after EXIF rotation
    height: int
    content_hash: str  # sha256 hex of the decoded RGB pixels and their size: edits of metadata don't change it
    caption: str | None  # None: there is no sidecar; "" is an empty one
    difference_hash: int  # 64-bit, for near-duplicates
    colour_grid: bytes = b""  # 8x8 mean RGB, 192 bytes: tells apart drawings of one layout; empty: unknown
    more_captions: tuple[str, ...] = ()  # other captions of the same picture
    mask_path: Path | None = None
    clip: Clip | None = None  # a part of a video; None: a picture
    boxes: tuple[Box, ...] = ()  # empty: nothing was looked for, or nothing was found

    @property
    def caption_path(self) -> Path:
        return self.path.with_suffix(".txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    relative_path: str
    reason: str  # a sentence for the user


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    split_id: str  # 16 hex digits from the sorted content hashes and the share
    train: tuple[str, ...]  # content hashes, sorted
    held_out: tuple[str, ...]
    notes: tuple[str, ...] = ()  # sentences for the user


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    folder: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...] = ()
    trigger_word: str = ""
    split: Split | None = None
    notes: tuple[str, ...] = ()  # sentences for the user
    held_out_marks: tuple[str, ...] = ()  # relative paths that a person marked in the review


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedLatent:
    """One crop of a picture."""

    path: Path  # safetensors: "latent" [1, C, (T,) h, w], as the VAE gave it
    mask_path: Path | None = None  # safetensors: "mask" [1, 1, (1,) h, w]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedCaption:
    caption: str
    prior_caption: str
    caption_path: Path
    prior_path: Path

    @property
    def texts(self) -> tuple[tuple[Path, str], ...]:
        return (self.caption_path, self.caption), (self.prior_path, self.prior_caption)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSize:
    """A picture at one training size: the crop at the centre first, then flipped and random ones."""

    width: int  # pixels of the training crop
    height: int
    latent_shape: tuple[int, ...]
    latents: tuple[EncodedLatent, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedItem:
    """A picture; what it is evaluated with are the plain fields, and `more_...` are for training alone."""

    content_hash: str
    relative_path: str
    caption: str  # the literal text encoded, trigger included
    prior_caption: str  # the same text without the trigger
    width: int  # pixels of the training crop
    height: int
    latent_path: Path  # safetensors: "latent" [1, C, (T,) h, w], as the VAE gave it
    caption_path: Path  # a cached CONDITIONING
    prior_path: Path
    held_out: bool
    latent_shape: tuple[int, ...] = ()  # empty: ask the file
    mask_path: Path | None = None
    repeats: int = 1
    more_latents: tuple[EncodedLatent, ...] = ()
    more_captions: tuple[EncodedCaption, ...] = ()
    more_sizes: tuple[EncodedSize, ...] = ()
    near_duplicate_of: str = ""  # content hash of the first picture of its group; the picture's own when it has no double

    @property
    def sizes(self) -> tuple[EncodedSize, ...]:
        first = EncodedLatent(path=self.latent_path, mask_path=self.mask_path)
        return (
            EncodedSize(width=self.width, height=self.height, latent_shape=self.latent_shape, latents=(first, *self.more_latents)),
            *self.more_sizes,
        )

    @property
    def captions(self) -> tuple[EncodedCaption, ...]:
        first = EncodedCaption(
            caption=self.caption, prior_caption=self.prior_caption, caption_path=self.caption_path, prior_path=self.prior_path
        )
        return (first, *self.more_captions)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedDataset:
    items: tuple[EncodedItem, ...]
    trigger_word: str
    split_id: str
    folder: Path  # the pictures' folder
    vae_fingerprint: str
    clip_fingerprint: str
    notes: tuple[str, ...] = ()
    latent_storage: str = "lossless"
    text_encoders: tuple[str, ...] = ()  # the host's names of those that the CLIP holds; empty: unknown
    caption_dropout: float = 0.0  # share of the training samples that get the empty caption
    empty_path: Path | None = None  # the empty caption's CONDITIONING; there when captions are dropped

    @property
    def train(self) -> tuple[EncodedItem, ...]:
        return tuple(item for item in self.items if not item.held_out)

    @property
    def held_out(self) -> tuple[EncodedItem, ...]:
        return tuple(item for item in self.items if item.held_out)
