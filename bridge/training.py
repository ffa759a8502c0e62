"""From the train node's inputs to a finished run: identity, checks, then the engine's loop."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Callable

import comfy.model_management
import comfyui_version
import torch

from ..dataset.types import EncodedDataset
from ..training.config import LoggingConfig, TrainConfig, to_dict
from ..training.errors import PistachioError, RunConflictError
from ..training.logging_wandb import WandbLogger
from ..training.loop import RunInfo, train
from ..training.run import Run, RunFolder, check_run_name
from ..version import VERSION
from .fingerprint import fingerprint
from .items import CachedItem, load_items
from .model import HostModel, refuse_untrainable

log = logging.getLogger("pistachio")

# Networks above this size are checkpointed by 'auto' on a GPU: their activations would not fit beside the weights.
AUTO_CHECKPOINTING_PARAMETERS = 1_500_000_000


def train_lora(
    patcher,
    encoded: EncodedDataset,
    config: TrainConfig,
    *,
    run_name: str,
    logging_config: LoggingConfig,
    runs_folder: Path,
    log_row: Callable[[dict], None],
    check_interrupted: Callable[[], None],
    continue_run: Run | None = None,
) -> Run:
    """Train, resume, extend or just return the run; see `_open_run` for which.

    Must be called under the host's inference mode. Raises PistachioError with what to change.
    """
    refuse_untrainable(patcher.model)
    _check_items(encoded)
    name = continue_run.name if continue_run else check_run_name(run_name)
    folder = RunFolder(continue_run.folder if continue_run else runs_folder / name)
    run = Run(name=name, folder=folder.path)
    model_hash = fingerprint(patcher, prefix="diffusion_model.")
    config = config.resolve_num_steps(len(encoded.train)) if continue_run is None else _extended(config, folder)
    with folder.locked():
        if not _open_run(folder, config, encoded, model_hash, extend=continue_run is not None):
            log.info("Run '%s' is finished already: returning it.", name)
            return run
        model = HostModel(patcher, precision=config.precision)
        train_set, held_out = load_items(encoded, model)
        checkpointing = _use_checkpointing(config, model)
        wandb = WandbLogger(logging_config, folder.path, name, to_dict(config))

        def log_everywhere(row: dict) -> None:
            wandb.log(row)
            log_row(row)

        report = None
        try:
            with model.training():
                _try_forward(model, train_set[0])
                train(
                    model, train_set, held_out, config, folder,
                    RunInfo(
                        name=name, trigger=encoded.trigger_word, split_id=encoded.split_id, base_model_hash=model_hash,
                        resolution=(encoded.items[0].width, encoded.items[0].height),
                        versions={"pistachio": VERSION, "comfyui": comfyui_version.__version__, "torch": torch.__version__},
                    ),
                    continued_from=folder.config()["continued_from"], checkpointing=checkpointing, log_row=log_everywhere, check_interrupted=check_interrupted,
                )
            report = folder.report()
        finally:
            wandb.finish(report)
            comfy.model_management.soft_empty_cache()
    return run


# ---- identity ------------------------------------------------------------


def _open_run(folder: RunFolder, config: TrainConfig, encoded: EncodedDataset, model_hash: str, *, extend: bool) -> bool:
    """True when there is something to train. The same settings, pictures and model resume; others are a conflict."""
    identity = {"settings": to_dict(config), "pictures": _pictures_hash(encoded), "base_model": model_hash}
    existing = folder.config()
    if existing is None or folder.load_state() is None:  # new, or refused before its first number: nothing to lose
        folder.write_json("dataset.json", _describe(encoded))
        folder.write_json("config.json", {"id": secrets.token_hex(8), "continued_from": 0, **identity})
        return True
    changed = _differences(existing, identity)
    if extend and changed == ["num_steps"]:
        report = folder.report() or {}
        folder.write_json("report.json", report | {"finished": False})
        folder.write_json("config.json", {"id": existing["id"], "continued_from": report.get("last_step", 0), **identity})
        return True
    if changed:
        raise RunConflictError(
            f"A run named '{folder.name}' exists with other settings ({', '.join(changed)}). "
            "Choose another run name on Train LoRA, or set them back to resume it."
        )
    report = folder.report()
    return not (report and report.get("finished"))


def _differences(existing: dict, identity: dict) -> list[str]:
    """Names of what changed, as the canvas calls it."""
    before, now = _flat(existing["settings"]), _flat(identity["settings"])
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    labels = {"pictures": "the pictures or captions", "base_model": "the base model"}
    return changed + [label for key, label in labels.items() if existing[key] != identity[key]]


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _extended(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """The new total: as asked, or half as much again."""
    existing = folder.config()
    if existing is None:
        raise PistachioError(f"Run '{folder.name}' has no config.json. Choose a run with Load Run.")
    before = existing["settings"]["num_steps"]
    report = folder.report()
    if report is None or not report.get("finished"):
        asked = config.num_steps or before
    else:
        asked = config.num_steps or before + (before + 1) // 2
    if asked < before:
        raise PistachioError(f"Run '{folder.name}' already has {before} steps. Set the number of steps above that on Train LoRA, or 0 for half as much again.")
    return replace(config, num_steps=asked)


def _pictures_hash(encoded: EncodedDataset) -> str:
    digest = hashlib.sha256(f"{encoded.trigger_word}|{encoded.vae_fingerprint}|{encoded.clip_fingerprint}".encode())
    for item in sorted(encoded.items, key=lambda item: item.content_hash):
        digest.update(json.dumps([item.content_hash, item.caption, item.prior_caption, item.width, item.height, item.held_out]).encode())
    return digest.hexdigest()[:16]


def _describe(encoded: EncodedDataset) -> dict:
    return {
        "folder": str(encoded.folder), "trigger_word": encoded.trigger_word, "split_id": encoded.split_id,
        "vae": encoded.vae_fingerprint, "clip": encoded.clip_fingerprint,
        "pictures": [
            {"content_hash": i.content_hash, "file": i.relative_path, "caption": i.caption, "width": i.width, "height": i.height, "held_out": i.held_out}
            for i in encoded.items
        ],
    }


# ---- checks --------------------------------------------------------------


def _check_items(encoded: EncodedDataset) -> None:
    if not encoded.train:
        raise PistachioError("No picture is left to train on: all are held out. Lower the held-out share on Split Dataset.")


def _try_forward(model: HostModel, item: CachedItem) -> None:
    """Shapes that don't fit show here, before anything is written as trained."""
    sigma_B = model.sigma_at(torch.tensor([0.5]))
    latents = item.latents.to(model.device)
    with torch.no_grad():
        try:
            model.predict(model.add_noise(latents, torch.zeros_like(latents), sigma_B), sigma_B, [item.condition])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise PistachioError(
                f"The model can't run on the encoded captions ({type(error).__name__}: {error}). The CLIP belongs to another model: "
                "connect this model's own text encoder to Encode Dataset."
            ) from error


def _use_checkpointing(config: TrainConfig, model: HostModel) -> bool:
    if config.block_checkpointing != "auto":
        chosen = config.block_checkpointing == "on"
    else:
        size = sum(p.numel() for p in model.network.parameters())
        chosen = model.device.type != "cpu" and size > AUTO_CHECKPOINTING_PARAMETERS
    if chosen and not model.blocks():
        raise PistachioError(f"{model.family} has no known blocks to checkpoint. Set block checkpointing to 'off' on Train LoRA.")
    log.info("Block checkpointing is %s (%d blocks).", "on" if chosen else "off", len(model.blocks()))
    return chosen
