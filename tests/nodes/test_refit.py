"""Folds and refits as Train LoRA drives them, on a tiny SD1.5: the folders, the resumed parts, and the swap that is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from support.encoded import encoded_set


@pytest.fixture(scope="module")
def sd15(tiny):
    return tiny("sd15")


@pytest.fixture(scope="module")
def encoded(sd15, tmp_path_factory):
    return encoded_set(tmp_path_factory.mktemp("cache"), sd15, num_train=3, num_held_out=2)


def config(**evaluation):
    from pistachio.training.config import AdapterConfig, EvaluationConfig, OptimizerConfig, TrainConfig

    return TrainConfig(
        num_steps=2, batch_size=1, seed=5, adapter=AdapterConfig(rank=2, alpha=2, targets="attention"), precision="fp32",
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, schedule="constant"),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=4, **evaluation),
    )


def start(sd15, encoded, folder, settings, *, name="anna", continue_run=None, rows=None, check=lambda: None):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    with torch.inference_mode():
        return train_lora(
            sd15.model, encoded, settings, run_name=name, logging_config=LoggingConfig(), runs_folder=folder,
            log_row=(rows if rows is not None else []).append, check_interrupted=check, continue_run=continue_run,
        )


class Cancelled(Exception):
    pass


def test_folds_then_all_pictures_and_a_cancel_in_between(sd15, encoded, tmp_path):
    from pistachio.nodes.shown import loss_chart, run_sentences, selection_of
    from pistachio.training.run import RunFolder

    def cancel_in_the_second_fold():
        if (tmp_path / "anna" / "folds" / "fold-2" / "state").is_dir():
            raise Cancelled

    with pytest.raises(Cancelled):
        start(sd15, encoded, tmp_path, config(folds=2), check=cancel_in_the_second_fold)
    assert RunFolder(tmp_path / "anna").status() == "interrupted"
    first = (tmp_path / "anna" / "folds" / "fold-1" / "metrics.jsonl").read_bytes()
    rows = []
    run = start(sd15, encoded, tmp_path, config(folds=2), rows=rows)
    assert (run.folder / "folds" / "fold-1" / "metrics.jsonl").read_bytes() == first  # a finished part is left alone
    report = RunFolder(run.folder).report()
    held = [set(RunFolder(run.folder / "folds" / f"fold-{n}").report()["evaluations"][0]["errors"]) for n in (1, 2)]
    assert not held[0] & held[1] and held[0] | held[1] == {item.content_hash for item in encoded.items}
    assert report["refit"]["n_pictures"] == 5 and report["n_train"] == 5 and report["n_images"] == 5
    assert RunFolder(run.folder).checkpoint_steps() == [report["chosen_step"]]
    assert [row["kind"] for row in rows].count("finished") == 1
    assert run_sentences(run)[0].endswith("that result is not measured.")
    assert selection_of(run).n_images == 5 and loss_chart(run).width == 900
    assert start(sd15, encoded, tmp_path, config(folds=2)) == run  # finished: back at once


def test_a_finished_run_again_on_all_pictures(sd15, encoded, tmp_path):
    from pistachio.training.errors import RunConflictError
    from pistachio.training.run import RunFolder

    measured = start(sd15, encoded, tmp_path, config())
    whole = start(sd15, encoded, tmp_path, replace(config(refit=True), num_steps=0), continue_run=measured)
    report = RunFolder(whole.folder).report()
    assert whole.name == "anna-all" and report["refit"]["source"] == "anna" and report["n_train"] == 5
    assert report["chosen_step"] == RunFolder(measured.folder).report()["chosen_step"]
    assert "refit" not in RunFolder(measured.folder).report()
    with pytest.raises(RunConflictError, match="trained with other settings .seed."):
        start(sd15, encoded, tmp_path, replace(config(refit=True), seed=6), continue_run=measured)


def test_swapped_held_out_pictures_need_a_run_of_their_own(sd15, encoded, tmp_path):
    from pistachio.training.errors import RunConflictError

    start(sd15, encoded, tmp_path, config())
    before = json.loads((tmp_path / "anna" / "dataset.json").read_text())
    swapped = replace(encoded, items=tuple(replace(i, held_out={"0.png": True, "4.png": False}.get(i.relative_path, i.held_out)) for i in encoded.items))
    with pytest.raises(RunConflictError, match=r"now held out: 0\.png; now trained on: 4\.png"):
        start(sd15, swapped, tmp_path, config())
    assert json.loads((tmp_path / "anna" / "dataset.json").read_text()) == before


def test_the_events_of_a_refit_are_those_of_its_own_run(sd15, encoded, host, monkeypatch):
    import pistachio.nodes
    from comfy_api.latest import io
    from pistachio.bridge.events import live_state
    from server import PromptServer

    node = type("TrainLoraClone", (pistachio.nodes.TrainLora,), {})
    node.hidden = io.HiddenHolder.from_dict({"UNIQUE_ID": "9", "EXTRA_PNGINFO": {"workflow": {"id": "w"}}})
    sent = []
    monkeypatch.setattr(PromptServer.instance, "send_sync", lambda name, data, *_: sent.append((name, data)))

    def train(settings, **inputs):
        sent.clear()
        with torch.inference_mode():
            output = node.execute(
                sd15.model, encoded, adapter=settings.adapter, optimizer=settings.optimizer, evaluation=settings.evaluation, precision="fp32", run_name="watched", **inputs,
            )
        return output.args[2], output.ui["pistachio_run"], {(data["run"], data["workflow"]) for name, data in sent if name.startswith("pistachio.")}, [name for name, _ in sent]

    measured, *told, _ = train(config(), num_steps=2)
    assert told == [[{"run": "watched", "workflow": "w"}], {("watched", "w")}]
    whole, *told, names = train(config(refit=True), continue_run=measured)
    assert told == [[{"run": "watched-all", "workflow": "w"}], {("watched-all", "w")}] and {"pistachio.step", "pistachio.finished"} <= set(names)
    assert live_state("watched-all")["sequence"] > 0 and live_state("watched") is None
    for run in (measured, whole):
        shutil.rmtree(run.folder)
