"""The frozen records that flow between the stages: pictures -> Dataset -> EncodedDataset.

They hold paths, texts and hashes, never pixels: 10,000 pictures cost a few megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedItem:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedDataset:
    items: tuple[EncodedItem, ...]
    trigger_word: str
    split_id: str
    folder: Path  # the pictures' folder
    vae_fingerprint: str
    clip_fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def train(self) -> tuple[EncodedItem, ...]:
        return tuple(item for item in self.items if not item.held_out)

    @property
    def held_out(self) -> tuple[EncodedItem, ...]:
        return tuple(item for item in self.items if item.held_out)
