"""Checkpoints of a run side by side: the same prompts and seeds through each, by the host's own sampler.

Owns which checkpoints are worth a look and how they are sampled; the picture is `training.grid_picture`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.model_sampling
import comfy.sample
import torch
from PIL import Image

from ..training.errors import PistachioError
from ..training.folds import evidence_rows
from ..training.grid_picture import Column, Row, draw_grid
from ..training.run import Run, RunFolder
from .encode import check_clip, check_vae, text_encoder
from .lora import apply_lora
from .sampling import CFG_DISTILLED, CFG_FLOW, CFG_OTHER

DEFAULT_PROMPTS = 2  # held-out captions that are used when no prompt is written


@dataclass(frozen=True, kw_only=True, slots=True)
class GridSettings:
    prompts: tuple[str, ...] = ()  # empty: captions of held-out pictures
    negative_prompt: str = ""
    seed: int = 0
    num_seeds: int = 2
    num_steps: int = 20
    cfg: float = 0.0  # 0: automatic
    sampler: str = "euler"
    scheduler: str = "normal"
    width: int = 0  # pixels; 0: as trained
    height: int = 0
    with_base: bool = False


def columns_of(run: Run, *, with_base: bool = False) -> list[Column]:
    """The chosen checkpoint, both ends of the tie, a person's own choice and the last; a step once, with all of its roles."""
    folder = RunFolder(run.folder)
    report, saved = folder.report(), folder.checkpoint_steps()
    if not saved:
        raise PistachioError(f"Run '{run.name}' has no checkpoint yet. Let Train LoRA go on until its first evaluation.")
    roles: dict[int, list[str]] = {}

    def add(step: int | None, role: str) -> None:
        if step in saved:
            roles.setdefault(step, []).append(role)

    if report:
        add(report["chosen_step"], "chosen")
        tied = report["tied_steps"]
        if len(tied) > 1:
            add(tied[0], "first of the tie")
            add(tied[-1], "last of the tie")
        add((report.get("override") or {}).get("step"), "your choice")
    add(saved[-1], "trained on all pictures" if report and report.get("refit") else "last")
    measured = {row["step"]: row["loss_delta_pct"] for row in [*folder.metrics(), *evidence_rows(folder)] if row["kind"] == "eval"}
    is_refit = bool(report and report.get("refit"))
    columns = [
        Column(step=step, roles=tuple(found), note="not measured" if is_refit else held_out_words(measured.get(step)))
        for step, found in sorted(roles.items())
    ]
    return [Column(step=0, roles=("no LoRA",), note=""), *columns] if with_base else columns


def held_out_words(change_pct: float | None) -> str:
    return "not measured" if change_pct is None else f"held-out loss {change_pct:+.1f} %"


def checkpoint_grid(
    run: Run, model, clip, vae, settings: GridSettings, *, progress: Callable[[int, int], None] = lambda value, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> tuple[Image.Image, list[Column], list[Row]]:
    """The labelled picture, its columns and its rows. Call under the host's inference mode; the MODEL is left as it was."""
    check_clip(clip)
    check_vae(vae)
    columns = columns_of(run, with_base=settings.with_base)
    prompts = settings.prompts or _held_out_captions(run)
    encode = text_encoder(clip)
    positive, negative = [encode(prompt) for prompt in prompts], encode(settings.negative_prompt)
    width, height = size_of(run, settings)
    cells: list[list[Image.Image]] = []
    total, done = len(columns) * len(prompts) * settings.num_seeds, 0
    for column in columns:
        patched = apply_lora(model, RunFolder(run.folder).checkpoint_file(column.step)) if column.step else model
        pictures = []
        for condition in positive:
            for number in range(settings.num_seeds):
                pictures.append(sample_picture(patched, vae, condition, negative, settings, settings.seed + number, width, height, check_interrupted))
                done += 1
                progress(done, total)
        cells.append(pictures)
    rows = [
        Row(prompt=prompt, seed=settings.seed + number, pictures=tuple(pictures[i * settings.num_seeds + number] for pictures in cells))
        for i, prompt in enumerate(prompts) for number in range(settings.num_seeds)
    ]
    return draw_grid(columns, rows, title=f"{run.name}: the same prompts and seeds through each checkpoint"), columns, rows


def sample_picture(patcher, vae, positive, negative, settings: GridSettings, seed: int, width: int, height: int, check_interrupted) -> Image.Image:
    check_interrupted()
    step = int(vae.spacial_compression_decode())
    channels = patcher.model.latent_format.latent_channels
    empty = comfy.sample.fix_empty_latent_channels(patcher, torch.zeros(1, channels, max(1, height // step), max(1, width // step)))
    latent = comfy.sample.sample(
        patcher, comfy.sample.prepare_noise(empty, seed), settings.num_steps, settings.cfg or _automatic_cfg(patcher), settings.sampler,
        settings.scheduler, positive, negative, empty, callback=lambda *step_of: check_interrupted(), disable_pbar=True, seed=seed,
    )
    pixels = vae.decode(latent)
    pixels = pixels.reshape(-1, *pixels.shape[-3:])[0]  # of a video's frames the first
    if not torch.isfinite(pixels).all():
        raise PistachioError("The VAE gave values that are not finite. Load the VAE in fp32 or bf16.")
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def _automatic_cfg(patcher) -> float:
    if patcher.model.model_config.unet_config.get("guidance_embed"):
        return CFG_DISTILLED
    return CFG_FLOW if isinstance(patcher.get_model_object("model_sampling"), comfy.model_sampling.CONST) else CFG_OTHER


def _held_out_captions(run: Run) -> tuple[str, ...]:
    pictures = (RunFolder(run.folder).dataset() or {}).get("pictures", [])
    found = [p["caption"] for p in pictures if p["held_out"]] or [p["caption"] for p in pictures]
    if not found:
        raise PistachioError(f"Run '{run.name}' doesn't say what it was trained on. Write at least one prompt on Checkpoint Grid.")
    return tuple(dict.fromkeys(found))[:DEFAULT_PROMPTS]


def size_of(run: Run, settings: GridSettings) -> tuple[int, int]:
    pictures: Sequence[dict] = (RunFolder(run.folder).dataset() or {}).get("pictures", [])
    trained = (pictures[0]["width"], pictures[0]["height"]) if pictures else (512, 512)
    return settings.width or trained[0], settings.height or trained[1]
