"""A LoRA file in models/loras as the start of a run: which file, its content's hash, and which layers its names mean.

The names come from the host's own key map, so what its LoRA loader reads can be started from.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import replace
from pathlib import Path

import comfy.lora
import comfy.lora_convert
import folder_paths

from ..training.adapters.start import AdapterStart, Place, read_start
from ..training.config import AdapterConfig
from ..training.errors import PistachioError
from .lora import read_safetensors
from .model import HostModel

PREFIX, TEXT_PREFIX, SUFFIX = "diffusion_model.", "text_encoders.", ".weight"
# What trainers write before a name that the host maps without it, and what then stands in its place.
WRAPPERS = (
    ("base_model.model.", ""), ("unet.base_model.model.", ""), ("transformer.base_model.model.", "transformer."), ("model.diffusion_model.", PREFIX),
    ("base_model.model.transformer.", PREFIX), ("base_model.model.unet.", PREFIX), ("base_model.model.", PREFIX), ("transformer.", PREFIX),
    ("unet.", PREFIX), ("", PREFIX),
)


def with_start_hash(config: AdapterConfig) -> AdapterConfig:
    """The file's content becomes part of the run's identity: another file under the same name is another run."""
    if not config.start_from.strip():
        return replace(config, start_from="", start_from_hash="")
    digest = hashlib.sha256()
    with open(start_file(config.start_from), "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return replace(config, start_from_hash=digest.hexdigest()[:16])


def load_start(model: HostModel, config: AdapterConfig) -> AdapterStart | None:
    """None when the run starts from nothing. A file's text encoders are left out unless `model` trains them too."""
    if not config.start_from:
        return None
    file = start_file(config.start_from)
    try:
        tensors, _ = read_safetensors(file)
    except Exception as error:  # safetensors raises its own type for a broken file
        if type(error).__name__ != "SafetensorError":
            raise
        raise PistachioError(f"'{file.name}' can't be read as safetensors ({error}). Choose another file to start from in Adapter Settings.") from error
    key_map = comfy.lora.model_lora_keys_unet(model.base_model, {})
    clip = getattr(model, "clip", None)
    if clip is not None:
        text_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
        key_map |= {name: TEXT_PREFIX + key for name, key in text_map.items()}

    def place(name: str) -> Place | None:
        found = place_of(name, key_map)
        # Where text encoders are trained too, both stand under their prefix in the network.
        return replace(found, path=found.path.removeprefix(model.key_prefix)) if found else None

    return read_start(file.name, comfy.lora_convert.convert_lora(tensors), place, kind=config.kind, text_encoders=clip is not None)


def start_file(name: str) -> Path:
    """A .safetensors file below one of the host's LoRA folders."""
    name = name.strip().strip("\"'").replace("\\", "/")
    roots = [Path(folder).resolve() for folder in folder_paths.get_folder_paths("loras")]
    for root in roots:
        try:
            path = (root / name).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL byte, links in a circle
            continue
        if path.is_relative_to(root) and path.is_file() and path.suffix == ".safetensors":
            return path
    listed = folder_paths.get_filename_list("loras")
    near = difflib.get_close_matches(name, listed, n=3, cutoff=0.4) or listed[:3]
    raise PistachioError(
        f"'{name}' is no .safetensors file in {', '.join(map(str, roots))}. Put the LoRA there, or correct start_from in Adapter Settings"
        + (f"; near it are: {', '.join(near)}." if near else ".")
    )


def place_of(name: str, key_map: dict) -> Place | None:
    """The layer, under its prefix, that the host would patch for this name; a part of one where it keeps q, k and v fused."""
    candidates = [name, *(put + name.removeprefix(wrapper) for wrapper, put in WRAPPERS if name.startswith(wrapper))]
    target = next((key_map[candidate] for candidate in candidates if candidate in key_map), None)
    if target is None:
        return None
    key, offset, reorder = (target, None, None) if isinstance(target, str) else (*target, None, None)[:3]
    if not (key.startswith((PREFIX, TEXT_PREFIX)) and key.endswith(SUFFIX)) or (offset is not None and offset[0] != 0):
        return None
    return Place(path=key.removesuffix(SUFFIX), rows=None if offset is None else tuple(offset[1:]), reorder=reorder)
