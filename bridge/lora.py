"""Checkpoints of a run as LoRA files that the host lists and loads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import comfy.sd
import folder_paths
import torch
from safetensors import safe_open
from safetensors.torch import save

from ..dataset.files import atomic_write_bytes
from ..training.adapters.dora import PEFT_MAGNITUDE
from ..training.errors import PistachioError
from ..training.run import Run, RunFolder, check_run_name
from .lora_preview import preview_of, write_preview

RUN_ID = "pistachio.run_id"
TEXT_ENCODERS = "text_encoders."


def loras_folder() -> Path:
    folders = folder_paths.get_folder_paths("loras")
    if not folders:
        raise PistachioError("ComfyUI has no 'loras' folder. Add one to its models folder or to extra_model_paths.yaml.")
    return Path(folders[0])


def install_checkpoint(run: Run, step: int | None, name: str = "") -> str:
    """Copy a checkpoint (None: the chosen one) to models/loras; returns the name that LoRA loaders list.

    A file of the same name is replaced only when it is of the same run; else the name gets a number.
    """
    folder = RunFolder(run.folder)
    steps = folder.checkpoint_steps()
    step = folder.chosen_step() if step is None else step
    if step not in steps:
        listed = ", ".join(map(str, steps)) or "none yet: train it further"
        raise PistachioError(f"Run '{run.name}' has no checkpoint at step {step}. Choose one of its steps on Select Checkpoint: {listed}.")
    config = folder.config() or {}
    tensors, metadata = read_safetensors(folder.checkpoint_file(step))
    tensors = for_host(tensors)
    run_id = str(config.get("id", ""))
    target = _free_target(loras_folder(), check_run_name(name or run.name).removesuffix(".safetensors"), run_id)
    preview = preview_of(folder, step, run_id)
    metadata |= {RUN_ID: run_id, "ss_output_name": target.stem, "modelspec.title": target.stem} | _choice(folder.report() or {}, step) | _hashes(tensors)
    if preview is not None:
        metadata |= preview.metadata()
    if not _holds(target, tensors, metadata):  # else the host would take it for a new file, and generate everything again
        atomic_write_bytes(target, save(tensors, metadata=metadata))
    write_preview(target, preview, run_id)
    folder_paths.filename_list_cache.pop("loras", None)
    return target.name


def _choice(report: dict, step: int) -> dict[str, str]:
    """How the step came to be taken, for people who read the file's metadata."""
    chosen = report.get("chosen_step")
    if step != chosen:
        return {"modelspec.description": f"Step {step}, taken by hand" + (f"; the held-out pictures chose step {chosen}." if chosen else ".")}
    words = {
        "pistachio.state": report["state"], "pistachio.verdict": report["verdict"], "modelspec.description": report["verdict"],
        "pistachio.tied_range": json.dumps(report["tied_range"]),
    }
    if report.get("refit"):  # the state is that of the runs which chose the step, and this file was never measured
        words["pistachio.refit"] = json.dumps(report["refit"])
    return words


def _hashes(tensors: dict) -> dict[str, str]:
    """Of all that comes after the header, so that metadata may change: what Civitai calls AutoV3, and ModelSpec's own."""
    data = memoryview(save(tensors))
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little"):]).hexdigest()
    return {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}


def apply_lora(patcher, file: Path, strength: float = 1.0):
    """The MODEL with the LoRA on top, by the stock loader's own code; the given MODEL stays as it is."""
    tensors = for_host(read_safetensors(file)[0])
    # The part of the text encoder, if there is one, is not for this model: the host would warn of each key.
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(TEXT_ENCODERS)}
    with_lora, _ = comfy.sd.load_lora_for_models(patcher, None, own, strength, 0.0)
    return with_lora


def apply_lora_to_clip(clip, file: Path, strength: float = 1.0):
    """The CLIP with the LoRA's text encoder part on top; the given one when the file has none."""
    tensors = {key: tensor for key, tensor in for_host(read_safetensors(file)[0]).items() if key.startswith(TEXT_ENCODERS)}
    return comfy.sd.load_lora_for_models(None, clip, tensors, 0.0, strength)[1] if tensors else clip


def for_host(tensors: dict) -> dict:
    """Without what a checkpoint holds for PEFT alone: the host would warn of keys it doesn't know."""
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(f".{PEFT_MAGNITUDE}")}


def read_safetensors(file: Path) -> tuple[dict, dict[str, str]]:
    with safe_open(str(file), framework="pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})


def _holds(file: Path, tensors: dict, metadata: dict[str, str]) -> bool:
    if not file.exists():
        return False
    there, there_metadata = read_safetensors(file)
    return there_metadata == metadata and there.keys() == tensors.keys() and all(torch.equal(there[key], tensors[key]) for key in tensors)


def _free_target(folder: Path, stem: str, run_id: str) -> Path:
    for number in range(1, 1000):
        target = folder / (f"{stem}.safetensors" if number == 1 else f"{stem}-{number}.safetensors")
        if not target.exists() or (run_id and _run_id_of(target) == run_id):
            return target
    raise PistachioError(f"'{folder}' has 999 files named '{stem}'. Give the LoRA another name on Select Checkpoint.")


def _run_id_of(file: Path) -> str | None:
    try:
        with safe_open(str(file), framework="pt") as opened:
            return (opened.metadata() or {}).get(RUN_ID)
    except Exception as error:  # safetensors raises its own type for a broken file, which is then not ours
        if type(error).__name__ != "SafetensorError":
            raise
        return None
