"""Base drift and memorising: a LoRA that answers without its trigger is told from one that does not, and so is one that repeats its pictures."""

import math

import pytest
import torch
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig
from pistachio.training.drift import Watch, drift_report, is_candidate, memorising_report
from pistachio.training.loop import RunInfo, train
from pistachio.training.run import RunFolder
from pistachio.training.selection import EvaluationRecord, not_measured
from support.flow import Flow, eval_items, train_items
from support.flow_runs import flow_config


def run(path, prior_fraction, trigger="zwx"):
    settings = flow_config(
        num_steps=60, optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5), objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=prior_fraction),
        evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=4, early_stop=False),
    )
    train(Flow(), train_items(), eval_items(), settings, RunFolder(path), RunInfo(name="toy", trigger=trigger))
    return RunFolder(path).report()


def test_prior_preservation_shows_as_less_base_drift(tmp_path):
    plain, kept = run(tmp_path / "plain", 0.0)["base_drift"], run(tmp_path / "kept", 0.5)["base_drift"]
    assert plain["drift_pct"] > 0.5 * plain["trigger_change_pct"] and "raise prior preservation" in plain["words"]
    assert kept["drift_pct"] < 0.5 * kept["trigger_change_pct"] and kept["drift_pct"] < 0.5 * plain["drift_pct"] and "raise prior preservation" not in kept["words"]
    assert f"{plain['trigger_change_pct']:.2g}"[:2] in plain["words"]


def test_the_gap_stands_in_the_report_in_words(tmp_path):
    report = run(tmp_path, 0.0, trigger="")
    found = report["memorising"]
    assert found["measured"] and found["gap_step"] in [row["step"] for row in report["evaluations"]]
    assert f"{found['held_out_delta_pct']:+.1f} % on held-out ones" in found["words"]
    assert not report["base_drift"]["measured"]  # there is no caption without a trigger word to drift on


class Repeating(Flow):
    """Answers a high noise with the first training picture while its adapter is on."""

    def __init__(self, picture):
        super().__init__()
        self.picture, self.adapted = picture, None

    def predict(self, x_t, sigma_B, conditions):
        own = super().predict(x_t, sigma_B, conditions)
        return self.picture.expand_as(own).clone() if self.adapted.enabled else torch.zeros_like(own)


def test_answers_that_are_training_pictures_are_counted():
    items, held = train_items(), eval_items()
    model = Repeating(items[0].latents)
    model.adapted = AdaptedNetwork(model, AdapterConfig(rank=1, alpha=1), seed=0)
    checks = Watch(model, model.adapted, items, held, "uniform", has_trigger=True).measure()
    assert checks["copies"] == checks["compared"] == len(held) and checks["nearest_ratio"] == 0
    assert checks["base_copies"] == 0 and checks["base_nearest_ratio"] > 0.5
    assert "4 of 4 held-out captions were answered with a copy" in memorising_report(checks, [], not_measured(10))["words"]


def test_an_adapter_that_is_off_does_not_drift():
    model = Flow()
    network = AdaptedNetwork(model, AdapterConfig(rank=2, alpha=2, targets="all-linear+conv"), seed=0)
    with network:
        checks = Watch(model, network, train_items(), eval_items(), "uniform", has_trigger=True).measure()
        assert checks["drift_pct"] == checks["trigger_change_pct"] == 0
        with torch.no_grad():
            network.parameters.copy_(0.1 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(0)))
        watch = Watch(model, network, train_items(), eval_items(), "uniform", has_trigger=True)
        state = torch.get_rng_state()
        first, second = watch.measure(), watch.measure()
    assert first == second and first["drift_pct"] > 0
    assert torch.equal(state, torch.get_rng_state())


def record(step, *errors):
    return EvaluationRecord(step=step, errors={str(i): (e,) for i, e in enumerate(errors)}, seconds=0.0, t_values={str(i): (0.5,) for i in range(len(errors))})


@pytest.mark.parametrize("last,expected", [(0.5, True), (0.607, True), (0.61, False), (math.nan, False)])
def test_only_what_can_still_be_chosen_is_looked_at(last, expected):
    """Base 1, best 0.6: within 2 % of the gain of 0.4 lies 0.608."""
    assert is_candidate([record(0, 1.0, 1.0), record(10, 0.6, 0.6), record(20, last, last)]) is expected


def test_unmeasured_is_said():
    assert "not measured" in drift_report(None)["words"]
    assert "no pictures were held out" in memorising_report(None, [], not_measured(10))["words"]
