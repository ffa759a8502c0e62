"""A run that is killed at any moment ends with the same losses, weights, samples and choice, bit for bit; so does one that is extended."""

import random
import sys

import pytest
import torch
from pistachio.training import schedules
from pistachio.training.config import EvaluationConfig, OptimizerConfig
from pistachio.training.errors import NonFiniteLossError
from pistachio.training.run import RunFolder
from support.cancelling import Cancelled, cancel_after
from support.flow_runs import contents, differences, flow_config, flow_run
from support.killed import Killer

forks = pytest.mark.skipif(sys.platform == "win32", reason="lives are forked, and killed by a signal")


@pytest.fixture(scope="module")
def killer():
    with Killer("flow") as server:
        yield server


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Contents of a run that nothing stopped, trained in this process."""
    folder = tmp_path_factory.mktemp("whole")
    flow_run(folder)
    return contents(folder)


@pytest.fixture(scope="module")
def life(killer, expected, tmp_path_factory):
    """What the life without a kill answered; the same run in another process."""
    folder = tmp_path_factory.mktemp("life")
    answer = killer.live(folder, save_interval_seconds=0)  # saves by time are besides: a place among these is always come to
    assert answer["status"] == "finished" and differences(contents(folder), expected) == []
    return answer


def ended(killer, folder) -> dict:
    assert killer.live(folder)["status"] == "finished"
    return contents(folder)


@forks
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_times_it_ends_the_same(killer, life, expected, tmp_path, seed):
    """Three kills a run, at moments drawn over its whole length."""
    moments, killed_before = random.Random(seed), killer.num_kills
    for num_rows in sorted(moments.randint(0, life["points"]["row"] - 8) for _ in range(3)):
        killer.live(tmp_path, kill_after_rows=num_rows, kill_after_seconds=moments.uniform(0, 0.02))
    assert killer.num_kills - killed_before == 3
    assert differences(ended(killer, tmp_path), expected) == []


@forks
@pytest.mark.parametrize("seed", range(4))
def test_killed_while_saving_it_ends_the_same(killer, life, expected, tmp_path, seed):
    """Twice in one run, each within a write that is left half done: state, checkpoint, samples, report or a row."""
    places, killed_before = random.Random(100 + seed), killer.num_kills
    # The second is counted from where the first life's save lets it begin: its half is always come to.
    for _ in range(2):
        kind = places.choice(("save", "save", "row"))
        killer.live(tmp_path, kill_at=(kind, places.randint(1, life["points"][kind] // 2)))
    assert killer.num_kills - killed_before == 2
    assert differences(ended(killer, tmp_path), expected) == []


@forks
def test_killed_at_its_last_writes_it_ends_the_same(killer, life, expected, tmp_path):
    """The last checkpoint, its state, the chart and the report."""
    killer.live(tmp_path, kill_at=("save", life["points"]["save"] - 12), save_interval_seconds=0)
    while killer.live(tmp_path, kill_at=("save", 5), save_interval_seconds=0)["status"] == "killed" and killer.num_kills < 30:
        if RunFolder(tmp_path).is_finished():
            break
        killer.live(tmp_path, kill_at=("save", 9), save_interval_seconds=0)
    assert differences(ended(killer, tmp_path), expected) == []


def test_a_cancel_within_an_evaluation_that_a_kill_had_already_saved(tmp_path, expected):
    """The checkpoint of the killed life is there, and its evaluation is not in the metrics any more: it must be measured again."""
    folder = tmp_path / "cut"

    class Killed(BaseException):
        pass

    save, saves = RunFolder.save_state, [0]

    def save_until_killed(self, state):
        saves[0] += 1
        if saves[0] >= 3:  # after the second checkpoint, before its state
            raise Killed
        save(self, state)

    RunFolder.save_state = save_until_killed
    try:
        with pytest.raises(Killed):
            flow_run(folder)
    finally:
        RunFolder.save_state = save
    second = RunFolder(folder).checkpoint_steps()[-1]
    assert RunFolder(folder).load_state()["step"] < second
    steps_to_go = second - RunFolder(folder).load_state()["step"]
    with pytest.raises(Cancelled):  # the first check within the evaluation
        flow_run(folder, check_interrupted=cancel_after(steps_to_go + 5))
    flow_run(folder)
    assert differences(contents(folder), expected) == []


@pytest.mark.parametrize("calls", [0, 7, 30, 61])
def test_a_cancel_anywhere_changes_nothing(tmp_path, calls, expected):
    with pytest.raises(Cancelled):
        flow_run(tmp_path / "cut", check_interrupted=cancel_after(calls))
    flow_run(tmp_path / "cut")
    assert differences(contents(tmp_path / "cut"), expected) == []


def test_the_state_is_saved_between_evaluations_when_time_has_passed(tmp_path, expected):
    steps = []
    save = RunFolder.save_state

    def noting(self, state):
        steps.append(state["step"])
        save(self, state)

    RunFolder.save_state = noting
    try:
        flow_run(tmp_path / "often", save_interval_seconds=1e-9)
    finally:
        RunFolder.save_state = save
    assert steps == list(range(49))
    assert differences(contents(tmp_path / "often"), expected) == []


def test_samples_change_no_number(tmp_path, expected):
    flow_run(tmp_path, sampler=None)
    one, other = dict(expected), contents(tmp_path)
    assert sum(name.startswith("samples/") for name in one["files"]) == 2 * 5  # steps 0, 12, 24, 36, 48
    one["rows"] = [row for row in one["rows"] if row["kind"] != "sample"]
    one["files"] = {name: data for name, data in one["files"].items() if not name.startswith("samples/")}
    assert differences(one, other) == []


def test_samples_that_fail_are_a_note_in_the_report(tmp_path, expected):
    from support.flow_runs import FlowSampler

    class Full(FlowSampler):
        def sample(self, step):
            if step == 12:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().sample(step)

    flow_run(tmp_path / "full", sampler=Full)
    report = RunFolder(tmp_path / "full").report()
    assert report["finished"] and [note for note in report["notes"] if "No samples at step 12 (out of GPU memory)" in note]
    assert not (tmp_path / "full" / "samples" / "step-000012").exists() and (tmp_path / "full" / "samples" / "step-000024").exists()
    assert contents(tmp_path / "full")["state"] == expected["state"]


# ---- extending ---------------------------------------------------------------


def extended(path, first, last):
    flow_run(path, first, sampler=None)
    report = RunFolder(path).report()
    RunFolder(path).write_json("config.json", {"settings": {"num_steps": last.num_steps}})
    return flow_run(path, last, continued_from=report["last_step"], sampler=None)


def train_rows(path):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in RunFolder(path).metrics() if row["kind"] == "train"]


@pytest.mark.parametrize("evaluation", [
    EvaluationConfig(num_evaluations=8, timesteps_per_image=4, early_stop=False),
    EvaluationConfig(num_evaluations=8, timesteps_per_image=4, min_evaluations=1, patience=1),  # stops before the end
], ids=["to the end", "stopped early"])
def test_at_a_constant_rate_an_extended_run_is_the_longer_run(tmp_path, evaluation):
    """Losses, raw weights, average and moments, bit for bit."""
    rate = 0.05 if evaluation.early_stop else 5e-3
    steady = OptimizerConfig(learning_rate=rate, warmup_steps=5, schedule="constant", ema_decay=0.9)
    short, long = (flow_config(num_steps=n, optimizer=steady, evaluation=evaluation) for n in (16, 24))
    extended(tmp_path / "extended", short, long)
    stopped_at = RunFolder(tmp_path / "extended").report()["last_step"]
    never = flow_config(num_steps=24, optimizer=steady)
    flow_run(tmp_path / "long", never, sampler=None)
    rows, expected = train_rows(tmp_path / "extended"), train_rows(tmp_path / "long")
    assert len(rows) > 16 * 0.5 and rows == expected[: len(rows)]
    if not evaluation.early_stop:
        assert stopped_at == 24
        one, other = (contents(tmp_path / name)["state"] for name in ("extended", "long"))
        assert one == other


def test_a_cosine_run_keeps_its_first_part_and_says_how_it_goes_on(tmp_path):
    falling = OptimizerConfig(learning_rate=5e-3, warmup_steps=5, schedule="cosine")
    short, long = (flow_config(num_steps=n, optimizer=falling) for n in (16, 24))
    extended(tmp_path / "extended", short, long)
    flow_run(tmp_path / "long", long, sampler=None)
    rows, planned = train_rows(tmp_path / "extended"), train_rows(tmp_path / "long")
    first_part = [schedules.learning_rate_at(step, num_steps=16, config=falling) for step in range(1, 17)]
    assert [row["lr"] for row in rows[:16]] == pytest.approx(first_part, rel=1e-6) and len(rows) == 24
    assert [row["lr"] for row in rows[16:]] == [row["lr"] for row in planned[16:]]
    (note,) = [note for note in RunFolder(tmp_path / "extended").report()["notes"] if note.startswith("Continued")]
    assert f"goes on at {rows[16]['lr']:.2g} and ends at {rows[-1]['lr']:.2g}" in note


def test_a_cancelled_extension_ends_the_same(tmp_path):
    short, long = flow_config(num_steps=16), flow_config(num_steps=24)
    extended(tmp_path / "whole", short, long)
    flow_run(tmp_path / "cut", short, sampler=None)
    RunFolder(tmp_path / "cut").write_json("config.json", {"settings": {"num_steps": 24}})
    assert not RunFolder(tmp_path / "cut").is_finished()
    with pytest.raises(Cancelled):
        flow_run(tmp_path / "cut", long, continued_from=16, sampler=None, check_interrupted=cancel_after(6))
    flow_run(tmp_path / "cut", long, continued_from=16, sampler=None)
    assert RunFolder(tmp_path / "cut").is_finished()
    assert differences(contents(tmp_path / "cut"), contents(tmp_path / "whole")) == []


# ---- files -------------------------------------------------------------------


def test_a_row_cut_within_a_letter_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append_metric({"kind": "note", "step": 1, "text": "Zoë\u2028in einer Zeile"})
    line = '{"kind": "note", "step": 2, "text": "Zoë"}'.encode()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(line[: line.index("ë".encode()) + 1])
    assert [row["step"] for row in folder.metrics()] == [1]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "checkpoints" / ".step-000007.tmp").mkdir(parents=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / ".state.pt.tmp").write_bytes(b"half")
    RunFolder(tmp_path).remove_leftovers()
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


# ---- errors ------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["loss", "weights"])
def test_a_non_finite_loss_leaves_the_last_good_state(tmp_path, broken, expected):
    """Also where the step before has already broken the weights: the state on the disk stays then."""
    from pistachio.training import trainer as trainer_module

    advance, steps = trainer_module.Trainer.advance, []

    def breaking(self):
        if self.step == 19:
            if broken == "weights":
                with torch.no_grad():
                    self.network.parameters[0] = float("nan")
            raise NonFiniteLossError("The loss became nan at step 20.")
        steps.append(self.step)
        return advance(self)

    trainer_module.Trainer.advance = breaking
    try:
        with pytest.raises(NonFiniteLossError):
            flow_run(tmp_path / "run")
        assert RunFolder(tmp_path / "run").load_state()["step"] == (19 if broken == "loss" else 18)
        assert RunFolder(tmp_path / "run").report()["state"] == "diverged" and not RunFolder(tmp_path / "run").is_finished()
    finally:
        trainer_module.Trainer.advance = advance
    flow_run(tmp_path / "run")
    assert differences(contents(tmp_path / "run"), expected) == []


def test_an_update_that_breaks_off_is_not_saved(tmp_path, expected):
    """Out of memory within the optimiser: some weights have moved and some have not."""
    step, calls = torch.optim.AdamW.step, [0]

    def until_full(self, *args, **kwargs):
        calls[0] += 1
        if calls[0] == 20:
            with torch.no_grad():
                self.param_groups[0]["params"][0].flatten()[:3] += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = until_full
    try:
        with pytest.raises(ValueError, match="Out of GPU memory"):
            flow_run(tmp_path / "run")
    finally:
        torch.optim.AdamW.step = step
    assert calls[0] == 20 and RunFolder(tmp_path / "run").load_state()["step"] == 18
    flow_run(tmp_path / "run")
    assert differences(contents(tmp_path / "run"), expected) == []
