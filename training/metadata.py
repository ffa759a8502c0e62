"""The metadata inside a LoRA file: what it is, what it was trained for, and how it measured.

Owns three vocabularies: `pistachio.*`, `modelspec.*` (Stability AI's ModelSpec 1.0.0) and the `ss_*`
keys of sd-scripts that A1111 and LoRA browsers read. safetensors allows strings alone, so lists are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone

from .config import AdapterConfig, TrainConfig
from .evaluation import LOSS_SPACE, PROTOCOL_VERSION
from .selection import EvaluationRecord, Selection, build_curve

# Host family -> (ModelSpec architecture, sd-scripts' or musubi-tuner's base version). A family that is not here keeps its own name.
BASES = {
    "SD15": ("stable-diffusion-v1", "sd_v1"),
    "SD20": ("stable-diffusion-v2", "sd_v2"),
    "SDXL": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "SD3": ("stable-diffusion-3", "sd3"),
    "Flux": ("flux-1-dev", "flux1"),
    "FluxSchnell": ("flux-1-schnell", "flux1"),
    "Flux2": ("Flux.2-dev", "flux2"),
    "Chroma": ("chroma", "chroma"),
    "Lumina2": ("lumina-2", "lumina2"),
    "HiDream": ("hidream-i1", "hidream_i1"),
    "QwenImage": ("Qwen-Image", "qwen_image"),
    "ZImage": ("Z-Image", "zimage"),
    "PixArtSigma": ("pixart-sigma", "pixart_sigma"),
    "WAN21_T2V": ("wan2.1", "wan2.1"),
    "WAN22_T2V": ("wan2.2", "wan2.2"),
    "HunyuanVideo": ("hunyuan-video", "hunyuan_video"),
    "LTXV": ("ltx-video", "ltx_video"),
}
TAGS = "character"  # what the pack trains; browsers sort by it
IMPLEMENTATION = "https://github.com/comfyanonymous/ComfyUI"  # its names for the layers, in ModelSpec's sense
FLOW_PREDICTION = "flow_matching"


def lora_metadata(
    *,
    name: str,
    step: int,
    family: str,
    config: TrainConfig,
    is_flow: bool,
    trigger: str,
    split_id: str,
    n_train: int,
    base_model_hash: str,
    base_file: str = "",
    versions: dict[str, str],
    records: Sequence[EvaluationRecord] = (),
    selection: Selection | None = None,
    weights: str = "ema",
    resolution: tuple[int, int] | None = None,
    created: datetime | None = None,
) -> dict[str, str]:
    """Metadata of the checkpoint at `step`.

    A checkpoint saved during the run has no `selection` yet, and then no state and no tied range.
    `base_file`: name of the base model's file, where it is known.
    `weights`: what the file holds, "ema", "raw", or "optimizer" for the average that a schedule-free optimiser keeps.
    """
    created = created or datetime.now(timezone.utc)
    architecture, base_version = BASES.get(family, (family.lower(), family.lower()))
    values: dict[str, object] = {
        "pistachio.eval_protocol": PROTOCOL_VERSION,
        "pistachio.loss_space": LOSS_SPACE,
        "pistachio.split_id": split_id,
        "pistachio.n_train": n_train,
        "pistachio.step": step,
        "pistachio.ema_decay": config.ema_decay,
        "pistachio.weights": weights,
        "pistachio.seed": config.seed,
        "pistachio.base_model_hash": base_model_hash,
        "pistachio.versions": versions,
        "pistachio.trigger": trigger,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": IMPLEMENTATION,
        "modelspec.title": name,
        "modelspec.date": created.isoformat(timespec="seconds"),
        "modelspec.tags": TAGS,
        "ss_output_name": name,
        "ss_base_model_version": base_version,
        "ss_learning_rate": config.optimizer.learning_rate,
        "ss_optimizer": config.optimizer.name,
        "ss_lr_scheduler": config.optimizer.schedule,
        "ss_steps": step,
        "ss_max_train_steps": config.num_steps,
        "ss_num_train_images": n_train,
        "ss_total_batch_size": config.effective_batch,
        "ss_seed": config.seed,
        "ss_v2": str(base_version == "sd_v2"),
        "ss_training_finished_at": created.timestamp(),
    }
    if base_file:
        values["ss_sd_model_name"] = base_file
    values |= _network_values(config.adapter)
    values |= _trigger_values(trigger, n_train) | _evaluation_values(step, records, selection)
    if is_flow:
        values["modelspec.prediction_type"] = FLOW_PREDICTION
    if resolution is not None:
        values["modelspec.resolution"] = f"{resolution[0]}x{resolution[1]}"
        values["ss_resolution"] = f"({resolution[0]}, {resolution[1]})"
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()}


def _network_values(adapter: AdapterConfig) -> dict[str, object]:
    """The adapter as sd-scripts and LyCORIS, whose files LoRA managers know, would have written it."""
    # Readers scale by alpha / dim; rsLoRA's alpha / sqrt(rank) is this alpha.
    alpha = adapter.alpha * adapter.rank**0.5 if adapter.rank_stabilised else adapter.alpha
    values: dict[str, object] = {
        "ss_network_module": "networks.lora" if adapter.kind == "lora" else "lycoris.kohya",
        "ss_network_dim": adapter.rank,
        "ss_network_alpha": alpha,
    }
    arguments: dict[str, str] = {}
    if adapter.kind != "lora":
        arguments["algo"] = "lora" if adapter.kind == "dora" else adapter.kind
    if adapter.kind == "dora":
        arguments["dora_wd"] = "True"
    if adapter.kind == "lokr":
        arguments["factor"] = str(adapter.lokr_factor)
    if adapter.rank_stabilised:
        arguments["rs_lora"] = "True"
    if adapter.targets == "all-linear+conv":
        arguments |= {"conv_dim": str(adapter.conv_rank or adapter.rank), "conv_alpha": f"{adapter.conv_alpha or adapter.alpha:g}"}
    if arguments:
        values["ss_network_args"] = arguments
    if adapter.dropout:
        values["ss_network_dropout"] = adapter.dropout
    if adapter.start_from:
        values |= {"pistachio.start_from": adapter.start_from, "pistachio.start_from_hash": adapter.start_from_hash}
    return values


def _trigger_values(trigger: str, n_train: int) -> dict[str, object]:
    if not trigger:
        return {}
    return {
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"Begin the prompt with '{trigger}'.",
        # LoRA browsers suggest the most frequent tags as words to use.
        "ss_tag_frequency": {"pistachio": {trigger: n_train}},
        "ss_datasets": [{"subsets": [{"class_tokens": trigger, "img_count": n_train}]}],
    }


def _evaluation_values(step: int, records: Sequence[EvaluationRecord], selection: Selection | None) -> dict[str, object]:
    if not records:
        return {"pistachio.n_eval": 0} | ({"pistachio.state": selection.state} if selection else {})
    curve = build_curve(records)
    values: dict[str, object] = {
        "pistachio.n_eval": curve.n_images,
        "pistachio.t_values": sorted({t for ts in records[0].t_values.values() for t in ts}),
        "pistachio.base_loss": curve.base_loss,
    }
    if step in curve.steps:
        c = curve.steps.index(step)
        values["pistachio.eval_delta"] = float(curve.delta_C[c])
        # One picture has no standard error; JSON has no infinity.
        values["pistachio.eval_se"] = curve.se(c, 0) if curve.n_images > 1 else None
    if selection is not None:
        values["pistachio.state"] = selection.state
        values["pistachio.tied_range"] = [selection.tied_lo, selection.tied_hi]
        if selection.tied_steps:
            values["modelspec.description"] = selection.verdict
    return values
