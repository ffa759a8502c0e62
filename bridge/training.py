"""From the train node's inputs to a finished run: identity, checks, then the engine's loop."""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Callable

import comfy.model_management
import comfyui_version
import torch

from ..dataset.quality_checks import check_encoded
from ..dataset.types import EncodedDataset, EncodedItem
from ..training.config import LoggingConfig, TrainConfig, to_dict
from ..training.config.memory import MemoryConfig
from ..training.errors import DeviceMemoryError, PistachioError, RunConflictError
from ..training.folds import FOLDS_FOLDER, Refit, needs_folds, refit_of
from ..training.kernels import open_door
from ..training.logging_tensorboard import TensorBoardLogger
from ..training.logging_wandb import WandbLogger
from ..training.loop import RunInfo, train
from ..training.report import note_row
from ..training.run import Run, RunFolder, check_run_name
from ..version import VERSION
from .attention import observed, settle_attention
from .control import listening
from .encode import clip_fingerprint
from .families import family_of
from .fingerprint import fingerprint
from .items import CachedItem, Regularization, load_items, vae_notes
from .lora_import import load_start, with_start_hash
from .model import HostModel, refuse_untrainable
from .preflight import try_backward
from .refit import is_refit_of, swap_words, train_on_all, without_end
from .run_memory import is_out_of_memory_at_first_step, plan_run
from .sampling import HostSampler, SampleSettings
from .text_encoder import TextTrainedModel, refuse_text_encoder

log = logging.getLogger("pistachio")

# Networks above this size are checkpointed by 'auto' on a GPU: their activations would not fit beside the weights.
AUTO_CHECKPOINTING_PARAMETERS = 1_500_000_000
TEXT_ENCODER_MARK = "+text-encoder"  # a run that trains both can't be resumed by one that does not
PICTURES_LABEL = "the pictures or captions"


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
    regularization: Regularization | None = None,
    samples: SampleSettings | None = None,
    clip=None,
    memory: MemoryConfig | None = None,
    base_file: str = "",
) -> Run:
    """Train, resume, extend or just return the run; see `_open_run` for which.

    `clip`: the CLIP that the captions were encoded with, to train it too; None trains the diffusion model alone.
    `memory`: None plans by itself on a card, and nothing on a CPU.
    `base_file`: name of the base model's file, for people and LoRA managers; empty where nobody knows it.

    Must be called under the host's inference mode. Raises PistachioError with what to change.
    """
    refuse_untrainable(patcher.model)
    _check_items(encoded)
    run = run_to_train(config, run_name=run_name, runs_folder=runs_folder, continue_run=continue_run)
    name, folder = run.name, RunFolder(run.folder)
    model_hash = fingerprint(patcher, prefix="diffusion_model.")
    if clip is not None:
        _check_clip(clip, encoded, config)
        model_hash += TEXT_ENCODER_MARK
    source = None
    if continue_run and run != continue_run:  # a new run, by the finished one's choice
        source, continue_run = RunFolder(continue_run.folder), None
        config = replace(config, num_steps=config.num_steps or source.config()["settings"]["num_steps"])
    config = config.resolve_num_steps(len(encoded.train)) if continue_run is None else _extended(config, folder)
    config = replace(config, adapter=with_start_hash(config.adapter))
    with folder.locked():
        pictures = _pictures_hash(encoded, regularization)
        if source is not None:
            _check_same(source, config, pictures, model_hash)
        base = {"family": family_of(patcher.model), "base_file": base_file}
        if not _open_run(folder, config, encoded, pictures, model_hash, base, extend=continue_run is not None):
            log.info("Run '%s' is finished already: returning it.", name)
            return run

        def say_phase(phase: str) -> None:
            log_row({"kind": "phase", "step": 0, "phase": phase})

        say_phase("loading")
        sampler = HostSampler(samples, encoded, run_name=name, check_interrupted=check_interrupted) if samples else None
        # Text encoders and VAE leave the device first: beside them the model might be loaded in part only.
        comfy.model_management.unload_all_models()
        plans = plan_run(
            patcher, encoded, config, memory, folder, model_hash=model_hash, runs_folder=runs_folder, regularization=regularization, sampler=sampler,
            trains_text=clip is not None,
        )
        patcher = plans.patcher
        model = HostModel(patcher, precision=config.precision) if clip is None else TextTrainedModel(patcher, clip, precision=config.precision)
        model.unload_others()
        start = load_start(model, config.adapter)
        kept = _kept(config, model) if plans.keep is None else None
        loggers = WandbLogger(logging_config, folder.path, name, to_dict(config)), TensorBoardLogger(logging_config, folder.path)

        def log_everywhere(row: dict) -> None:
            for logger in loggers:
                logger.log(row)
            log_row(row)

        def sit(part: RunFolder, pictures: EncodedDataset, settings: TrainConfig, refit: Refit | None = None) -> None:
            while True:
                try:
                    return sit_once(part, pictures, settings, refit)
                except (DeviceMemoryError, torch.OutOfMemoryError) as error:
                    if not is_out_of_memory_at_first_step(error):
                        raise
                    failed, words = error, str(error).splitlines()[0]
                    failed.__traceback__ = failed.__cause__ = failed.__context__ = None  # its frames hold the memory
                if not plans.fall_back(words, folder):
                    raise failed

        def sit_once(part: RunFolder, pictures: EncodedDataset, settings: TrainConfig, refit: Refit | None) -> None:
            keep = plans.keep or kept
            say_phase("caching")
            train_set, held_out = load_items(pictures, model, regularization=regularization)
            is_whole = part is folder  # and not one fold of it
            # A part whose last step other runs have chosen, or whose measurements choose one, is left to itself.
            takes_wishes = is_whole and refit is None
            with model.training(), plans.streaming(model) as ring, listening(name, makes_samples=sampler is not None) if takes_wishes else nullcontext() as wishes:
                with observed(model) as shapes:
                    _try_forward(model, train_set[0])
                attention_note = settle_attention(model, shapes, folder, batch_size=plans.batch_size or settings.batch_size, wanted=(memory or MemoryConfig()).attention)
                if attention_note:
                    log_row(note_row(0, attention_note))
                kernels = open_door((memory or MemoryConfig()).kernels, model.device, said=lambda text: log_row(note_row(0, text)))
                kernel_note = kernels.line if kernels.setting != "auto" else None
                for text in check_encoded(pictures, num_steps=settings.num_steps, batch=settings.effective_batch) if is_whole else ():
                    log.info("%s", text)
                    log_row(note_row(0, text))
                if model.notes:
                    try_backward(model, train_set[0], config, keep=keep)
                train(
                    model, train_set, held_out, settings, part,
                    RunInfo(
                        name=name if is_whole else f"{name}-{part.name}", trigger=pictures.trigger_word, split_id=pictures.split_id, base_model_hash=model_hash,
                        base_model=base_file, resolution=(pictures.items[0].width, pictures.items[0].height),
                        versions={"pistachio": VERSION, "comfyui": comfyui_version.__version__, "torch": torch.__version__}, notes=(*model.notes, *plans.notes, *filter(None, [attention_note, kernel_note]), *vae_notes(train_set)),
                        start=start,
                    ),
                    continued_from=part.config()["continued_from"], keep=keep, keep_in_ram=plans.keep_in_ram, memory=plans.record, ring=ring, refit=refit, wishes=wishes,
                    sampler=sampler.attach(model) if sampler and is_whole else None, save_interval_seconds=60 * logging_config.save_state_minutes,
                    # Steps begin again with each fold, so only the canvas sees them.
                    log_row=log_everywhere if is_whole else without_end(log_row), check_interrupted=check_interrupted,
                )

        report = None
        try:
            if needs_folds(config.evaluation):
                def open_part(part: RunFolder, split: EncodedDataset, settings: TrainConfig) -> bool:
                    return _open_run(part, settings, split, _pictures_hash(split, regularization), model_hash, base, extend=False)

                train_on_all(folder, encoded, config, source=source, open_part=open_part, sit=sit)
            else:
                sit(folder, encoded, config)
            report = folder.report()
        finally:
            for logger in loggers:
                logger.finish(report)
            comfy.model_management.soft_empty_cache()
    return run


def run_to_train(config: TrainConfig, *, run_name: str, runs_folder: Path, continue_run: Run | None) -> Run:
    """The run that `train_lora` writes: the continued one, or a new one of its own where that is trained again on all pictures."""
    if continue_run is None:
        name = check_run_name(run_name)
    elif is_refit_of(RunFolder(continue_run.folder), config):
        name = check_run_name(f"{continue_run.name}-all")
    else:
        return continue_run
    return Run(name=name, folder=runs_folder / name)


def _check_clip(clip, encoded: EncodedDataset, config: TrainConfig) -> None:
    refuse_text_encoder(clip)
    if clip_fingerprint(clip) != encoded.clip_fingerprint:
        raise PistachioError("The CLIP on Train LoRA isn't the one that encoded the captions. Connect Encode Dataset's CLIP, or disconnect it to train the model alone.")
    if config.adapter.start_from:
        raise PistachioError("Starting from a LoRA file serves the model alone. Disconnect 'clip' from Train LoRA, or empty 'start_from' in Adapter Settings.")


# ---- identity ------------------------------------------------------------


def _open_run(
    folder: RunFolder, config: TrainConfig, encoded: EncodedDataset, pictures: str, model_hash: str, base: dict[str, str], *, extend: bool
) -> bool:
    """True when there is something to train. The same settings, pictures and model resume; others are a conflict."""
    identity = {"settings": to_dict(config), "pictures": pictures, "base_model": model_hash}
    existing = folder.config()
    is_begun = folder.has_state() or (folder.path / FOLDS_FOLDER).is_dir()
    if existing is None or not is_begun:  # new, or refused before its first number: nothing to lose
        folder.write_json("dataset.json", _describe(encoded))
        folder.write_json("config.json", {"id": secrets.token_hex(8), "continued_from": 0, **base, **identity})
        return True
    changed = _differences(existing, identity)
    ended_at = folder.ended_at()
    was_stopped = ended_at is not None and ended_at < existing["settings"]["num_steps"] and not needs_folds(config.evaluation)
    if extend and (changed == ["num_steps"] or (not changed and was_stopped)):
        # One write: the report, which speaks of fewer steps, no longer counts as this run's.
        last_step = (folder.report() or {}).get("last_step", 0)
        folder.write_json("config.json", {"id": existing["id"], "continued_from": last_step, **base, **identity})
        return True
    swapped = swap_words(folder.dataset(), encoded) if changed == [PICTURES_LABEL] else ""
    another = "Disconnect continue_run on Train LoRA to train a new run" if extend else "Choose another run name on Train LoRA"
    if swapped:
        raise RunConflictError(
            f"Run '{folder.name}' measured with other pictures held out ({swapped}), and its numbers can't be compared with new ones. "
            f"{another}, or set the held-out pictures back on Split Dataset."
        )
    if changed:
        others = [name for name in changed if not extend or name != "num_steps"]
        raise RunConflictError(f"A run named '{folder.name}' exists with other settings ({', '.join(others)}). {another}, or set them back to resume it.")
    return not folder.is_finished()


def _differences(existing: dict, identity: dict) -> list[str]:
    """Names of what changed, as the canvas calls it."""
    # A run of an older version lacks the settings that came since: it was trained as their defaults say.
    before, now = _flat(to_dict(TrainConfig())) | _flat(existing["settings"]), _flat(identity["settings"])
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    labels = {"pictures": PICTURES_LABEL, "base_model": "the base model, or whether CLIP is connected to Train LoRA"}
    return changed + [label for key, label in labels.items() if existing[key] != identity[key]]


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _extended(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    """The new total: as asked, or where the run was stopped before its planned end, that end; else half as much again."""
    existing = folder.config()
    if existing is None:
        raise PistachioError(f"Run '{folder.name}' has no config.json. Choose a run with Load Run.")
    before, ended_at = existing["settings"]["num_steps"], folder.ended_at()
    is_whole = ended_at is not None and (ended_at >= before or needs_folds(config.evaluation))
    asked = config.num_steps or (before + (before + 1) // 2 if is_whole else before)
    if asked != before and needs_folds(config.evaluation):
        raise PistachioError(
            f"Run '{folder.name}' was trained on all pictures for the number of steps that its folds chose, so it can't be continued. "
            "Set a higher number of steps on Train LoRA under a new run name."
        )
    done = before if ended_at is None else min(ended_at, before)
    if asked < done:
        raise PistachioError(
            f"Run '{folder.name}' already has {done} steps. Set the number of steps above that on Train LoRA, or 0 for its planned end "
            "or, where it came to that, half as much again."
        )
    return replace(config, num_steps=asked)


def _check_same(source: RunFolder, config: TrainConfig, pictures: str, model_hash: str) -> None:
    """Settings, pictures and model must be those of `source`, but for the refit."""
    refit_of(source)  # refuses a run that has chosen nothing, before anything is written
    plain = replace(config, evaluation=replace(config.evaluation, refit=False))
    changed = _differences(source.config(), {"settings": to_dict(plain), "pictures": pictures, "base_model": model_hash})
    if changed:
        raise RunConflictError(
            f"Run '{source.name}' was trained with other settings ({', '.join(changed)}), so its number of steps doesn't hold for these. "
            "Set them as they were, and only refit on in Evaluation Settings."
        )


def _pictures_hash(encoded: EncodedDataset, regularization: Regularization | None = None) -> str:
    digest = hashlib.sha256(f"{encoded.trigger_word}|{encoded.vae_fingerprint}|{encoded.clip_fingerprint}".encode())
    for item in sorted(encoded.items, key=lambda item: item.content_hash):
        digest.update(json.dumps([item.content_hash, item.caption, item.prior_caption, item.width, item.height, item.held_out]).encode())
        versions = _versions(item)
        if versions:
            digest.update(json.dumps(versions).encode())
    if encoded.caption_dropout or encoded.latent_storage != "lossless":
        digest.update(json.dumps([encoded.caption_dropout, encoded.latent_storage]).encode())
    if regularization is not None:
        digest.update(json.dumps([_pictures_hash(regularization.encoded), regularization.share, regularization.weight]).encode())
    return digest.hexdigest()[:16]


def _versions(item: EncodedItem) -> list:
    """What augmentation added to a picture; empty when it is off."""
    if item.repeats == 1 and not (item.mask_path or item.more_latents or item.more_captions or item.more_sizes):
        return []
    # The files are named by their content.
    files = [[latent.path.stem, latent.mask_path.stem if latent.mask_path else ""] for size in item.sizes for latent in size.latents]
    return [item.repeats, files, [[caption.caption, caption.prior_caption] for caption in item.more_captions]]


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


def _kept(config: TrainConfig, model: HostModel) -> str:
    """What each block keeps for its backward."""
    if config.block_checkpointing != "auto":
        chosen = config.block_checkpointing == "on"
    else:
        size = sum(p.numel() for p in model.network.parameters())
        chosen = model.device.type != "cpu" and size > AUTO_CHECKPOINTING_PARAMETERS
    if chosen and not model.blocks():
        raise PistachioError(f"{model.family} has no known blocks to checkpoint. Set block checkpointing to 'off' on Train LoRA.")
    log.info("Block checkpointing is %s (%d blocks).", "on" if chosen else "off", len(model.blocks()))
    return "blocks" if chosen else "everything"
