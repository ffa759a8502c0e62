"""The plan of a run's memory on a tiny Wan: chosen under a limit, kept, refused, left for a leaner one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from support.encoded import encoded_set


@pytest.fixture(scope="module")
def wan(tiny):
    return tiny("wan21")


@pytest.fixture(scope="module")
def encoded(wan, tmp_path_factory):
    return encoded_set(tmp_path_factory.mktemp("cache"), wan, num_train=2, num_held_out=1)


def config(**changes):
    from pistachio.training.config import AdapterConfig, EvaluationConfig, TrainConfig

    return TrainConfig(**{
        "num_steps": 2, "batch_size": 4, "seed": 5, "adapter": AdapterConfig(rank=2, alpha=2), "precision": "fp32",
        "evaluation": EvaluationConfig(num_evaluations=1, timesteps_per_image=2, early_stop=False), **changes,
    })


def start(wan, encoded, folder, settings, memory, *, rows=None):
    from pistachio.bridge.training import train_lora
    from pistachio.training.config import LoggingConfig

    with torch.inference_mode():
        return train_lora(
            wan.model, encoded, settings, run_name="anna", logging_config=LoggingConfig(), runs_folder=folder,
            log_row=(rows if rows is not None else []).append, check_interrupted=lambda: None, memory=memory,
        )


@pytest.fixture(scope="module")
def planner(wan, encoded):
    from pistachio.bridge.items import load_items
    from pistachio.bridge.noise import HostNoise
    from pistachio.bridge.planning import Planner
    from pistachio.training.config.memory import MemoryConfig

    train_set, _ = load_items(encoded, HostNoise(wan.model, device=torch.device("cpu")))
    return Planner(wan.model, train_set.items, config(), MemoryConfig(), device=torch.device("cpu"))


def peaks(planner):
    from pistachio.training.memory.estimate import predict
    from pistachio.training.memory.search import ladder

    found = {}
    for plan in ladder(planner.config, planner.memory, planner.allowed, planner.facts):
        found.setdefault(plan.keep, predict(plan, planner.facts).peak_bytes)
    return found


def test_a_limit_is_kept_and_the_plan_lies_in_the_run(wan, encoded, planner, tmp_path):
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.memory.plan import KEEP_WORDS
    from pistachio.training.run import RunFolder

    found = peaks(planner)  # the richest plan first
    limit_gb = (min(found.values()) + 1000) / 1e9
    keep, predicted = next((keep, peak) for keep, peak in found.items() if peak <= 1e9 * limit_gb)
    assert keep in ("attention", "blocks")
    rows = []
    run = start(wan, encoded, tmp_path, config(), MemoryConfig(limit_gb=limit_gb), rows=rows)
    kept, report = RunFolder(run.folder).plan(), RunFolder(run.folder).report()
    assert kept["plan"]["keep"] == keep and kept["limit_bytes"] >= max(kept["plan"]["phases"].values())
    assert report["memory"]["predicted_bytes"] == predicted and report["memory"]["measured_bytes"] is None
    assert [each["fits"] for each in report["memory"]["plans"] if each["plan"].startswith("blocks keep everything")] == [False]
    notes = [row["text"] for row in rows if row["kind"] == "note"]
    assert any(text.startswith(f"Memory plan: {KEEP_WORDS[keep]}") for text in notes) and any("does not fit" in text for text in notes)


def test_what_can_not_fit_is_refused_with_the_nearest_that_can(wan, encoded, planner, tmp_path):
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.errors import PistachioError

    limit_gb = (min(peaks(planner).values()) + 1000) / 1e9
    with pytest.raises(PistachioError, match="does not fit.*nearest that fits: blocks keep (their inputs|attention's outputs)"):
        start(wan, encoded, tmp_path, config(), MemoryConfig(limit_gb=limit_gb, keep="everything"))
    with pytest.raises(PistachioError, match="too little"):
        start(wan, encoded, tmp_path / "none", config(), MemoryConfig(limit_gb=0.001))


def test_out_of_memory_in_the_first_step_goes_on_leaner_and_says_so(wan, encoded, tmp_path, monkeypatch):
    """A CPU has no such error: the network raises it while a plan keeps everything."""
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.run import RunFolder

    plain = AdaptedNetwork.training_pass

    def full(self, step, index):
        if self.keep == "everything" and self.model.device.type != "meta":  # the plan is traced as always
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(self, step, index)

    monkeypatch.setattr(AdaptedNetwork, "training_pass", full)
    run = start(wan, encoded, tmp_path, config(), MemoryConfig(limit_gb=8))
    report = RunFolder(run.folder).report()
    assert report["finished"] and report["memory"]["plan"]["keep"] != "everything"
    assert report["memory"]["left_plans"][0]["plan"]["keep"] == "everything"
    assert any("goes on with" in note for note in report["notes"])


def test_a_resumed_run_keeps_its_plan_until_the_settings_change(wan, encoded, tmp_path):
    from pistachio.bridge.run_memory import plan_run
    from pistachio.training.config.memory import MemoryConfig
    from pistachio.training.run import RunFolder

    folder = RunFolder(tmp_path / "anna")
    plan = lambda memory: plan_run(wan.model, encoded, config(), memory, folder, model_hash="x", runs_folder=tmp_path)
    (folder.path / "state").mkdir(parents=True)
    first = plan(MemoryConfig(keep="blocks"))
    torch.save({}, folder.path / "state" / "state.pt")
    assert folder.has_state()
    again = plan(MemoryConfig(keep="blocks"))
    assert again.record.choice.pinned and again.record.plan == replace(first.record.plan, step_seconds=None)
    changed = plan(MemoryConfig(keep="everything"))
    assert not changed.record.choice.pinned and changed.keep == "everything" and "settings changed" in changed.record.words[0]
    assert json.loads((folder.path / "plan.json").read_text())["left_plans"][0]["plan"]["keep"] == "blocks"


def test_the_prediction_is_what_the_allocator_counts(wan, encoded, planner, repository):
    """PyTorch's own allocator is asked, through the profiler: the prediction has no part in that count."""
    import importlib.util

    from pistachio.bridge.items import load_items
    from pistachio.bridge.model import HostModel
    from pistachio.training.memory.estimate import predict
    from pistachio.training.memory.plan import MemoryPlan
    from pistachio.training.trainer import Trainer

    spec = importlib.util.spec_from_file_location("memory_counter", repository / "benchmarks" / "memory_counter.py")
    counter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(counter)
    with torch.inference_mode():
        model = HostModel(wan.model, precision="fp32")
    train_set, _ = load_items(encoded, model)
    for item in train_set.items:
        item.latents, item.condition, item.prior_condition  # read before anything is counted

    def steps():
        trainer = Trainer(model, train_set, config(), keep="attention")
        with trainer.network:
            trainer.advance()
            trainer.advance()

    with model.training():
        counted = counter.peak_bytes(steps)
    plan = predict(MemoryPlan(batch_size=4, accumulation=1, keep="attention"), planner.facts)
    assert plan.phases["step"] - plan.predicted["base"] == pytest.approx(counted, rel=0.05)
