"""A real offline wandb run is written and read back from its file; nothing here needs a network or an account."""

import json
import logging
import struct
import sys

import pytest

from pistachio.training.config import LoggingConfig
from pistachio.training.errors import PistachioError
from pistachio.training.logging_wandb import WandbLogger, selection_values, wandb_values
from pistachio.training.report import build_report, eval_rows
from pistachio.training.selection import EvaluationRecord, select

wandb = pytest.importorskip("wandb", reason="wandb is optional; dev.py test installs it")

BLOCK_SIZE, FILE_HEADER_SIZE, CHUNK_HEADER_SIZE = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_wandb_file(path):
    """The records of a .wandb file: protobuf messages in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, records = path.read_bytes(), FILE_HEADER_SIZE, [], []
    assert data[:4] == b":W&B"
    while place + CHUNK_HEADER_SIZE <= len(data):
        left = BLOCK_SIZE - place % BLOCK_SIZE
        if left < CHUNK_HEADER_SIZE:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + CHUNK_HEADER_SIZE : place + CHUNK_HEADER_SIZE + length])
        place += CHUNK_HEADER_SIZE + length
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(b"".join(parts))
            records.append(record)
            parts = []
    return records


def history(records):
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            found.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return found


def summary(records):
    found = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            found |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update}
    return found


def make_records():
    hashes = [f"{i}" * 64 for i in range(4)]
    return [
        EvaluationRecord(step=step, seconds=1.5, t_values={h: (0.2, 0.4, 0.6, 0.8) for h in hashes},
                         errors={h: (e + 0.01 * i,) * 4 for i, h in enumerate(hashes)})
        for step, e in ((0, 1.0), (10, 0.8), (20, 0.7), (30, 0.75))
    ]


def write_run(folder, *, project="pistachio-test"):
    records = make_records()
    selection = select(records)
    report = build_report(run="mia", selection=selection, records=records, settings={}, seed=0, versions={})
    logger = WandbLogger(LoggingConfig(wandb="offline", project=project, tags=("a", "b")), folder, "mia", {"num_steps": 30, "adapter": {"rank": 8}})
    assert logger.active
    evaluations = {row["step"]: row for row in eval_rows(records)}
    logger.log(evaluations[0])
    for step in range(1, 31):
        logger.log({"kind": "train", "step": step, "loss": 1 / step, "loss_ema": 0.5, "prior_loss": None, "grad_norm": 1.0, "lr": 1e-4, "seconds": 0.1})
        if step in evaluations:
            logger.log(evaluations[step])
    # An evaluation that ends after later training rows: wandb would drop it if its own step counter were used.
    logger.log({"kind": "probe", "step": 20, "train_delta": -0.4, "transfer_ratio": 0.6})
    logger.log({"kind": "note", "step": 30, "text": "not for wandb"})
    logger.finish(report)
    logger.finish(report)
    return report


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    report = write_run(folder)
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return folder, report, read_wandb_file(path)


def test_train_rows(offline):
    rows = [row for row in history(offline[2]) if "train/loss" in row]
    assert [row["train/step"] for row in rows] == list(range(1, 31))
    assert rows[3]["train/loss"] == 0.25
    assert {key for key in rows[3] if key.startswith("train/")} == {"train/step", "train/loss", "train/loss_ema", "train/lr"}


def test_eval_rows(offline):
    rows = [row for row in history(offline[2]) if "eval/loss_delta" in row]
    assert [row["train/step"] for row in rows] == [0, 10, 20, 30]
    assert rows[2]["eval/loss_delta"] == pytest.approx(-0.3)
    assert {key for key in rows[2] if not key.startswith("_")} == {
        "train/step", "eval/loss", "eval/loss_delta", "eval/loss_delta_pct", "eval/se", "eval/se_vs_best", "eval/n_images", "eval/seconds",
        *(f"eval/t_q{q}/delta_pct" for q in (1, 2, 3, 4)), *(f"eval/image/{i * 8}" for i in "0123"),
    }


def test_a_late_row_is_kept(offline):
    (row,) = [row for row in history(offline[2]) if "probe/train_delta" in row]
    assert (row["train/step"], row["probe/train_delta"], row["probe/transfer_ratio"]) == (20, -0.4, 0.6)


def test_the_choice_is_in_the_summary(offline):
    _, report, records = offline
    found = summary(records)
    assert {key: found[key] for key in found if key.startswith("select/")} == {
        "select/best_step": 20, "select/chosen_step": 20, "select/tied_lo": 20, "select/tied_hi": 20, "select/state": report["state"],
    }


def test_metrics_are_defined_against_the_training_step(offline):
    metrics = [record.metric for record in offline[2] if record.WhichOneof("record_type") == "metric"]
    by_name = {metric.name or metric.glob_name: metric for metric in metrics}
    assert by_name["*"].step_metric == "train/step"
    assert by_name["eval/loss_delta"].summary.min and by_name["eval/loss_delta"].step_metric == "train/step"


def test_configuration_name_and_tags_are_written(offline):
    runs = [record.run for record in offline[2] if record.WhichOneof("record_type") == "run"]
    assert (runs[0].project, runs[0].display_name, list(runs[0].tags)) == ("pistachio-test", "mia", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for run in runs for item in run.config.update}
    assert config["num_steps"] == 30 and config["adapter"] == {"rank": 8}


def test_no_key_reaches_the_run_folder(tmp_path, monkeypatch):
    secret = "deadbeef" * 5
    monkeypatch.setenv("WANDB_API_KEY", secret)
    write_run(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_no_setting_can_hold_a_key():
    names = set(LoggingConfig.__dataclass_fields__)
    assert not [name for name in names if any(word in name for word in ("key", "token", "secret", "password"))]


def test_a_resumed_run_keeps_its_id(tmp_path):
    write_run(tmp_path)
    first = json.loads((tmp_path / "wandb.json").read_text())
    write_run(tmp_path)
    assert json.loads((tmp_path / "wandb.json").read_text()) == first
    assert {path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")} == {f"run-{first['id']}.wandb"}


def test_values_that_are_missing_are_left_out():
    row = {"kind": "eval", "step": 5, "loss": None, "t_q": [None, -1.0, None, -2.0], "images": {"ab": None}, "n_images": 4}
    assert wandb_values(row) == {"train/step": 5, "eval/n_images": 4, "eval/t_q2/delta_pct": -1.0, "eval/t_q4/delta_pct": -2.0}
    assert selection_values({"tied_range": [1, 2], "best_step": 1, "chosen_step": 2, "state": "plateau"})["select/tied_hi"] == 2


def test_off_touches_nothing(tmp_path):
    logger = WandbLogger(LoggingConfig(), tmp_path, "mia", {})
    logger.log({"kind": "train", "step": 1, "loss": 0.5})
    logger.finish({})
    assert not logger.active and list(tmp_path.iterdir()) == []


def test_wandb_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # what `import` sees when the package is absent
    with pytest.raises(PistachioError, match="pip install wandb"):
        WandbLogger(LoggingConfig(wandb="offline"), tmp_path, "mia", {})


def test_an_outage_is_said_once_and_training_goes_on(tmp_path, caplog):
    logger = WandbLogger(LoggingConfig(wandb="offline"), tmp_path, "mia", {})
    logger.log({"kind": "train", "step": 1, "loss": 0.5})
    wandb.teardown()  # ends wandb's service process, as a crash of it would
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        for step in range(2, 6):
            logger.log({"kind": "train", "step": step, "loss": 0.5})
        logger.finish({"tied_range": [1, 2], "best_step": 1, "chosen_step": 2, "state": "plateau"})
    assert [r.message.split(" (")[0] for r in caplog.records if r.name == "pistachio"] == ["wandb stopped working"]
    assert not logger.active


def test_online_without_a_login_is_refused_and_an_unreachable_server_is_not(tmp_path, monkeypatch, caplog):
    for name, path in (("NETRC", "netrc"), ("HOME", "home"), ("WANDB_CONFIG_DIR", "config")):
        monkeypatch.setenv(name, str(tmp_path / path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refused at once
    wandb.teardown()
    online = LoggingConfig(wandb="online")
    with pytest.raises(PistachioError, match="wandb login"):
        WandbLogger(online, tmp_path, "mia", {})
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        logger = WandbLogger(online, tmp_path, "mia", {}, init_timeout_seconds=0.5)
        logger.log({"kind": "train", "step": 1, "loss": 0.5})
    assert not logger.active
    assert "Training goes on" in caplog.text
    monkeypatch.undo()
    wandb.teardown()
