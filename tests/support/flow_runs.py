"""Runs of the small flow model: their settings, their samples, and what two runs must have in common to be called the same."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.config.samples import SampleConfig
from pistachio.training.loop import RunInfo, train
from pistachio.training.run import RunFolder
from pistachio.training.samples import SamplePicture

from .flow import Flow, eval_items, train_items

# Measured by the clock, or when a file was made; and the words on resumes.
BY_THE_CLOCK = {"seconds", "created", "notes", "modelspec.date", "ss_training_started_at", "ss_training_finished_at"}


def flow_config(**changes) -> TrainConfig:
    defaults = dict(
        num_steps=48, batch_size=2, accumulation=2, seed=1, adapter=AdapterConfig(rank=4, alpha=4, targets="all-linear+conv"),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
        objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.25),
        evaluation=EvaluationConfig(num_evaluations=8, timesteps_per_image=4, early_stop=False),
    )
    return TrainConfig(**{**defaults, **changes})


class FlowSampler:
    """One Euler step from fixed noise, as a picture."""

    def __init__(self, model, **changes):
        self.model, self.config = model, SampleConfig(**changes)

    def sample(self, step: int) -> list[SamplePicture]:
        return [self._picture(index, condition) for index, condition in enumerate((1.0, -1.0))]

    @torch.no_grad()
    def _picture(self, index: int, condition: float) -> SamplePicture:
        noise = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(7))
        pixels = self.model.predict(noise, torch.tensor([0.9]), [condition])[0].movedim(0, -1)
        data = io.BytesIO()
        Image.fromarray((pixels.clamp(-1, 1) * 127 + 128).to(torch.uint8).numpy()).save(data, format="PNG")
        return SamplePicture(file_name=f"{index:02d}.png", png=data.getvalue(), prompt=f"caption {index}", with_trigger=index == 0, seed=7)


def flow_run(path, config: TrainConfig | None = None, *, sampler=FlowSampler, held_out: int = 4, **arguments):
    """Train, or go on training, in the folder `path`."""
    model, folder = Flow(), RunFolder(path)
    if folder.config() is None:
        path.mkdir(parents=True, exist_ok=True)
        folder.write_json("config.json", {"settings": {"num_steps": (config or flow_config()).num_steps}})
    with folder.locked(), model.training():
        return train(
            model, train_items(), eval_items(held_out) if held_out else [], config or flow_config(), folder, RunInfo(name="flow"),
            sampler=sampler(model, every_evaluations=2) if sampler else None, **arguments,
        )


def contents(path) -> dict:
    """Everything a run leaves that must not depend on how often it was stopped."""
    folder, state = RunFolder(path), RunFolder(path).load_state()
    files = {str(file.relative_to(path)): _content(file) for kind in ("checkpoints", "samples") for file in (path / kind).rglob("*") if file.is_file()}
    return {
        "rows": [_timeless(row) for row in folder.metrics() if row["kind"] != "note"],
        "files": files,
        "state": _plain(state),
        "report": _timeless(folder.report()),
    }


def differences(one: dict, other: dict) -> list[str]:
    """Names of what differs, for a test's message."""
    found = [name for name in ("state", "report") if one[name] != other[name]]
    found += [f"{name}" for name in one["files"].keys() | other["files"].keys() if one["files"].get(name) != other["files"].get(name)]
    if one["rows"] != other["rows"]:
        pairs = zip(one["rows"] + [None] * len(other["rows"]), other["rows"] + [None] * len(one["rows"]))
        found.append(f"rows, first {next(pair for pair in pairs if pair[0] != pair[1])}"[:600])
    return found


def _content(file: Path):
    if file.suffix == ".json":
        return _timeless(json.loads(file.read_text()))
    if file.suffix == ".safetensors":  # whose header has no order
        with safe_open(str(file), framework="pt") as opened:
            return _timeless(opened.metadata()), {name: _plain(opened.get_tensor(name)) for name in opened.keys()}
    return file.read_bytes()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in BY_THE_CLOCK}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _plain(value):
    if torch.is_tensor(value):
        return value.dtype, tuple(value.shape), value.contiguous().cpu().view(torch.uint8).numpy().tobytes() if value.ndim else value.item()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
