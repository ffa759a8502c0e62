"""K folds and the run on all pictures: who is held out when, one curve out of several, the chosen step again, and a kill in between."""

import json

import pytest
from pistachio.training.config import EvaluationConfig
from pistachio.training.errors import PistachioError
from pistachio.training.evaluation import EvalItem
from pistachio.training.folds import assign_folds, choose, evidence_rows, fold_config, fold_folder, pool, refit_of, run_folds, write_evidence
from pistachio.training.loop import RunInfo, train
from pistachio.training.report import records_from_rows
from pistachio.training.run import RunFolder
from pistachio.training.selection import EvaluationRecord, select
from support.flow import Flow, train_items
from support.flow_runs import flow_config

FOLDED = EvaluationConfig(num_evaluations=6, timesteps_per_image=4, folds=3)


def test_every_picture_is_held_out_once_and_near_duplicates_stay_together():
    groups = {f"{i:02d}": f"{i:02d}" for i in range(12)} | {"a": "a", "b": "a", "c": "a"}
    folds = assign_folds(groups, 5)
    assert sorted(h for fold in folds for h in fold) == sorted(groups)
    assert sum({"a", "b", "c"} <= fold for fold in folds) == 1
    assert {len(fold) for fold in folds} == {3}
    assert folds == assign_folds(dict(reversed(list(groups.items()))), 5)


def test_kinds_are_dealt_out_evenly():
    kinds = {f"{i:02d}": "wide" if i < 4 else "tall" for i in range(12)}
    folds = assign_folds({h: h for h in kinds}, 4, kinds=kinds)
    assert [sum(kinds[h] == "wide" for h in fold) for fold in folds] == [1, 1, 1, 1]


def test_more_folds_than_pictures_are_refused():
    with pytest.raises(PistachioError, match="4 folds need as many different pictures, and there are 2"):
        assign_folds({"a": "a", "b": "b", "c": "b"}, 4)


def test_one_fold_is_refused_and_folds_run_to_their_end():
    with pytest.raises(PistachioError, match="1 folds"):
        EvaluationConfig(folds=1)
    assert not fold_config(flow_config(evaluation=FOLDED)).evaluation.early_stop
    assert fold_config(flow_config(evaluation=EvaluationConfig(refit=True))).evaluation.early_stop


def record(step, **errors):
    return EvaluationRecord(step=step, errors={h: (e, e) for h, e in errors.items()}, seconds=1.0, t_values={h: (0.3, 0.7) for h in errors})


def test_pooling_takes_each_picture_from_the_run_that_held_it_out():
    one = [record(0, a=1.0), record(10, a=0.5), record(20, a=0.9), record(30, a=0.1)]
    two = [record(0, b=2.0), record(10, b=1.8), record(20, b=1.0)]
    pooled = pool([one, two])
    assert [r.step for r in pooled] == [0, 10, 20]  # what only one fold measured is no average
    assert pooled[1].errors == {"a": (0.5, 0.5), "b": (1.8, 1.8)} and pooled[1].seconds == 2.0
    assert select(pooled).best_step == 20  # -0.35 at 10, -0.55 at 20


class Folded:
    """Folds of the small flow model, as the host's side drives them."""

    def __init__(self, path, num_steps=18):
        self.run, self.config = RunFolder(path), flow_config(num_steps=num_steps, evaluation=FOLDED)
        path.mkdir(parents=True)
        self.items = train_items(9)
        self.kill_at = self.calls = 0

    def sit(self, folder, held_out, config, refit=None):
        model, predict = Flow(), Flow.predict

        def counted(*args):
            self.calls += 1
            if self.calls == self.kill_at:
                raise KeyboardInterrupt
            return predict(model, *args)

        model.predict = counted
        held = [EvalItem(content_hash=i.content_hash, latents=i.latents, condition=i.condition, group=i.group) for i in self.items if i.content_hash in held_out]
        trained = [item for item in self.items if item.content_hash not in held_out]
        return train(model, trained, held, config, folder, RunInfo(name=folder.name), refit=refit)

    def train_fold(self, folder, held_out, number):
        folder.path.mkdir(parents=True, exist_ok=True)
        if not (folder.report() or {}).get("finished"):
            self.sit(folder, held_out, fold_config(self.config))

    def go(self):
        sets = assign_folds({item.content_hash: item.content_hash for item in self.items}, self.config.evaluation.folds)
        refit = run_folds(self.run, sets, self.train_fold)
        self.sit(self.run, frozenset(), self.config, refit)
        return refit

    def weights(self, step):
        return self.run.checkpoint_file(step).read_bytes()[-2048:]


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    made = Folded(tmp_path_factory.mktemp("folds") / "anna")
    made.refit = made.go()
    return made


def test_the_last_run_is_on_all_pictures_for_the_step_that_the_folds_chose(folded):
    report, refit = folded.run.report(), folded.refit
    pooled = pool([records_from_rows(fold_folder(folded.run, n).metrics()) for n in (1, 2, 3)])
    assert refit.step == select(pooled).chosen_step > 0
    assert {len(r.errors) for r in pooled} == {9}
    assert report["chosen_step"] == refit.step and folded.run.checkpoint_steps() == [refit.step]
    assert report["finished"] and report["n_train"] == 9 and report["n_images"] == 9
    assert report["refit"] == {"step": refit.step, "n_pictures": 9, "measured": False, "num_folds": 3, "source": ""}
    assert report["verdict"].endswith("that result is not measured.") and "average of 3 runs" in report["verdict"]
    assert len(report["evaluations"]) == 7 and not report["offers"]
    assert records_from_rows(evidence_rows(folded.run)) == pooled


def test_the_learning_rates_are_those_of_the_whole_run(folded):
    """The chosen step was chosen within a schedule: the last run must not fall to zero sooner."""
    mine = {row["step"]: row["lr"] for row in folded.run.metrics() if row["kind"] == "train"}
    fold = {row["step"]: row["lr"] for row in fold_folder(folded.run, 1).metrics() if row["kind"] == "train"}
    assert max(mine) == folded.refit.step and max(fold) == 18
    assert all(mine[step] == fold[step] for step in mine)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_kill_in_any_part_changes_nothing(folded, tmp_path, share):
    again = Folded(tmp_path / "again")
    again.kill_at = int(share * folded.calls)
    with pytest.raises(KeyboardInterrupt):
        again.go()
    again.kill_at = 0
    refit = again.go()
    assert refit.step == folded.refit.step
    assert again.weights(refit.step) == folded.weights(refit.step)
    assert again.run.report()["evaluations"][-1]["errors"] == folded.run.report()["evaluations"][-1]["errors"]


def test_a_finished_run_is_trained_again_on_all_pictures_for_its_own_step(tmp_path):
    made = Folded(tmp_path / "source")
    held_out = frozenset({"00", "01", "02", "03"})
    plain = flow_config(num_steps=18, evaluation=EvaluationConfig(num_evaluations=6, timesteps_per_image=4))
    selection = made.sit(made.run, held_out, plain)
    made.run.write_json("config.json", {"settings": {"num_steps": plain.num_steps}})
    refit = refit_of(made.run)
    whole = RunFolder(tmp_path / "source-all")
    whole.path.mkdir()
    write_evidence(whole, refit)
    made.sit(whole, frozenset(), plain, refit)
    report = whole.report()
    assert report["chosen_step"] == selection.chosen_step and report["n_train"] == 9
    assert report["refit"]["source"] == "source" and "chosen by run 'source'" in report["verdict"]
    assert json.dumps(report)  # no NaN
    with pytest.raises(PistachioError, match="trained on all pictures already"):
        whole.write_json("config.json", {"settings": {"num_steps": plain.num_steps}})
        refit_of(whole)


def test_a_curve_that_only_rises_to_nothing_finite_chooses_no_step():
    bad = [record(0, a=1.0, b=1.0), record(10, a=float("nan"), b=1.0)]
    with pytest.raises(PistachioError, match="No number of steps can be recommended"):
        choose(bad, num_folds=2)


def test_an_unfinished_run_is_no_source(tmp_path):
    with pytest.raises(PistachioError, match="is not finished"):
        refit_of(RunFolder(tmp_path))

