"""What a person asks of a run while it trains: it is done between two steps, and no step before it changes."""

import pytest
import torch

from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, to_dict
from pistachio.training.errors import PistachioError
from pistachio.training.loop import RunInfo, train
from pistachio.training.run import RunFolder
from pistachio.training.wishes import Wishes
from support.flow import Flow, eval_items, train_items

STEPS, AT = 24, 7


def config():
    return TrainConfig(
        num_steps=STEPS, batch_size=2, seed=1, adapter=AdapterConfig(rank=4, alpha=4), optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=5),
        objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.0),
        evaluation=EvaluationConfig(num_evaluations=4, timesteps_per_image=2),
    )


def run(folder, wish=None, at=AT):
    wishes, folder = Wishes(), RunFolder(folder)

    def ask(row):
        if wish and row["kind"] == "train" and row["step"] == at:
            wishes.ask(wish)

    folder.write_json("config.json", {"settings": to_dict(config())})
    model = Flow()
    train(model, train_items(), eval_items(), config(), folder, RunInfo(name="mia"), wishes=wishes, log_row=ask)
    return folder


def steps(folder, kind):
    return [row["step"] for row in folder.metrics() if row["kind"] == kind]


@pytest.fixture
def plain(tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    return run(folder)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "asked").mkdir()
    return tmp_path / "asked"


def test_an_evaluation_that_is_asked_for_changes_no_step(plain, place):
    asked = run(place, "evaluate")
    assert AT not in steps(plain, "eval") and AT in steps(asked, "eval") and AT in asked.checkpoint_steps()
    losses = [[row["loss"] for row in folder.metrics() if row["kind"] == "train"] for folder in (plain, asked)]
    assert losses[0] == losses[1]
    assert torch.equal(plain.load_state()["average"], asked.load_state()["average"])


def test_stop_measures_and_keeps_what_there_is(plain, place):
    stopped = run(place, "stop")
    report = stopped.report()
    assert steps(stopped, "train") == list(range(1, AT + 1)) and stopped.checkpoint_steps()[-1] == AT
    assert stopped.is_finished() and report["last_step"] == AT and any("you stopped it at step 7" in note for note in report["notes"])
    assert [row["loss"] for row in stopped.metrics() if row["kind"] == "train"] == [row["loss"] for row in plain.metrics() if row["kind"] == "train"][:AT]


def test_what_a_run_cannot_do_is_refused():
    with pytest.raises(PistachioError, match="Sample Settings"):
        Wishes().ask("sample")
    with pytest.raises(PistachioError, match="evaluate, sample, stop"):
        Wishes().ask("pause")


def test_a_wish_is_granted_once():
    wishes = Wishes(makes_samples=True)
    wishes.ask("sample")
    wishes.ask("sample")
    assert wishes.take() == {"sample"} and wishes.take() == frozenset()
