"""What is exchanged in a bundled workflow so that it runs in seconds on the tiny models: file names, sizes, numbers of steps.

Everything else of the graph stays as it is bundled. Also builds the one tiny file that only a workflow needs:
SD3.5 as a single checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from . import sparse
from .build_workflows import TITLES, bundled

SD35_CHECKPOINT = "tiny_sd35_checkpoint.safetensors"
FOLDER = "my_character"
NUM_STEPS = 4

BUNDLED = {key: bundled(key) for key in TITLES}  # key -> file
REFERENCE = "reference.png"  # the one picture of a character sheet
SHEET_FOLDER = "sheet_of_my_character"

# Node type -> widget -> tiny value.
COMMON = {
    "PistachioEncodeDataset": {"resolution": 64},
    "PistachioTrainLora": {"num_steps": NUM_STEPS},
    "PistachioEvaluationSettings": {"num_evaluations": 2, "timesteps_per_image": 2},
    "EmptyLatentImage": {"width": 64, "height": 64},
    "EmptySD3LatentImage": {"width": 64, "height": 64},
    "EmptyHunyuanLatentVideo": {"width": 64, "height": 64, "length": 5},
    "KSampler": {"steps": 2},
}
FILES = {
    "sd15": {"CheckpointLoaderSimple": {"ckpt_name": "tiny_sd15.safetensors"}},
    "sdxl": {"CheckpointLoaderSimple": {"ckpt_name": "tiny_sdxl.safetensors"}},
    "sd35": {"CheckpointLoaderSimple": {"ckpt_name": SD35_CHECKPOINT}},
    "flux": {
        "UNETLoader": {"unet_name": "tiny_flux.safetensors"},
        "DualCLIPLoader": {"clip_name1": "tiny_clip_l.safetensors", "clip_name2": "tiny_t5xxl.safetensors"},
        "VAELoader": {"vae_name": "tiny_vae_16.safetensors"},
    },
    "wan21": {
        "UNETLoader": {"unet_name": "tiny_wan21.safetensors"},
        "CLIPLoader": {"clip_name": "tiny_umt5xxl.safetensors"},
        "VAELoader": {"vae_name": "tiny_vae_wan.safetensors"},
    },
}

# No file of Qwen-Image-Edit can be made small. A tiny Wan stands for it in its own graph: the same kind of VAE and of latents.
# For Kontext it is the family itself.
_SHEET = {
    "LoadImage": {"image": REFERENCE},
    "PistachioCharacterSheet": {"folder": SHEET_FOLDER, "pictures": 2, "resolution": 256},
    "PistachioCheckDataset": {"resolution": 256},
    "KSampler": {"steps": 1, "cfg": 1.0},
}
SHEETS = {
    # one picture: its text nodes enlarge the reference to a megapixel and encode it, once for each prompt
    "character_sheet": _SHEET | FILES["wan21"] | {
        "CLIPLoader": FILES["wan21"]["CLIPLoader"] | {"type": "wan"}, "PistachioCharacterSheet": _SHEET["PistachioCharacterSheet"] | {"pictures": 1},
    },
    "character_sheet_kontext": _SHEET | FILES["flux"],
}


def swaps(family: str, **train) -> dict[str, dict]:
    """The whole table of a family; `train` are more of the train node's, such as run_name."""
    table = COMMON | FILES[family]
    return table | {"PistachioTrainLora": COMMON["PistachioTrainLora"] | train}


def swap(prompt: dict, table: dict[str, dict]) -> dict:
    """The API prompt with the table's values. An input that the graph lacks is an error: the table would be stale."""
    swapped = {}
    for node_id, node in prompt.items():
        values = table.get(node["class_type"], {})
        missing = sorted(set(values) - set(node["inputs"]))
        if missing:
            raise KeyError(f"{node['class_type']} has no {', '.join(missing)}")
        swapped[node_id] = node | {"inputs": node["inputs"] | values}
    return swapped


def write_sd35_checkpoint(models: Path) -> Path:
    """SD3.5 as one file, from the tiny files in the models folder: network, VAE and the three text encoders."""
    target = models / "checkpoints" / SD35_CHECKPOINT
    if target.exists():
        return target
    parts = {
        "model.diffusion_model.": "diffusion_models/tiny_sd3",
        "first_stage_model.": "vae/tiny_vae_16",
        "text_encoders.clip_l.transformer.": "text_encoders/tiny_clip_l",
        "text_encoders.clip_g.transformer.": "text_encoders/tiny_clip_g",
        "text_encoders.t5xxl.transformer.": "text_encoders/tiny_t5xxl",
    }
    tensors = {}
    for prefix, name in parts.items():
        tensors |= {f"{prefix}{key}": tensor for key, tensor in load_file(models / f"{name}.safetensors").items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    sparse.write_sparse(target, tensors)
    return target
