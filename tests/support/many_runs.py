"""Folders of runs as training leaves them, without the training: many, long ones, by the writers that training uses.

The numbers are drawn from formulas with a fixed seed. Runs of one character and one family hold out the same pictures
and began at the same losses, so that their curves may share a chart; others may not.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from pistachio.training.config import AdapterConfig, EvaluationConfig, TrainConfig, to_dict
from pistachio.training.metadata import lora_metadata
from pistachio.training.report import build_report, eval_rows, gap_rows, seconds_spent, write_report
from pistachio.training.run import RunFolder
from pistachio.training.samples import SamplePicture, sample_row
from pistachio.training.selection import EvaluationRecord, select

CHARACTERS = (("mia", "ohwx"), ("tom", "tmx"), ("ada", "adx person"), ("leo", "zkl"), ("noor", "nrx"))
FAMILIES = ("SDXL", "Flux", "SD15", "Wan 2.1")
NUM_PICTURES, NUM_HELD_OUT, DRAWS = 24, 6, 4
NEWEST = 1_760_000_000  # seconds since 1970
RUN_INTERVAL_SECONDS = 9_000
SAMPLE_PX = 256


def write_runs(root: Path, *, count: int = 100, num_steps: int = 1000, num_evaluations: int = 20, with_files: int = 3) -> list[RunFolder]:
    """Newest first, as they are listed. The first `with_files` also have checkpoints, samples and the drawn curve."""
    return [
        write_run(root, index, num_steps=num_steps, num_evaluations=num_evaluations, with_files=index < with_files)
        for index in range(count)
    ]


def write_run(root: Path, index: int, *, num_steps: int = 1000, num_evaluations: int = 20, with_files: bool = True, is_finished: bool = True) -> RunFolder:
    """Its name, character, family and curve follow from `index`; no two are alike."""
    character, trigger = CHARACTERS[index % len(CHARACTERS)]
    family = FAMILIES[index // len(CHARACTERS) % len(FAMILIES)]
    folder = RunFolder(root / f"{character} {family.lower().replace(' ', '-')} {index + 1:03d}")
    folder.path.mkdir(parents=True)
    config = TrainConfig(
        num_steps=num_steps, seed=index, adapter=AdapterConfig(rank=8 * (1 + index % 4), alpha=8.0),
        evaluation=EvaluationConfig(num_evaluations=num_evaluations, timesteps_per_image=DRAWS),
    )
    pictures = [hashlib.sha256(f"{character} {number}".encode()).hexdigest() for number in range(NUM_PICTURES)]
    held_out = pictures[:NUM_HELD_OUT]
    folder.write_json("dataset.json", _dataset(character, trigger, pictures, held_out))
    settings = to_dict(config)
    folder.write_json("config.json", {
        "id": hashlib.sha256(folder.name.encode()).hexdigest()[:16], "continued_from": 0, "family": family, "settings": settings,
        "pictures": pictures[0][:16], "base_model": hashlib.sha256(family.encode()).hexdigest()[:32],
    })
    records = _records(index, family, held_out, num_steps, num_evaluations)
    rows = _rows(index, records, num_steps)
    if with_files:
        rows = _with_samples(folder, rows, records, trigger, every=max(1, num_evaluations // 5))
        for record in records[1:]:
            _write_checkpoint(folder, record.step, config, family, trigger, records)
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if is_finished:
        selection = select(records)
        report = build_report(
            run=folder.name, selection=selection, records=records, settings=settings, seed=config.seed, versions={"pistachio": "test"},
            split_id=pictures[0][:8], n_train=NUM_PICTURES - NUM_HELD_OUT,
        ) | {"finished": True, "trigger": trigger, "seconds": seconds_spent(rows), "gap": gap_rows(rows)}
        if with_files:
            write_report(folder.path, report, rows, selection)
        else:  # drawing the curve takes most of a second
            folder.write_json("report.json", report)
    when = NEWEST - index * RUN_INTERVAL_SECONDS
    os.utime(folder.path / "config.json", (when, when))
    return folder


def _dataset(character: str, trigger: str, pictures: list[str], held_out: list[str]) -> dict:
    return {
        "folder": f"/pictures/{character}", "trigger_word": trigger, "split_id": pictures[0][:8], "vae": "vae", "clip": "clip",
        "pictures": [
            {"content_hash": h, "file": f"{number:02d}.png", "caption": f"{trigger}, picture {number}", "width": 1024, "height": 1024, "held_out": h in held_out}
            for number, h in enumerate(pictures)
        ],
    }


def _records(index: int, family: str, held_out: list[str], num_steps: int, num_evaluations: int) -> list[EvaluationRecord]:
    """The loss falls fast, then slowly; in every third run it rises again."""
    chance = random.Random(index)
    depth, pace = chance.uniform(0.06, 0.3), chance.uniform(3, 7)
    rise = chance.uniform(0.05, 0.2) if index % 3 == 2 else 0.0
    steps = [round(num_steps * i / num_evaluations) for i in range(num_evaluations + 1)]
    t_values = {h: tuple((j + 0.5) / DRAWS for j in range(DRAWS)) for h in held_out}
    records = []
    for step in steps:
        share = step / num_steps
        factor = 1 - depth * (1 - math.exp(-pace * share)) + rise * max(0.0, share - 0.5)
        errors = {
            h: tuple(_base_loss(family, h, j) * (factor + (chance.gauss(0, 0.008) if step else 0.0)) for j in range(DRAWS)) for h in held_out
        }
        records.append(EvaluationRecord(step=step, errors=errors, seconds=0.8, t_values=t_values))
    return records


def _base_loss(family: str, content_hash: str, draw: int) -> float:
    return 0.05 + random.Random(f"{family} {content_hash} {draw}").uniform(0.02, 0.12) * (1 + draw)


def _rows(index: int, records: list[EvaluationRecord], num_steps: int) -> list[dict]:
    chance = random.Random(1000 + index)
    evaluations = {row["step"]: row for row in eval_rows(records)}
    rows, smooth = [evaluations[0]], None
    for step in range(1, num_steps + 1):
        loss = 0.16 * math.exp(-2 * step / num_steps) + chance.uniform(0.02, 0.2)
        smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
        rows.append({
            "kind": "train", "step": step, "loss": loss, "loss_ema": smooth, "prior_loss": None, "grad_norm": chance.uniform(0.1, 1.0),
            "lr": 1e-4, "seconds": 0.6 + chance.uniform(0, 0.05),
        })
        if step in evaluations:
            rows.append(evaluations[step])
    return rows


def _with_samples(folder: RunFolder, rows: list[dict], records: list[EvaluationRecord], trigger: str, *, every: int) -> list[dict]:
    due = {record.step for record in (*records[::every], records[-1])}
    with_them = []
    for row in rows:
        with_them.append(row)
        if row["kind"] == "eval" and row["step"] in due:
            pictures = _sample_pictures(row["step"], records[-1].step, trigger)
            files = folder.save_samples(row["step"], {picture.file_name: picture.png for picture in pictures})
            with_them.append(sample_row(row["step"], pictures, files, 2.0))
    return with_them


def _sample_pictures(step: int, last_step: int, trigger: str) -> list[SamplePicture]:
    """A drawing that grows sharper and nearer to the trigger's colour with the steps."""
    pictures = []
    for number, (scene, is_trigger) in enumerate((("portrait in a garden", True), ("portrait in a garden", False), ("walking in the rain", True))):
        share = step / last_step if is_trigger else 0.0
        image = Image.new("RGB", (SAMPLE_PX, SAMPLE_PX), (40 + 60 * number, 90, 120))
        draw = ImageDraw.Draw(image)
        size = SAMPLE_PX * (0.15 + 0.2 * share)
        middle = SAMPLE_PX / 2
        draw.ellipse((middle - size, middle - size, middle + size, middle + size), fill=(round(200 * share) + 40, 160, 90))
        draw.text((8, 8), f"{scene}, step {step}", fill="white")
        data = io.BytesIO()
        image.save(data, format="PNG")
        pictures.append(SamplePicture(
            file_name=f"{number:02d}-{'with' if is_trigger else 'without'}-trigger.png", png=data.getvalue(),
            prompt=f"{trigger}, {scene}" if is_trigger else scene, with_trigger=is_trigger, seed=number // 2,
        ))
    return pictures


def _write_checkpoint(folder: RunFolder, step: int, config: TrainConfig, family: str, trigger: str, records: list[EvaluationRecord]) -> None:
    so_far = [record for record in records if record.step <= step]
    metadata = lora_metadata(
        name=folder.name, step=step, family=family, config=config, is_flow=False, trigger=trigger, split_id="", n_train=NUM_PICTURES - NUM_HELD_OUT,
        base_model_hash="0" * 32, versions={"pistachio": "test"}, records=so_far, resolution=(1024, 1024),
    )
    tensors = {"x.lora_A.weight": torch.full((config.adapter.rank, 4), float(step)), "x.lora_B.weight": torch.zeros(4, config.adapter.rank)}
    folder.save_checkpoint(step, tensors, metadata, {"peft_type": "LORA", "r": config.adapter.rank}, eval_rows(so_far)[-1])
