"""adapter_config.json: the adapter in PEFT's own words.

PEFT opens the folder of a checkpoint on an object that holds the network as `diffusion_model`, as ComfyUI's does:

    config = PeftConfig.from_pretrained(folder)
    inject_adapter_in_model(config, model)
    set_peft_model_state_dict(model, load_peft_weights(folder))
"""

from __future__ import annotations

from typing import Iterable, Mapping

from ..config import AdapterConfig
from .base import Adapter

PEFT_TYPES = {"lora": "LORA", "dora": "LORA", "lokr": "LOKR", "loha": "LOHA"}


def peft_config(config: AdapterConfig, adapters: Mapping[str, Adapter], base_model: str, *, layers: Iterable[str], prefix: str) -> dict:
    """`layers`: the paths of every layer of the network; `prefix`: what the file's keys have before a path."""
    is_lora = config.kind in ("lora", "dora")
    root = config.rank_stabilised and is_lora  # PEFT's LoKr and LoHa have no rsLoRA: their alpha says it

    def alpha_of(adapter: Adapter) -> float:
        """The alpha from which PEFT computes the layer's scale."""
        return adapter.scale * (adapter.rank**0.5 if root else adapter.rank)

    alpha = config.alpha if root or not config.rank_stabilised else config.alpha * config.rank**0.5
    ranks = {path: adapter.rank for path, adapter in adapters.items() if adapter.rank != config.rank}
    # Rounding in alpha / rank * rank is no other alpha.
    alphas = {path: alpha_of(adapter) for path, adapter in adapters.items() if path in ranks or abs(alpha_of(adapter) / alpha - 1) > 1e-9}
    names = _names(adapters, layers, prefix)
    values = {
        "peft_type": PEFT_TYPES[config.kind],
        "base_model_name_or_path": base_model,
        "r": config.rank,
        ("lora_alpha" if is_lora else "alpha"): alpha,
        "target_modules": list(names.values()),
        "rank_pattern": {names[path]: rank for path, rank in ranks.items()},
        "alpha_pattern": {names[path]: alpha for path, alpha in alphas.items()},
        "inference_mode": True,
    }
    if is_lora:
        values |= {"lora_dropout": config.dropout, "bias": "none"}
    if config.kind == "dora":
        values["use_dora"] = True
    if root:
        values["use_rslora"] = True
    if config.kind == "lokr":
        values |= {"decompose_factor": config.lokr_factor, "decompose_both": False}
    if not is_lora:
        values["use_effective_conv2d"] = False
    return values


def _names(paths: Iterable[str], layers: Iterable[str], prefix: str) -> dict[str, str]:
    """Path -> its name for PEFT, which compares endings: a path that another one ends in is told apart by the prefix."""
    endings = {path[i + 1 :] for path in layers for i, letter in enumerate(path) if letter == "."}
    return {path: prefix + path if path in endings else path for path in paths}
