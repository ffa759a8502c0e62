"""Whole runs on a tiny Wan: the folder they leave, resuming, conflicts, and the choice installed for the stock loader."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from support.cancelling import Cancelled, cancel_after
from support.encoded import encoded_set


@pytest.fixture(scope="module")
def wan(tiny):
    return tiny("wan21")


@pytest.fixture
def encoded(wan, tmp_path):
    return encoded_set(tmp_path / "cache", wan)


def config(**changes):
    from pistachio.training.config import AdapterConfig, EvaluationConfig, OptimizerConfig, TrainConfig

    defaults = dict(
        num_steps=8, batch_size=2, seed=5, adapter=AdapterConfig(rank=2, alpha=2), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        evaluation=EvaluationConfig(num_evaluations=4, timesteps_per_image=4, early_stop=False),
    )
    return TrainConfig(**{**defaults, **changes})


def start(wan, encoded, folder, settings, *, rows=None, check=lambda: None, name="anna", continue_run=None):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    with torch.inference_mode():
        return train_lora(
            wan.model, encoded, settings, run_name=name, logging_config=LoggingConfig(), runs_folder=folder,
            log_row=(rows if rows is not None else []).append, check_interrupted=check, continue_run=continue_run,
        )


def numbers(run):
    from pistachio.training.run import RunFolder

    keep = ("kind", "step", "loss", "prior_loss", "grad_norm", "lr", "errors", "loss_delta", "train_delta")
    return [{k: row[k] for k in keep if k in row} for row in RunFolder(run.folder).metrics() if row["kind"] != "note"]


def files(run):
    from pistachio.training.run import RunFolder

    folder = RunFolder(run.folder)
    return {step: folder.checkpoint_file(step).read_bytes()[-4096:] for step in folder.checkpoint_steps()}


def test_a_run_leaves_everything_it_promises(wan, encoded, tmp_path):
    from pistachio.training.run import RunFolder

    rows = []
    run = start(wan, encoded, tmp_path / "runs", config(), rows=rows)
    folder = RunFolder(run.folder)
    report = folder.report()
    assert folder.status() == "finished" and report["finished"]
    assert folder.checkpoint_steps() == [1, 2, 3, 4, 5, 6, 7, 8] or len(folder.checkpoint_steps()) >= 4
    assert report["chosen_step"] in folder.checkpoint_steps()
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    assert (run.folder / "loss.png").stat().st_size > 5000
    assert json.loads((run.folder / "config.json").read_text())["settings"]["seed"] == 5
    held_out = [p["content_hash"] for p in folder.dataset()["pictures"] if p["held_out"]]
    assert sorted(report["evaluations"][0]["errors"]) == sorted(held_out)


def test_the_same_settings_return_a_finished_run_at_once(wan, encoded, tmp_path):
    run = start(wan, encoded, tmp_path, config())
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"}
    rows = []
    assert start(wan, encoded, tmp_path, config(), rows=rows) == run
    assert rows == []
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"} == before


@pytest.mark.parametrize("calls", [1, 9, 13, 18, 25])
def test_an_interrupted_run_ends_with_the_same_numbers(wan, encoded, tmp_path, calls):
    whole = start(wan, encoded, tmp_path / "whole", config())
    with pytest.raises(Cancelled):
        start(wan, encoded, tmp_path / "cut", config(), check=cancel_after(calls))
    resumed = start(wan, encoded, tmp_path / "cut", config())
    assert numbers(resumed) == numbers(whole)
    assert files(resumed) == files(whole)


def test_other_settings_under_the_same_name_are_refused(wan, encoded, tmp_path):
    from pistachio.training.errors import RunConflictError

    start(wan, encoded, tmp_path, config())
    with pytest.raises(RunConflictError, match="seed"):
        start(wan, encoded, tmp_path, config(seed=6))
    changed = replace(encoded, items=tuple(replace(i, caption=i.caption + ".") for i in encoded.items))
    with pytest.raises(RunConflictError, match="captions.*Choose another run name"):
        start(wan, changed, tmp_path, config())


def test_a_continued_run_of_other_pictures_is_refused_by_the_input_that_says_so(wan, encoded, tmp_path):
    from pistachio.training.errors import RunConflictError

    run = start(wan, encoded, tmp_path, config())
    changed = replace(encoded, items=tuple(replace(i, caption=i.caption + ".") for i in encoded.items))
    # run_name is not used then, and more steps are what continuing means.
    with pytest.raises(RunConflictError, match=r"other settings \(the pictures or captions\)\. Disconnect continue_run on Train LoRA"):
        start(wan, changed, tmp_path, config(num_steps=12), continue_run=run)


def test_a_second_writer_is_refused(wan, encoded, tmp_path):
    from pistachio.training.errors import RunConflictError
    from pistachio.training.run import RunFolder

    (tmp_path / "anna").mkdir()
    with RunFolder(tmp_path / "anna").locked(), pytest.raises(RunConflictError, match="another process"):
        start(wan, encoded, tmp_path, config())


def test_a_run_can_be_continued(wan, encoded, tmp_path):
    from pistachio.training.run import RunFolder

    run = start(wan, encoded, tmp_path, config())
    start(wan, encoded, tmp_path, config(num_steps=0), continue_run=run)
    folder = RunFolder(run.folder)
    assert folder.report()["last_step"] == 12
    assert [row["step"] for row in folder.metrics() if row["kind"] == "train"] == list(range(1, 13))


def test_the_choice_is_listed_and_loaded_by_the_stock_loader(wan, encoded, tmp_path, caplog):
    import folder_paths
    import nodes
    from pistachio.bridge.lora import install_checkpoint, loras_folder
    from pistachio.training.run import RunFolder
    from safetensors import safe_open

    run = start(wan, encoded, tmp_path, config())
    other = start(wan, encoded, tmp_path, config(seed=9), name="berta")
    name = install_checkpoint(run, None, "listed")
    assert install_checkpoint(run, 8, "listed") == name == "listed.safetensors"
    assert install_checkpoint(other, None, "listed") == "listed-2.safetensors"  # another run's file is never replaced
    assert {"listed.safetensors", "listed-2.safetensors"} <= set(folder_paths.get_filename_list("loras"))
    with torch.inference_mode(), caplog.at_level("WARNING"):
        loaded = nodes.LoraLoaderModelOnly().load_lora_model_only(wan.model, name, 1.0)[0]
    assert len(loaded.patches) == 26 and not [r for r in caplog.records if "not loaded" in r.getMessage().lower()]
    with safe_open(str(loras_folder() / "listed-2.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert metadata["pistachio.trigger"] == "zwx"
    assert metadata["pistachio.state"] == RunFolder(other.folder).report()["state"]


def test_a_non_finite_loss_stops_with_the_run_saved(wan, encoded, tmp_path):
    from pistachio.training.config import OptimizerConfig
    from pistachio.training.errors import NonFiniteLossError
    from pistachio.training.run import RunFolder

    wild = config(optimizer=OptimizerConfig(learning_rate=1e30, warmup_steps=0, clip_norm=0))
    with pytest.raises(NonFiniteLossError, match="learning rate"):
        start(wan, encoded, tmp_path, wild)
    folder = RunFolder(tmp_path / "anna")
    assert folder.status() == "interrupted" and folder.load_state()["step"] >= 1
    assert torch.isfinite(folder.load_state()["parameters"]).all()


@pytest.mark.parametrize("wrong", ["channels", "axes"])
def test_a_foreign_vae_is_refused_before_training(wan, encoded, tmp_path, wrong):
    from pistachio.dataset.cache import save_latent
    from pistachio.training.errors import PistachioError

    shape = (1, 4, 2, 8, 8) if wrong == "channels" else (1, 16, 8, 8)
    save_latent(encoded.items[0].latent_path, torch.zeros(shape))
    with pytest.raises(PistachioError, match="VAE"):
        start(wan, encoded, tmp_path / "runs", config())


def test_a_foreign_text_encoder_is_refused_before_training(wan, tiny, encoded, tmp_path):
    from pistachio.dataset.cache import save_condition
    from pistachio.training.errors import PistachioError

    for item in encoded.items:
        for path in (item.caption_path, item.prior_path):
            save_condition(path, tiny("sd15").condition("a woman"))
    with pytest.raises(PistachioError, match="CLIP|text encoder"):
        start(wan, encoded, tmp_path / "runs", config())


def test_an_image_to_image_model_is_refused(wan, encoded, tmp_path, monkeypatch):
    import comfy.model_base
    from pistachio.training.errors import PistachioError

    monkeypatch.setattr(wan.model.model, "model_type", comfy.model_base.ModelType.IMG_TO_IMG)
    with pytest.raises(PistachioError, match="text-to-image"):
        start(wan, encoded, tmp_path / "runs", config())


def test_a_refused_start_leaves_its_name_free(wan, tiny, encoded, tmp_path):
    """A wrong CLIP is an everyday slip: the right one must not then be called other settings."""
    from pistachio.dataset.cache import load_condition, save_condition
    from pistachio.training.errors import PistachioError

    right = load_condition(encoded.items[0].caption_path)
    save_condition(encoded.items[0].caption_path, tiny("sd15").condition("a woman"))
    with pytest.raises(PistachioError):
        start(wan, replace(encoded, clip_fingerprint="other"), tmp_path / "runs", config())
    save_condition(encoded.items[0].caption_path, right)
    assert (start(wan, encoded, tmp_path / "runs", config()).folder / "report.json").is_file()


def test_a_run_that_stopped_early_goes_on_when_continued(wan, encoded, tmp_path):
    from pistachio.training.config import EvaluationConfig
    from pistachio.training.run import RunFolder

    from pistachio.training.config import OptimizerConfig

    hasty = EvaluationConfig(num_evaluations=8, timesteps_per_image=4, min_evaluations=1, patience=1)
    bad = config(num_steps=16, evaluation=hasty, optimizer=OptimizerConfig(learning_rate=0.3, warmup_steps=0))
    run = start(wan, encoded, tmp_path, bad)
    stopped = RunFolder(run.folder).report()["last_step"]
    assert stopped < 16
    start(wan, encoded, tmp_path, replace(bad, num_steps=0), continue_run=run)
    assert RunFolder(run.folder).report()["last_step"] > stopped


def test_a_run_that_was_stopped_goes_on_to_its_planned_end_and_then_past_it(wan, encoded, tmp_path):
    from pistachio.bridge.control import ask
    from pistachio.training.errors import PistachioError
    from pistachio.training.run import RunFolder

    class Stopping(list):
        def append(self, row):
            if (row["kind"], row["step"]) == ("train", 4):
                ask("anna", "stop")

    planned = config(num_steps=12)
    run = start(wan, encoded, tmp_path, planned, rows=Stopping())
    folder = RunFolder(run.folder)
    assert (folder.status(), folder.report()["last_step"], folder.report()["offers"][0]) == ("finished", 4, "Continue to step 12, as planned.")
    start(wan, encoded, tmp_path, planned)
    assert folder.report()["last_step"] == 4, "queued again as it is, a finished run is not trained on"
    with pytest.raises(Cancelled):
        start(wan, encoded, tmp_path, planned, continue_run=run, check=cancel_after(2))
    assert folder.status() == "interrupted"
    start(wan, encoded, tmp_path, config(num_steps=0), continue_run=run)
    assert (folder.status(), folder.report()["last_step"]) == ("finished", 12)
    assert [row["step"] for row in folder.metrics() if row["kind"] == "train"] == list(range(1, 13))
    assert any(note.startswith("Continued from step 4 to step 12") for note in folder.report()["notes"])
    start(wan, encoded, tmp_path, config(num_steps=0), continue_run=run)
    assert folder.report()["last_step"] == 18
    with pytest.raises(PistachioError, match="already has 18 steps"):
        start(wan, encoded, tmp_path, config(num_steps=15), continue_run=run)


def test_a_full_disk_is_said_before_training(wan, encoded, tmp_path, monkeypatch):
    from pistachio.training import run as run_module
    from pistachio.training.errors import PistachioError

    monkeypatch.setattr(run_module, "free_bytes", lambda folder: 1000)
    with pytest.raises(PistachioError, match="disk"):
        start(wan, encoded, tmp_path / "runs", config())


def test_a_disk_that_fills_up_keeps_what_was_saved(wan, encoded, tmp_path, monkeypatch):
    """The checkpoint can't be written; the state of the step before is still there, and the run goes on when there is room."""
    import errno

    from pistachio.training import run as run_module
    from pistachio.training.errors import PistachioError

    whole = start(wan, encoded, tmp_path / "whole", config())
    save = run_module.save_file
    calls = [0]

    def full(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(run_module, "save_file", full)
    with pytest.raises(PistachioError, match="disk is full"):
        start(wan, encoded, tmp_path / "cut", config())
    monkeypatch.setattr(run_module, "save_file", save)
    resumed = start(wan, encoded, tmp_path / "cut", config())
    assert numbers(resumed) == numbers(whole) and files(resumed) == files(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="lives are forked, and killed by a signal")
def test_a_killed_run_on_the_host_ends_the_same_with_its_samples(request, tiny, tmp_path):
    """Twice in one run: at a time, and within a write that is left half done."""
    from support.flow_runs import contents, differences
    from support.killed import Killer

    tiny("wan21")  # its files are there before another process looks for them
    with Killer("host", str(request.config.getoption("--comfyui")), str(tmp_path / "comfyui")) as killer:
        life = killer.live(tmp_path / "whole", save_interval_seconds=0)
        expected = contents(tmp_path / "whole" / "anna")
        assert len([name for name in expected["files"] if name.startswith("samples/")]) == 2 * 3
        killer.live(tmp_path / "cut", kill_at=("save", life["points"]["save"] // 2))
        killer.live(tmp_path / "cut", kill_after_rows=12, kill_after_seconds=0.03)
        assert killer.num_kills == 2
        assert killer.live(tmp_path / "cut")["status"] == "finished"
    assert differences(contents(tmp_path / "cut" / "anna"), expected) == []


def test_a_run_that_is_being_extended_counts_as_unfinished_until_it_is_done(wan, encoded, tmp_path):
    """Queued again after a stop it goes on to the same number of steps, and is not extended once more."""
    from pistachio.training.run import RunFolder

    run = start(wan, encoded, tmp_path, config())
    folder = RunFolder(run.folder)
    with pytest.raises(Cancelled):
        start(wan, encoded, tmp_path, config(num_steps=0), continue_run=run, check=cancel_after(2))
    assert folder.status() == "interrupted" and folder.config()["settings"]["num_steps"] == 12
    start(wan, encoded, tmp_path, config(num_steps=0), continue_run=run)
    assert folder.status() == "finished" and folder.report()["last_step"] == 12
    (note,) = [note for note in folder.report()["notes"] if note.startswith("Continued from step 8 to step 12")]
    assert "learning rate" in note


def test_a_run_of_an_older_version_is_resumed_with_the_defaults_of_newer_settings(wan, encoded, tmp_path):
    from pistachio.training.run import RunFolder

    with pytest.raises(Cancelled):
        start(wan, encoded, tmp_path, config(), check=cancel_after(9))
    folder = RunFolder(tmp_path / "anna")
    older = folder.config()
    del older["settings"]["optimizer"]["clip_norm"]
    folder.write_json("config.json", older)
    start(wan, encoded, tmp_path, config())
    assert folder.status() == "finished"
