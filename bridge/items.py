"""Encoded pictures as the engine's items, read from the cache when a step asks for them.

A shape is known without reading; latents, masks and conditions pass through one bounded store, so that
10,000 pictures need no more memory than 200. Knows nothing about which picture is drawn when.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..dataset import cache
from ..dataset.cache import CacheMiss
from ..dataset.captions import has_trigger
from ..dataset.types import EncodedDataset, EncodedItem, EncodedSize
from ..training.batches import TrainSet
from ..training.errors import PistachioError
from ..training.messages import message
from .conditions import HostCondition, prepare
from .model import HostModel
from .text_encoder import TextTrainedModel

STORE_BYTES = 1 << 30  # latents and conditions kept in memory: a character's whole set, a part of a large one


# Network classes that make pictures from a video VAE's latents.
IMAGE_ONLY = frozenset({"QwenImage", "CosmosT2IPredict2", "Anima"})


# T5-XXL and UMT5-XXL give captions of one shape, so that only their names tell them apart.
UMT5 = "umt5xxl"
UMT5_TOKENIZERS = frozenset({"WanT5Tokenizer"})
T5_TOKENIZERS = frozenset({"MochiT5Tokenizer", "PixArtTokenizer", "LTXVT5Tokenizer", "CogVideoXT5Tokenizer", "FluxTokenizer", "SD3Tokenizer"})

# Root mean square of the latents in the network's space: each family is scaled to about 1.
USUAL_SIZE = (0.4, 2.5)
MEASURED_PICTURES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Regularization:
    """Ordinary pictures of the class, trained along so that the class stays what it was."""

    encoded: EncodedDataset
    share: float = 0.5  # of the steps
    weight: float = 1.0  # of their loss

    def __post_init__(self):
        if not 0 <= self.share <= 0.9:
            raise PistachioError(f"The regularisation share is {self.share}. Set it between 0 and 0.9 on Train LoRA.")
        if not 0 < self.weight <= 100:
            raise PistachioError(f"The regularisation weight is {self.weight}. Set it above 0 and at most 100 on Train LoRA.")


class _Store:
    """The most recently used values, at most `limit_bytes` of them together (and always the last one)."""

    def __init__(self, limit_bytes: float):
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, key: Hashable, read: Callable[[], Any]) -> Any:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key][0]
        value = read()
        self._values[key] = value, _size_bytes(value)
        self.size_bytes += self._values[key][1]
        while self.size_bytes > self.limit_bytes and len(self._values) > 1:
            self.size_bytes -= self._values.popitem(last=False)[1][1]
        return value


def _size_bytes(value: Any) -> int:
    if torch.is_tensor(value):
        return value.numel() * value.element_size()
    if isinstance(value, HostCondition):
        return sum(_size_bytes(argument.cond) for argument in value.arguments.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_size_bytes, value))
    return 0


class ItemReader:
    """Reads the cache's files into the model's own form."""

    def __init__(self, model: HostModel, *, store_bytes: float = STORE_BYTES):
        # Some networks take a part in encoding the caption: read later, the adapter in training would change it.
        self.reads_all = hasattr(model.network, "preprocess_text_embeds")
        self.base_model = model.base_model
        self.store = _Store(float("inf") if self.reads_all else store_bytes)
        # With the text encoder in training a caption's text is what a condition is made of, each time anew.
        self.live = model if isinstance(model, TextTrainedModel) else None
        self.texts: dict[Path, str] = {}  # file of a condition -> what it says
        self._groups: dict[tuple[Path, tuple[int, ...]], str] = {}

    def latents(self, path: Path, name: str) -> Tensor:
        return self.store.get(path, lambda: self._read_latents(path, name))

    def _read_latents(self, path: Path, name: str) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            latents = _present(cache.load_latent, path, name).float()
            if not torch.isfinite(latents).all():
                raise PistachioError(f"The VAE gave values that are not finite for '{name}'. Load the VAE in fp32 or bf16.")
            return self.base_model.process_latent_in(latents)

    def condition(self, path: Path, shape: tuple[int, ...], name: str) -> HostCondition:
        """`shape`: of the latents, which some networks are told."""
        return self.store.get((path, shape), lambda: self._read_condition(path, shape, name))

    def _read_condition(self, path: Path, shape: tuple[int, ...], name: str) -> HostCondition:
        with torch.inference_mode(False):
            if self.live is not None:
                return self.live.condition(self.texts[path], torch.zeros(shape))
            return prepare(self.base_model, _present(cache.load_condition, path, name), torch.zeros(shape))

    def group(self, path: Path, shape: tuple[int, ...], name: str) -> str:
        if (path, shape) not in self._groups:
            self._groups[path, shape] = sys.intern(self.condition(path, shape, name).group)
        return self._groups[path, shape]

    def mask(self, path: Path, name: str) -> Tensor:
        with torch.inference_mode(False):
            return self.store.get(path, lambda: _present(cache.load_mask, path, name))


def _present(load: Callable[[Path], Any], path: Path, name: str) -> Any:
    try:
        return load(path)
    except CacheMiss as error:
        raise PistachioError(f"The encoded '{name}' is gone from the cache. Queue again: Encode Dataset makes it anew.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedItem:
    """One picture at one size, with the attributes of a TrainItem and of an EvalItem."""

    reader: ItemReader
    source: EncodedItem
    size: EncodedSize
    empty_path: Path | None = None
    loss_weight: float = 1.0
    versioned: bool = True  # may be drawn flipped, cropped or with another caption
    index: int = 0  # of the version: the captions of the first crop, then those of the next

    @property
    def content_hash(self) -> str:
        return self.source.content_hash

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size.latent_shape

    @property
    def repeats(self) -> int:
        return self.source.repeats

    @property
    def num_versions(self) -> int:
        return len(self.size.latents) * (1 + len(self.source.more_captions)) if self.versioned else 1

    def version(self, index: int) -> "CachedItem":
        return CachedItem(
            reader=self.reader, source=self.source, size=self.size, empty_path=self.empty_path,
            loss_weight=self.loss_weight, versioned=self.versioned, index=index,
        )

    @property
    def _latent(self):
        return self.size.latents[self.index // (1 + len(self.source.more_captions))]

    @property
    def _caption(self):
        index = self.index % (1 + len(self.source.more_captions))
        return self.source.more_captions[index - 1] if index else self.source

    @property
    def latents(self) -> Tensor:
        return self.reader.latents(self._latent.path, self.source.relative_path)

    @property
    def mask(self) -> Tensor | None:
        path = self._latent.mask_path
        return None if path is None else self.reader.mask(path, self.source.relative_path)

    @property
    def condition(self) -> HostCondition:
        return self.reader.condition(self._caption.caption_path, self.shape, self.source.relative_path)

    @property
    def group(self) -> str:
        return self.reader.group(self._caption.caption_path, self.shape, self.source.relative_path)

    @property
    def prior_condition(self) -> HostCondition:
        return self.reader.condition(self._caption.prior_path, self.shape, self.source.relative_path)

    @property
    def prior_group(self) -> str:
        return self.reader.group(self._caption.prior_path, self.shape, self.source.relative_path)

    @property
    def empty_condition(self) -> HostCondition:
        return self.reader.condition(self.empty_path, self.shape, self.source.relative_path)

    @property
    def empty_group(self) -> str:
        return self.reader.group(self.empty_path, self.shape, self.source.relative_path)


def load_items(
    encoded: EncodedDataset, model: HostModel, *, regularization: Regularization | None = None, store_bytes: float = STORE_BYTES
) -> tuple[TrainSet, list[CachedItem]]:
    """What to train on and what is held out. PistachioError when a file is gone or the VAE was another model's."""
    check_text_encoder(encoded, model.base_model.model_config)
    reader = ItemReader(model, store_bytes=store_bytes)
    if encoded.empty_path is not None:
        _present(cache.check_condition, encoded.empty_path, "empty caption")
    train = tuple(
        CachedItem(reader=reader, source=item, size=size, empty_path=encoded.empty_path)
        for item in encoded.train for size in _checked_sizes(item, model)
    )
    held_out = [
        CachedItem(reader=reader, source=item, size=_checked_sizes(item, model)[0], versioned=False) for item in encoded.held_out
    ]
    for source in (encoded, *([regularization.encoded] if regularization else [])):
        reader.texts |= {path: text for item in source.items for caption in item.captions for path, text in caption.texts}
    if encoded.empty_path is not None:
        reader.texts[encoded.empty_path] = ""
    regular, share = (), 0.0
    if regularization is not None:
        _check_regularization(regularization.encoded, encoded)
        share = regularization.share
        regular = tuple(
            CachedItem(reader=reader, source=item, size=size, empty_path=encoded.empty_path, loss_weight=regularization.weight)
            for item in map(_without_trigger, regularization.encoded.items) for size in _checked_sizes(item, model)
        )
    if reader.reads_all:
        _read_all([*train, *held_out, *regular])
    return TrainSet(items=train, regularization=regular, regularization_share=share, caption_dropout=encoded.caption_dropout), held_out


def check_text_encoder(encoded: EncodedDataset, model_config) -> None:
    """A T5 in place of a UMT5, or the other way round, fits every shape and means nothing to the network."""
    try:
        target = model_config.clip_target({})
    except (KeyError, AttributeError, NameError, TypeError):
        return  # families whose encoder depends on the file
    wanted = getattr(getattr(target, "tokenizer", None), "__name__", "")
    given = encoded.text_encoders
    if given and ((wanted in UMT5_TOKENIZERS and UMT5 not in given) or (wanted in T5_TOKENIZERS and UMT5 in given)):
        own = "UMT5-XXL" if wanted in UMT5_TOKENIZERS else "T5-XXL"
        raise PistachioError(
            f"The captions were encoded with {' and '.join(given)}, and {type(model_config).__name__} was made with {own}. "
            f"Load {own} with Load CLIP and connect it to Encode Dataset."
        )


def vae_notes(train_set: TrainSet) -> list[str]:
    """A VAE of another family with as many channels shows in the size of its latents, if the families scale them differently."""
    pictures = train_set.pictures[:MEASURED_PICTURES]
    size = sum(item.latents.square().mean().item() for item in pictures) ** 0.5 / len(pictures) ** 0.5
    if USUAL_SIZE[0] <= size <= USUAL_SIZE[1]:
        return []
    return [message(
        "note.vae",
        "The VAE's latents are {times} times as large as this model's own usually are. If the VAE belongs to another model, "
        "connect this model's own to Encode Dataset; with very plain pictures or a special VAE this is no sign of anything.",
        times=f"{size:.2g}",
    )]


def _check_regularization(regular: EncodedDataset, own: EncodedDataset) -> None:
    if (regular.vae_fingerprint, regular.clip_fingerprint) != (own.vae_fingerprint, own.clip_fingerprint):
        raise PistachioError("The regularisation pictures were encoded with another VAE or CLIP. Connect the same ones to both Encode Dataset nodes.")
    shared = {item.content_hash for item in own.items} & {item.content_hash for item in regular.items}
    if shared:
        name = next(item.relative_path for item in regular.items if item.content_hash in shared)
        raise PistachioError(f"The regularisation picture '{name}' is also among the character's. Remove it from one of the two folders.")
    for item in regular.items:
        if any(has_trigger(caption.prior_caption, own.trigger_word) for caption in item.captions):
            raise PistachioError(
                f"The caption of the regularisation picture '{item.relative_path}' has the trigger word '{own.trigger_word}', which is the "
                "character's alone. Take it out of the caption."
            )


def _without_trigger(item: EncodedItem) -> EncodedItem:
    return replace(
        item, caption=item.prior_caption, caption_path=item.prior_path,
        more_captions=tuple(replace(c, caption=c.prior_caption, caption_path=c.prior_path) for c in item.more_captions),
    )


def _checked_sizes(item: EncodedItem, model: HostModel) -> list[EncodedSize]:
    """Every file of the item is whole and fits the model; headers alone are read."""
    sizes = []
    for size in item.sizes:
        shape = None
        for latent in size.latents:
            shape = _present(cache.latent_shape, latent.path, item.relative_path)
            if latent.mask_path is not None:
                _present(cache.check_mask, latent.mask_path, item.relative_path)
        _check_shape(shape, model)
        sizes.append(EncodedSize(width=size.width, height=size.height, latent_shape=shape, latents=size.latents))
    for caption in item.captions:
        _present(cache.check_condition, caption.caption_path, item.relative_path)
        _present(cache.check_condition, caption.prior_path, item.relative_path)
    return sizes


def _check_shape(shape: tuple[int, ...], model: HostModel) -> None:
    wanted = model.base_model.latent_format
    axes = wanted.latent_dimensions + 2
    if len(shape) != axes or shape[1] != wanted.latent_channels:
        raise PistachioError(
            f"The VAE doesn't belong to this model: it gave {shape[1]} channels in {len(shape)} axes, and {model.family} wants "
            f"{wanted.latent_channels} in {axes}. Connect this model's own VAE to Encode Dataset."
        )
    if axes == 5 and shape[2] > 1 and model.family in IMAGE_ONLY:
        raise PistachioError(f"{model.family} makes pictures, and the set holds videos. Train a video model such as Wan 2.1 on them, or use Load Image Folder.")


def _read_all(items: list[CachedItem]) -> None:
    for item in items:
        for index in range(item.num_versions):
            version = item.version(index)
            version.group, version.prior_group
            if item.empty_path is not None:
                version.empty_group
