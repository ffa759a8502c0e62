"""Metrics rows, report.json and the metadata of the LoRA file."""

import json
import math
from datetime import datetime, timezone

import pytest
import safetensors
import safetensors.torch
import torch
from PIL import Image

from pistachio.training.config import AdapterConfig, TrainConfig, to_dict
from pistachio.training.metadata import lora_metadata
from pistachio.training.report import build_report, eval_row, eval_rows, offers, records_from_rows, write_report
from pistachio.training.selection import EvaluationRecord, not_measured, override, select

HASHES = [f"{i}{'abcdef0123456789' * 4}"[:64] for i in range(4)]
T = (0.125, 0.375, 0.625, 0.875)


def make_records():
    """Low noise is best at step 20, high noise at step 40."""
    table = {0: (1.0, 1.0, 1.0, 1.0), 20: (0.7, 0.8, 0.95, 0.9), 40: (0.9, 0.85, 0.8, 0.7), 60: (0.95, 0.95, 0.9, 0.8)}
    return [
        EvaluationRecord(
            step=step, seconds=2.5, t_values={h: T for h in HASHES},
            errors={h: tuple((1 + 0.1 * i) * e for e in errors) for i, h in enumerate(HASHES)},
        )
        for step, errors in table.items()
    ]


def make_report(records, selection, **more):
    return build_report(run="mia", selection=selection, records=records, settings=to_dict(TrainConfig(seed=7)), seed=7,
                        versions={"pistachio": "0.1.0", "torch": "2.11.0"}, split_id="0123456789abcdef", n_train=16, **more)


def test_row_by_hand():
    row = eval_row(make_records()[:2])
    # Step 20: each picture's mean falls from 1 to .8375, scaled by 1, 1.1, 1.2, 1.3.
    assert (row["kind"], row["step"], row["n_images"], row["seconds"]) == ("eval", 20, 4, 2.5)
    assert row["loss"] == pytest.approx(0.8375 * 1.15)
    assert row["loss_delta"] == pytest.approx(-0.1625 * 1.15)
    assert row["loss_delta_pct"] == pytest.approx(-16.25)
    assert row["se"] == pytest.approx(0.1625 * 0.1 * math.sqrt(5 / 3) / 2)  # sd of 0, 1, 2, 3 is sqrt(5 / 3)
    assert row["se_vs_best"] == 0.0
    assert row["t_q"] == pytest.approx([-30.0, -20.0, -5.0, -10.0])
    assert row["images"] == {h[:8]: pytest.approx(-0.1625 * (1 + 0.1 * i)) for i, h in enumerate(HASHES)}


def test_se_vs_best_is_against_the_best_so_far():
    rows = eval_rows(make_records())
    # Best is step 40 (mean .8125), step 60 is .9: difference .0875 * (1, 1.1, 1.2, 1.3).
    assert [row["se_vs_best"] for row in rows[:3]] == [0.0, 0.0, 0.0]
    assert rows[3]["se_vs_best"] == pytest.approx(0.0875 * 0.1 * math.sqrt(5 / 3) / 2)


def test_rows_bring_the_records_back_through_json():
    records = make_records()
    rows = [{"kind": "train", "step": 3, "loss": 0.5}, *eval_rows(records), {"kind": "note", "step": 4, "text": "resumed"}]
    read = records_from_rows([json.loads(json.dumps(row, allow_nan=False)) for row in rows])
    assert list(read) == records
    assert select(read) == select(records)


def test_a_step_evaluated_again_after_a_resume_counts_once():
    records = make_records()
    again = eval_row(records[:3]) | {"seconds": 9.0}
    read = records_from_rows([*eval_rows(records), again])
    assert [record.step for record in read] == [0, 20, 40, 60] and read[2].seconds == 9.0


def test_numbers_that_are_not_finite_survive_json():
    broken = [*make_records(), EvaluationRecord(step=80, seconds=1.0, t_values={h: T for h in HASHES},
                                                errors={h: (math.nan, 1.0, math.inf, 1.0) for h in HASHES})]
    row = json.loads(json.dumps(eval_rows(broken)[-1], allow_nan=False))
    assert row["loss"] is None and row["t_q"][1] is not None and row["t_q"][0] is None
    assert select(records_from_rows([*eval_rows(broken)[:-1], row])).state == "diverged"


def test_report_holds_everything():
    records = make_records()
    selection = select(records)
    report = json.loads(json.dumps(make_report(records, selection, stop_reason="No better checkpoint.", notes=("cut",)), allow_nan=False))
    assert (report["chosen_step"], report["state"], report["words"]) == (40, selection.state, list(selection.words))
    assert report["verdict"] == report["words"][0] and report["verdict_message"] == report["messages"][0] == {"code": "verdict.overfit", "values": {"best": "40", "chosen": "40"}}
    assert [message["code"].split(".")[0] for message in report["messages"]] == ["verdict"] + ["selection"] * (len(report["words"]) - 1)
    assert report["quarters"]["best_steps"] == [20, 20, 40, 40]
    assert (report["quarters"]["best_step_low_noise"], report["quarters"]["best_step_high_noise"]) == (20, 40)
    for record in records:  # every e_ij
        found = next(e for e in report["evaluations"] if e["step"] == record.step)
        assert {h: tuple(v) for h, v in found["errors"].items()} == record.errors
    assert report["t_values"] == {h: list(T) for h in HASHES}
    assert report["settings"]["seed"] == report["seed"] == 7
    assert report["versions"]["torch"] == "2.11.0" and report["split_id"] == "0123456789abcdef"
    assert report["protocol"]["version"] == "pistachio-eval-1"
    assert (report["stop_reason"], report["notes"]) == ("No better checkpoint.", ["cut"])
    assert report["last_delta_pct"] == pytest.approx(-10.0)


def test_offers():
    records = make_records()
    assert make_report(records, select(records))["offers"] == [
        "Continue by 50 % (to step 90).",
        "Train again on all 20 pictures for 40 steps; that result is not measured.",
    ]
    assert make_report([], not_measured(300))["offers"] == ["Continue by 50 % (to step 450)."]
    assert offers(not_measured(300), n_train=16, num_steps=2000) == ["Continue to step 2000, as planned."], "stopped before"


def test_an_override_is_in_the_report():
    records = make_records()
    report = make_report(records, override(select(records), records, 20))
    assert (report["overridden"], report["chosen_step"], report["automatic_step"]) == (True, 20, 40)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_both_files_are_written_whole(tmp_path, count):
    records = make_records()[:count]
    selection = select(records) if count else not_measured(60)
    report = make_report(records, selection)
    rows = eval_rows(records) if count else []
    for _ in range(2):  # a finished run may be selected again
        report_path, chart_path = write_report(tmp_path, report, rows, selection)
    assert json.loads(report_path.read_text("utf-8")) == json.loads(json.dumps(report))
    with Image.open(chart_path) as chart:
        assert chart.format == "PNG" and chart.width == 900
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.png", "report.json"]


def make_metadata(**more):
    records = make_records()
    given = {
        "name": "mia", "step": 40, "family": "SDXL", "is_flow": False, "trigger": "mia woman", "split_id": "0123456789abcdef",
        "config": TrainConfig(seed=7, num_steps=600, adapter=AdapterConfig(rank=8, alpha=4.0)), "n_train": 16,
        "base_model_hash": "beef", "versions": {"torch": "2.11.0"}, "records": records, "selection": select(records),
        "resolution": (1024, 1024), "created": datetime(2026, 1, 2, tzinfo=timezone.utc),
    }
    return lora_metadata(**(given | more))


PROTOCOL_KEYS = (
    "eval_protocol split_id n_train n_eval t_values loss_space step base_loss eval_delta eval_se state tied_range ema_decay weights "
    "seed base_model_hash versions trigger"
).split()


def test_metadata_survives_a_safetensors_file(tmp_path):
    metadata = make_metadata()
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        read = file.metadata()
    assert read == metadata
    assert {f"pistachio.{key}" for key in PROTOCOL_KEYS} == {key for key in read if key.startswith("pistachio.")}


def test_metadata_values():
    metadata = make_metadata()
    assert json.loads(metadata["pistachio.t_values"]) == list(T)
    assert float(metadata["pistachio.base_loss"]) == pytest.approx(1.15)
    assert float(metadata["pistachio.eval_delta"]) == pytest.approx(-0.1875 * 1.15)
    assert json.loads(metadata["pistachio.tied_range"]) == [40, 40]
    assert float(metadata["pistachio.ema_decay"]) == pytest.approx(0.98)
    assert (metadata["pistachio.state"], metadata["pistachio.step"], metadata["pistachio.weights"]) == ("overfit", "40", "ema")
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert (metadata["modelspec.title"], metadata["modelspec.date"]) == ("mia", "2026-01-02T00:00:00+00:00")
    assert metadata["modelspec.trigger_phrase"] == "mia woman"
    assert metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_output_name"]) == ("8", "4.0", "mia")
    assert json.loads(metadata["ss_tag_frequency"]) == {"pistachio": {"mia woman": 16}}


def test_metadata_of_a_checkpoint_before_the_choice():
    metadata = make_metadata(selection=None, step=20)
    assert "pistachio.state" not in metadata and float(metadata["pistachio.eval_delta"]) == pytest.approx(-0.1625 * 1.15)


def test_metadata_without_held_out_pictures_or_trigger():
    metadata = make_metadata(records=(), selection=not_measured(40), trigger="", family="NewModel", is_flow=True)
    assert (metadata["pistachio.n_eval"], metadata["pistachio.state"]) == ("0", "not measured")
    assert "pistachio.base_loss" not in metadata and "modelspec.trigger_phrase" not in metadata
    assert metadata["modelspec.architecture"] == "newmodel/lora"


def test_metadata_with_one_held_out_picture_is_valid_json():
    one = [EvaluationRecord(step=s, seconds=0.0, errors={"a" * 64: (1.0 - s / 100,)}, t_values={"a" * 64: (0.5,)}) for s in (0, 40)]
    assert json.loads(make_metadata(records=one, selection=select(one))["pistachio.eval_se"]) is None
