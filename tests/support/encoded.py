"""An EncodedDataset on disk made of random latents and real captions, for tests of training itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from pistachio.dataset.cache import save_condition, save_latent
from pistachio.dataset.types import EncodedDataset, EncodedItem


def encoded_set(folder: Path, tiny, *, num_train: int = 5, num_held_out: int = 4, trigger: str = "zwx") -> EncodedDataset:
    items = []
    for index in range(num_train + num_held_out):
        content_hash = hashlib.sha256(f"picture {index}".encode()).hexdigest()
        latent_path = folder / f"{index}.latent.safetensors"
        latents = torch.randn(tiny.latent_shape, generator=torch.Generator().manual_seed(index))
        save_latent(latent_path, latents)
        caption = f"{trigger} woman, picture {index}"
        paths = {}
        for kind, text in (("caption", caption), ("prior", caption.removeprefix(f"{trigger} "))):
            paths[kind] = folder / f"{index}.{kind}.safetensors"
            save_condition(paths[kind], tiny.condition(text))
        items.append(EncodedItem(
            content_hash=content_hash, relative_path=f"{index}.png", caption=caption, prior_caption=f"woman, picture {index}",
            width=64, height=64, latent_path=latent_path, caption_path=paths["caption"], prior_path=paths["prior"],
            held_out=index >= num_train,
        ))
    return EncodedDataset(
        items=tuple(items), trigger_word=trigger, split_id="test", folder=folder, vae_fingerprint="vae", clip_fingerprint="clip"
    )
