"""Puts the demo's three model files where the host's stock loaders look for them.

`install_models(models_dir)` expands the compact weights in `weights/` to the stock layouts and
generates the text encoder: UNETLoader, CLIPLoader (type sd3) and VAELoader then load them by the
names below. Files that are there already, from the same weights, are left alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from . import text_encoder

WEIGHTS = Path(__file__).parent / "weights"
DIT_NAME = "pistachio_demo_dit.safetensors"
CLIP_NAME = "pistachio_demo_clip_l.safetensors"
VAE_NAME = "pistachio_demo_vae.safetensors"
METADATA_KEY = "pistachio_demo_source"


def _digest(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _installed_digest(path: Path) -> str | None:
    if not path.exists():
        return None
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)).get("__metadata__", {}).get(METADATA_KEY)


def _expand_dit(source: Path) -> dict:
    from safetensors.torch import load_file

    from .pretrain.dit import stock_state

    return stock_state(load_file(source))


def _expand_vae(source: Path) -> dict:
    from safetensors.torch import load_file

    from .pretrain.vae import stock_state

    parts: dict[str, dict] = {"encoder": {}, "decoder": {}}
    for key, value in load_file(source).items():
        half, _, rest = key.partition(".")
        parts[half][rest] = value.float()
    return {key: value.half() if value.ndim else value for key, value in stock_state(**parts).items()}


def install_models(models_dir: str | Path) -> dict[str, Path]:
    """Writes what is missing or outdated; the paths by kind: `dit`, `clip`, `vae`."""
    from safetensors.torch import save_file

    models_dir = Path(models_dir)
    dit, vae, code = WEIGHTS / "dit.safetensors", WEIGHTS / "vae.safetensors", Path(__file__).parent / "pretrain"
    targets = {
        "dit": (models_dir / "diffusion_models" / DIT_NAME, _digest(dit, code / "dit.py"), lambda: _expand_dit(dit)),
        "vae": (models_dir / "vae" / VAE_NAME, _digest(vae, code / "vae.py"), lambda: _expand_vae(vae)),
    }
    out: dict[str, Path] = {}
    for kind, (path, digest, expand) in targets.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if _installed_digest(path) != digest:
            partial = path.with_suffix(".partial")
            save_file(expand(), partial, metadata={METADATA_KEY: digest})
            partial.replace(path)
        out[kind] = path
    clip = models_dir / "text_encoders" / CLIP_NAME
    clip.parent.mkdir(parents=True, exist_ok=True)
    digest = _digest(Path(text_encoder.__file__))
    if _installed_digest(clip) != digest:
        text_encoder.write_clip_l(clip, {METADATA_KEY: digest})
    out["clip"] = clip
    return out
