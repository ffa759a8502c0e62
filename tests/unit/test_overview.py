"""The list of runs: what it reads, what may share a chart, and what it may do to a run's folder."""

import json
import shutil
import time

import pytest

from pistachio.training import overview
from pistachio.training.errors import PistachioError
from pistachio.training.overview import compare, rename_run, summarise, thinned, trash_bytes, trash_run
from pistachio.training.report import record_override, withdraw_override
from pistachio.training.run import Run, RunFolder, list_runs

PICTURES = ("a" * 64, "b" * 64)


def evaluation(step, percent, *, pictures=PICTURES, base=2.0, t=0.5):
    loss = base * (1 + percent / 100)
    return {"kind": "eval", "step": step, "loss": loss, "loss_delta": loss - base, "loss_delta_pct": percent, "se": 0.02,
            "errors": {name: [loss] for name in pictures}, "t_values": {name: [t] for name in pictures}}


def write(root, name, percents=(0, -10, -20), *, train_rows=0, report=True, **evaluated):
    run = Run(name=name, folder=root / name)
    folder = RunFolder(run.folder)
    run.folder.mkdir(parents=True)
    folder.write_json("config.json", {"id": name, "family": "SDXL", "settings": {"num_steps": 200}})
    folder.write_json("dataset.json", {"trigger_word": "ohwx", "pictures": [{}, {}, {}]})
    rows = [{"kind": "train", "step": step, "loss": 1.0} for step in range(1, train_rows + 1)]
    rows += [evaluation(100 * i, percent, **evaluated) for i, percent in enumerate(percents)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if report:
        folder.write_json("report.json", {"run": name, "chosen_step": 100, "last_step": 200, "finished": True, "verdict": "Take it.", "eval_delta_pct": -10, "settings": {"num_steps": 200}})
    return run


def test_a_summary_says_what_a_list_shows(tmp_path):
    summary = summarise(write(tmp_path, "mia", train_rows=5))
    assert summary["family"] == "SDXL" and summary["trigger"] == "ohwx" and summary["num_pictures"] == 3
    assert summary["sparkline"] == [[0, 0], [100, -10], [200, -20]]
    assert (summary["chosen_step"], summary["status"], summary["step"]) == (100, "finished", 200)
    assert summary["size_bytes"] == sum(path.stat().st_size for path in (tmp_path / "mia").rglob("*") if path.is_file())


def test_a_summary_follows_the_files(tmp_path):
    run = write(tmp_path, "mia", report=False)
    assert summarise(run)["step"] == 200
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(evaluation(300, -25)) + "\n" + '{"kind": "eval", "st')  # killed while writing
    assert summarise(run)["sparkline"][-1] == [300, -25] and summarise(run)["step"] == 300


def test_a_broken_run_is_listed_as_such(tmp_path):
    run = write(tmp_path, "mia")
    (run.folder / "report.json").write_text('{"run": "mi')
    summary = summarise(run)
    assert summary["status"] == "unreadable" and "can't be read" in summary["verdict"]
    assert summary.keys() == summarise(write(tmp_path, "tom")).keys()


def test_training_rows_are_passed_over_and_a_second_look_reads_nothing(tmp_path, monkeypatch):
    parsed, row_of = [], overview._row
    monkeypatch.setattr(overview, "_row", lambda line: parsed.append(line) or row_of(line))
    run = write(tmp_path, "mia", range(0, -12, -1), train_rows=1000)
    summarise(run)
    assert len(parsed) == 13  # twelve evaluations, and the last row for its step
    summarise(run)
    assert len(parsed) == 13


def test_thinned_keeps_both_ends():
    assert thinned(list(range(1000)), 40)[0] == 0 and thinned(list(range(1000)), 40)[-1] == 999 and len(thinned(list(range(1000)), 40)) == 40
    assert thinned([1, 2], 40) == [1, 2]


def test_runs_of_one_protocol_share_a_chart(tmp_path):
    comparison = compare([write(tmp_path, "a"), write(tmp_path, "b", (0, -5))])
    assert comparison.problem == ""
    assert [curve["name"] for curve in comparison.curves] == ["a", "b"]
    assert comparison.curves[0]["points"][1] == pytest.approx([100, -10, 1.0])


@pytest.mark.parametrize("other, words", [
    ({"pictures": ("a" * 64, "c" * 64)}, "hold out other pictures (1 of 2"),
    ({"t": 0.4}, "other noise levels"),
    ({"base": 2.1}, "began at other losses"),
])
def test_others_are_refused_with_the_reason(tmp_path, other, words):
    assert words in compare([write(tmp_path, "a"), write(tmp_path, "b", **other)]).problem


def test_of_several_runs_those_that_fit_the_first_are_drawn_and_each_other_says_why_not(tmp_path):
    runs = [write(tmp_path, "a"), write(tmp_path, "b", base=2.1), write(tmp_path, "c", (0, -5)), write(tmp_path, "d", t=0.4)]
    comparison = compare(runs)
    assert [curve["name"] for curve in comparison.curves] == ["a", "c"] and comparison.problem == ""
    assert comparison.left_out.keys() == {"b", "d"} and "other noise levels" in comparison.left_out["d"]


def test_a_long_curve_is_thinned_and_keeps_its_ends_and_the_chosen_step(tmp_path):
    long = [-i / 100 for i in range(1500)]
    curve = compare([write(tmp_path, "a", long), write(tmp_path, "b")]).curves[0]
    steps = [point[0] for point in curve["points"]]
    assert 400 <= len(steps) <= 401 and (steps[0], steps[-1]) == (0, 149_900) and curve["chosen_step"] in steps


def test_a_report_is_read_without_its_rows_per_picture(tmp_path):
    from support.many_runs import write_run

    folder = write_run(tmp_path, 0, num_steps=20, num_evaluations=4, with_files=False)
    cut, whole = overview._report(folder.path / "report.json"), folder.report()
    assert len(whole["evaluations"]) == 5 and len(whole["t_values"]) == 6
    assert cut == whole | {"evaluations": [], "t_values": {}}
    odd = {"t_values": {}, "words": ["a", "b"], "evaluations": [], "note": "\n \"evaluations\": [\n"}
    folder.write_json("report.json", odd)
    assert overview._report(folder.path / "report.json") == odd


def test_a_hundred_runs_of_a_thousand_steps_are_read_in_a_moment(tmp_path):
    from support.many_runs import write_runs

    runs = [Run(name=folder.name, folder=folder.path) for folder in write_runs(tmp_path, count=10, with_files=0)]
    first, second = cpu_seconds(runs), cpu_seconds(runs)
    assert first < 1 and second < first / 5  # a tenth of the runs; takes 0.03 s and 0.001 s
    assert [run.name for run in list_runs(tmp_path)] == [run.name for run in runs]
    same = [run for run in runs if run.name.startswith("mia sdxl")] + [run for run in runs if run.name.startswith("mia flux")]
    assert len(same) == 2 and "began at other losses" in compare(same).problem


def cpu_seconds(runs):
    began = time.process_time()
    for run in runs:
        summarise(run)
    return time.process_time() - began


def test_a_run_without_a_base_measurement_is_refused(tmp_path):
    assert "has not measured its base" in compare([write(tmp_path, "a"), write(tmp_path, "b", ())]).problem
    with pytest.raises(PistachioError, match="at least two"):
        compare([write(tmp_path, "c")])


def test_renaming_keeps_everything_and_takes_no_name_away(tmp_path):
    run, other = write(tmp_path, "mia"), write(tmp_path, "tom")
    with pytest.raises(PistachioError, match="already"):
        rename_run(run, other)
    new = Run(name="mia 2", folder=tmp_path / "mia 2")
    rename_run(run, new)
    assert RunFolder(new.folder).report()["run"] == "mia 2" and RunFolder(new.folder).is_finished()
    assert {run.name for run in list_runs(tmp_path)} == {"mia 2", "tom"}


def test_the_trash_keeps_runs_of_one_name_apart(tmp_path):
    first = trash_run(write(tmp_path, "mia"))
    second = trash_run(write(tmp_path, "mia"))
    assert first != second and (first / "metrics.jsonl").is_file() and (second / "metrics.jsonl").is_file()
    assert list_runs(tmp_path) == []


def test_what_is_in_the_trash_still_takes_its_room(tmp_path):
    assert trash_bytes(tmp_path) == 0
    mia, tom = write(tmp_path, "mia"), write(tmp_path, "tom")
    sizes = [summarise(run)["size_bytes"] for run in (mia, tom)]
    trash_run(mia)
    assert trash_bytes(tmp_path) == sizes[0]
    folder = trash_run(tom)
    assert trash_bytes(tmp_path) == sum(sizes)
    shutil.rmtree(folder)
    assert trash_bytes(tmp_path) == sizes[0]


def test_only_a_finished_run_records_what_a_person_took(tmp_path):
    finished, stopped = (RunFolder(write(tmp_path, name, report=report).folder) for name, report in (("mia", True), ("tom", False)))
    assert record_override(finished, 200, "mia-step200.safetensors") and finished.report()["override"]["step"] == 200
    assert not record_override(stopped, 200, "tom-step200.safetensors") and stopped.report() is None
    withdraw_override(finished)
    finished.write_json("config.json", {"id": "mia", "settings": {"num_steps": 400}})  # it is continued: a new report will come
    assert not record_override(finished, 200, "mia-step200.safetensors") and "override" not in finished.report()


def test_a_run_that_is_being_trained_stays_where_it_is(tmp_path):
    run = write(tmp_path, "mia", report=False)
    with RunFolder(run.folder).locked():
        with pytest.raises(PistachioError, match="being trained"):
            trash_run(run)
        with pytest.raises(PistachioError, match="being trained"):
            rename_run(run, Run(name="tom", folder=tmp_path / "tom"))
    assert (run.folder / "metrics.jsonl").is_file()
