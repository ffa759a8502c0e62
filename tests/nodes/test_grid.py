"""Checkpoint Grid on a tiny SD1.5: which checkpoints stand side by side, what differs between them, and what stays the same; the record of an override."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support.encoded import encoded_set


@pytest.fixture(scope="module")
def sd15(tiny):
    return tiny("sd15")


@pytest.fixture(scope="module")
def run(sd15, tmp_path_factory):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, OptimizerConfig, TrainConfig

    folder = tmp_path_factory.mktemp("grid")
    config = TrainConfig(
        num_steps=6, batch_size=1, seed=5, adapter=AdapterConfig(rank=4, alpha=4), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1, schedule="constant"),
        evaluation=EvaluationConfig(num_evaluations=3, timesteps_per_image=4, early_stop=False),
    )
    with torch.inference_mode():
        return train_lora(
            sd15.model, encoded_set(folder / "cache", sd15, num_train=3), config, run_name="anna", logging_config=LoggingConfig(),
            runs_folder=folder, log_row=lambda row: None, check_interrupted=lambda: None,
        )


def with_report(run, **changes):
    path = run.folder / "report.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changes))
    return before


def test_columns_are_the_chosen_both_ends_of_the_tie_and_the_last(run):
    from pistachio.bridge.grid import columns_of

    before = with_report(run, chosen_step=4, tied_steps=[2, 4])
    try:
        columns = columns_of(run)
        assert [(c.step, c.roles) for c in columns] == [(2, ("first of the tie",)), (4, ("chosen", "last of the tie")), (6, ("last",))]
        assert all(c.note.startswith("held-out loss") for c in columns)
        assert columns_of(run, with_base=True)[0].title == "Base model"
    finally:
        (run.folder / "report.json").write_text(before)


def test_the_same_prompts_and_seeds_through_each_checkpoint(sd15, run, tmp_path):
    from pistachio.bridge.grid import GridSettings, checkpoint_grid

    before = with_report(run, chosen_step=4, tied_steps=[2, 4])
    settings = GridSettings(prompts=("zwx woman, a red hat", "zwx woman"), num_seeds=2, num_steps=1, with_base=True)
    state = {name: tensor.clone() for name, tensor in sd15.model.model.state_dict().items()}
    counted = []
    try:
        with torch.inference_mode():
            grid, columns, rows = checkpoint_grid(run, sd15.model, sd15.clip, sd15.vae, settings, progress=lambda done, total: counted.append((done, total)))
            again = checkpoint_grid(run, sd15.model, sd15.clip, sd15.vae, settings)[2]
    finally:
        (run.folder / "report.json").write_text(before)
    assert [(row.prompt, row.seed) for row in rows] == [("zwx woman, a red hat", 0), ("zwx woman, a red hat", 1), ("zwx woman", 0), ("zwx woman", 1)]
    assert counted[-1] == (16, 16) and len(columns) == 4
    cells = np.array([[np.asarray(picture, dtype=int) for picture in row.pictures] for row in rows])
    assert cells.shape[:2] == (4, 4) and cells.shape[2:] == (64, 64, 3)
    for row in cells:
        assert all(np.abs(row[a] - row[b]).max() > 0 for a in range(4) for b in range(a))  # each checkpoint draws its own
    assert all(np.array_equal(np.asarray(p), np.asarray(q)) for one, two in zip(rows, again) for p, q in zip(one.pictures, two.pictures))
    import comfy.model_management

    comfy.model_management.load_models_gpu([sd15.model])  # the host takes the last LoRA off when it next needs the model
    assert all(torch.equal(state[name], tensor) for name, tensor in sd15.model.model.state_dict().items())
    grid.save(tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").width > 4 * 160


def test_the_node_shows_the_grid_and_names_the_steps(sd15, run, monkeypatch):
    from pistachio.nodes.grid import CheckpointGrid

    monkeypatch.setattr(CheckpointGrid, "hidden", type("Hidden", (), {"unique_id": "7"}), raising=False)
    with torch.inference_mode():
        output = CheckpointGrid.execute(run, sd15.model, sd15.clip, sd15.vae, num_seeds=1, steps=1)
    image, steps = output.result
    assert image.shape[0] == 1 and image.shape[-1] == 3 and steps.split(", ")[-1] == "6"
    assert output.ui["images"] and "Left to right: " in output.ui["text"][0]


def test_an_override_is_recorded_once_and_kept(run, host, monkeypatch):
    from pistachio.nodes.runs import SelectCheckpoint

    chosen = json.loads((run.folder / "report.json").read_text())["chosen_step"]
    other = next(step for step in (2, 4, 6) if step != chosen)
    summary = SelectCheckpoint.execute(run, step=other).result[2]
    report = json.loads((run.folder / "report.json").read_text())
    assert report["override"]["step"] == other and report["override"]["chosen_step"] == chosen == report["chosen_step"]
    assert report["override"]["when"][:2] == "20" and report["override"]["lora_name"] == f"anna-step{other}.safetensors"
    assert f"You chose step {other}; the automatic choice was step {chosen}." in summary
    before = (run.folder / "report.json").stat().st_mtime_ns
    SelectCheckpoint.execute(run, step=other)
    assert (run.folder / "report.json").stat().st_mtime_ns == before  # the same choice again is no news
    SelectCheckpoint.execute(run)
    assert json.loads((run.folder / "report.json").read_text())["override"]["step"] == other
