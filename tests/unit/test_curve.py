"""A run's curve out of its metrics: read as it grows, thinned to what a page can show, with every peak kept."""

import json
import re

import pytest

from pistachio.training import curve as curve_module
from pistachio.training.curve import Curve


def train(step: int, loss: float = 1.0) -> dict:
    return {"kind": "train", "step": step, "loss": 9.0, "loss_ema": loss, "seconds": 0.5}


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def metrics(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_it_reads_only_what_was_appended(metrics):
    curve = Curve(metrics)
    assert curve.update().step == 0  # no file yet
    metrics.write_text(lines(train(1), train(2, 0.5)))
    curve.update()
    before = curve.offset
    with open(metrics, "a") as file:
        file.write(lines(train(3, 0.25)) + '{"kind": "tra')
    assert curve.update().training(100) == {"stride": 1, "steps": [1, 2, 3], "low": [1.0, 0.5, 0.25], "high": [1.0, 0.5, 0.25]}
    assert curve.offset == before + len(lines(train(3, 0.25)))
    with open(metrics, "a") as file:
        file.write('in", "step": 4, "loss": 1, "loss_ema": 2.0, "seconds": 0.5}\n')
    assert curve.update().training(100)["low"][-1] == 2.0


def test_rows_that_were_written_anew_replace_the_others(metrics):
    metrics.write_text(lines(*(train(step) for step in range(1, 50))))
    curve = Curve(metrics).update()
    metrics.write_text(lines(*(train(step, 2.0) for step in range(1, 80))))
    assert curve.update().training(100)["steps"] == list(range(1, 80)) and set(curve.training(100)["low"]) == {2.0}
    metrics.write_text(lines(train(1)))
    assert curve.update().step == 1


def test_every_peak_of_a_long_run_is_kept(metrics):
    metrics.write_text(lines(*(train(step, 7.0 if step == 777 else -3.0 if step == 4001 else 1.0) for step in range(1, 5001))))
    whole = Curve(metrics).update().training(100)
    assert whole["stride"] == 64 and len(whole["steps"]) <= 100
    assert max(whole["high"]) == 7.0 and min(whole["low"]) == -3.0
    part = Curve(metrics).update().training(100, 770, 790)
    assert part["stride"] == 1 and part["steps"] == list(range(770, 791)) and max(part["high"]) == 7.0
    assert Curve(metrics).update().training(100, 9000, 9900)["steps"] == []


def test_the_other_rows_come_without_what_no_curve_shows(metrics):
    metrics.write_text(lines(
        {"kind": "eval", "step": 0, "loss": 2.0, "errors": {"a": [1.0]}, "t_values": {}, "checks": {}}, {"kind": "probe", "step": 0, "train_loss": 1.0},
        {"kind": "note", "step": 0, "text": "One."}, {"kind": "note", "step": 1, "text": "Two."}, {"kind": "sample", "step": 1, "pictures": []}, train(2, None),
    ))
    curve = Curve(metrics).update()
    assert curve.evaluations == [{"kind": "eval", "step": 0, "loss": 2.0}] and curve.probes[0]["train_loss"] == 1.0
    assert curve.note == "Two." and curve.samples[0]["step"] == 1
    assert curve.training(10)["low"] == [9.0]  # without a smoothed loss the plain one


def test_rows_of_the_loop_are_read_as_their_json_says(metrics, monkeypatch):
    values = [1.5, 1e-7, None, float("nan"), 2, -3.25e-05]
    rows = [
        {"kind": "train", "step": step, "loss": 9.0 + step, "loss_ema": loss, "prior_loss": None, "grad_norm": 0.1, "lr": 1e-4, "seconds": seconds}
        for step, (loss, seconds) in enumerate(zip(values, [0.5, 1e-3, None, 2, 0.25, 1.0]), start=1)
    ]
    rows.append(rows[0] | {"step": 7, "more": {"seconds": 1.0}})
    metrics.write_text(lines(*rows))
    fast = Curve(metrics).update()
    monkeypatch.setattr(curve_module, "TRAIN_ROW", re.compile(rb"(?!)"))
    whole = Curve(metrics).update()
    assert fast.steps == whole.steps and fast.losses == whole.losses and list(fast.steps) == [1, 2, 3, 5, 6, 7] and fast.losses[2] == 12.0
    assert (fast.step, fast.seconds_per_step) == (whole.step, whole.seconds_per_step)
