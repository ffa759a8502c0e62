"""Files of the tiny models, where stock loader nodes find them, and MODEL, CLIP and VAE loaded from them.

The files depend on nothing but this folder's code and ComfyUI's version: they are written once and kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import sparse, tiny_networks, tiny_text
from .tiny_networks import FAMILIES

# What a loader node's file widget says, by family. Checkpoints hold all three.
FILES = {
    "sd15": {"checkpoint": "tiny_sd15.safetensors"},
    "sdxl": {"checkpoint": "tiny_sdxl.safetensors"},
    "sd3": {
        "network": "tiny_sd3.safetensors", "vae": "tiny_vae_16.safetensors",
        "text_encoders": ("tiny_clip_l.safetensors", "tiny_clip_g.safetensors", "tiny_t5xxl.safetensors"),
    },
    "flux": {
        "network": "tiny_flux.safetensors", "vae": "tiny_vae_16.safetensors",
        "text_encoders": ("tiny_clip_l.safetensors", "tiny_t5xxl.safetensors"),
    },
    "wan21": {
        "network": "tiny_wan21.safetensors", "vae": "tiny_vae_wan.safetensors",
        "text_encoders": ("tiny_umt5xxl.safetensors",),
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiny:
    family: str
    model: Any  # MODEL; the network under it is shared by everyone who asked for this family
    clip: Any
    vae: Any
    latent_shape: tuple[int, ...]  # [1, C, (T,) h, w]
    condition: Callable[[str], list]  # caption -> CONDITIONING, as the graph's text node gives it


def _checkpoint(family: str) -> dict:
    config = tiny_networks.model_config(family)
    text = {f"clip_l.transformer.{name}": tensor for name, tensor in tiny_text.build_clip("clip_l").items()}
    if family == "sdxl":
        text |= {f"clip_g.transformer.{name}": tensor for name, tensor in tiny_text.build_clip("clip_g").items()}
    else:
        text.pop("clip_l.transformer.text_projection.weight")  # SD1.5's has none
    saved = config.process_clip_state_dict_for_saving(text)
    saved |= {f"model.diffusion_model.{name}": tensor for name, tensor in tiny_networks.build_network(family).items()}
    vae = tiny_networks.build_vae(FAMILIES[family].vae)
    return saved | {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}


# File under models/ -> what builds its state dict. Imports ComfyUI when called, not before.
BUILDERS: dict[str, Callable[[], dict]] = {
    "checkpoints/tiny_sd15.safetensors": lambda: _checkpoint("sd15"),
    "checkpoints/tiny_sdxl.safetensors": lambda: _checkpoint("sdxl"),
    "diffusion_models/tiny_sd3.safetensors": lambda: tiny_networks.build_network("sd3"),
    "diffusion_models/tiny_flux.safetensors": lambda: tiny_networks.build_network("flux"),
    "diffusion_models/tiny_wan21.safetensors": lambda: tiny_networks.build_network("wan21"),
    "text_encoders/tiny_clip_l.safetensors": lambda: tiny_text.build_clip("clip_l"),
    "text_encoders/tiny_clip_g.safetensors": lambda: tiny_text.build_clip("clip_g") | tiny_text.CLIP_G_MARK,
    "text_encoders/tiny_t5xxl.safetensors": tiny_text.build_t5,
    "text_encoders/tiny_umt5xxl.safetensors": tiny_text.build_umt5,
    "vae/tiny_vae_4.safetensors": lambda: tiny_networks.build_vae("taesd_4"),
    "vae/tiny_vae_16.safetensors": lambda: tiny_networks.build_vae("taesd_16"),
    "vae/tiny_vae_wan.safetensors": lambda: tiny_networks.build_vae("wan"),
}


def kept_folder(repository: Path, version: tuple[int, ...]) -> Path:
    """Where the files of this code and this ComfyUI are kept between test runs."""
    code = hashlib.sha256()
    for name in ("tiny_networks.py", "tiny_text.py", "tiny_models.py", "sparse.py"):
        code.update((Path(__file__).parent / name).read_bytes())
    return repository / ".host" / "tiny" / f"{'.'.join(map(str, version))}-{code.hexdigest()[:12]}"


def write_file(models: Path, name: str) -> Path:
    """Write one file of BUILDERS unless it is there; needs a booted host."""
    path = models / name
    if not path.exists():
        if not models.exists():  # the first file by this code: what other code left is of no use, and large
            for stale in models.parent.glob(f"{models.name.rsplit('-', 1)[0]}-*"):
                shutil.rmtree(stale, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        os.close(handle)
        sparse.write_sparse(Path(temporary), BUILDERS[name]())
        os.replace(temporary, path)  # two test runs may write the same file
    return path


def files_of(family: str) -> list[str]:
    files = FILES[family]
    if "checkpoint" in files:
        return [f"checkpoints/{files['checkpoint']}"]
    encoders = [f"text_encoders/{name}" for name in files["text_encoders"]]
    return [f"diffusion_models/{files['network']}", f"vae/{files['vae']}", *encoders]


def place(models: Path, kept: Path, family: str) -> None:
    """Make the family's files appear under a host's models folder."""
    for name in files_of(family):
        source, target = write_file(kept, name), models / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to(source)
        except OSError:  # Windows without the right to make links
            shutil.copyfile(source, target)


def load(family: str) -> Tiny:
    """Through the stock loader nodes, under inference mode, as a graph would."""
    import nodes
    import torch
    from comfy_extras import nodes_sd3

    files = FILES[family]
    with torch.inference_mode():
        if "checkpoint" in files:
            model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(files["checkpoint"])[:3]
        else:
            model = nodes.UNETLoader().load_unet(files["network"], "default")[0]
            vae = nodes.VAELoader().load_vae(files["vae"])[0]
            encoders = files["text_encoders"]
            if family == "sd3":
                clip = nodes_sd3.TripleCLIPLoader.execute(*encoders)[0]
            elif family == "flux":
                clip = nodes.DualCLIPLoader().load_clip(encoders[0], encoders[1], "flux")[0]
            else:
                clip = nodes.CLIPLoader().load_clip(encoders[0], "wan")[0]

    def condition(caption: str) -> list:
        with torch.inference_mode():
            return nodes.CLIPTextEncode().encode(clip, caption)[0]

    shape = FAMILIES[family].latent_shape
    return Tiny(family=family, model=model, clip=clip, vae=vae, latent_shape=shape, condition=condition)
