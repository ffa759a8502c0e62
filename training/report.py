"""The run's numbers as JSON: rows of metrics.jsonl, and report.json with its chart.

Owns the two formats and the way back from rows to `EvaluationRecord`s. It decides nothing:
`selection` chooses, `chart` draws.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path

from ..dataset.files import atomic_write_bytes
from .chart import draw_loss_chart, train_curve
from .evaluation import LOSS_SPACE, PROTOCOL_VERSION
from .messages import as_json, message
from .run import RunFolder
from .selection import CONFIDENCE, TIE_SHARE, EvaluationRecord, Selection, build_curve, quarters

REPORT_FORMAT = "pistachio-report-1"
SHORT_HASH_LENGTH = 8


def json_number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity: they become null."""
    return value if value is not None and math.isfinite(value) else None


def eval_rows(records: Sequence[EvaluationRecord]) -> list[dict]:
    """One metrics row per evaluation. `se_vs_best` is against the best so far, as known when the row was written."""
    records = sorted(records, key=lambda record: record.step)
    curve, by_quarter = build_curve(records), quarters(records)
    rows, best = [], None
    for c, record in enumerate(records):
        if c in curve.finite and (best is None or curve.delta_C[c] < curve.delta_C[best]):
            best = c
        delta = float(curve.delta_C[c])
        change_N = curve.errors_CN[c] - curve.errors_CN[0]
        rows.append({
            "kind": "eval",
            "step": record.step,
            "loss": json_number(float(curve.errors_CN[c].mean())),
            "loss_delta": json_number(delta),
            "loss_delta_pct": json_number(100 * delta / curve.base_loss),
            "se": json_number(curve.se(c, 0)),
            "se_vs_best": json_number(curve.se(c, c if best is None else best)),
            "n_images": curve.n_images,
            "seconds": record.seconds,
            "t_q": [json_number(value) for value in by_quarter.delta_pct[c]],
            "images": {h[:SHORT_HASH_LENGTH]: json_number(float(d)) for h, d in zip(curve.hashes, change_N)},
            "errors": {h: [json_number(e) for e in values] for h, values in sorted(record.errors.items())},
            "t_values": {h: list(values) for h, values in sorted(record.t_values.items())},
        })
    return rows


def eval_row(records: Sequence[EvaluationRecord]) -> dict:
    """The metrics row of the latest evaluation."""
    return eval_rows(records)[-1]


def note_row(step: int, text: str) -> dict:
    """A sentence for the user; `message` where a page can say it in another language."""
    said = as_json(text)
    return {"kind": "note", "step": step, "text": text} | ({"message": said} if said else {})


def records_from_rows(rows: Sequence[dict]) -> tuple[EvaluationRecord, ...]:
    """The evaluations in a run's metrics, by step. A step evaluated again (after a resume) counts once, the later time."""
    by_step = {
        row["step"]: EvaluationRecord(
            step=row["step"],
            errors={h: tuple(math.nan if e is None else e for e in values) for h, values in row["errors"].items()},
            seconds=row["seconds"],
            t_values={h: tuple(values) for h, values in row["t_values"].items()},
        )
        for row in rows
        if row.get("kind") == "eval"
    }
    return tuple(by_step[step] for step in sorted(by_step))


def build_report(
    *,
    run: str,
    selection: Selection,
    records: Sequence[EvaluationRecord],
    settings: dict,
    seed: int,
    versions: dict[str, str],
    split_id: str = "",
    n_train: int = 0,
    stop_reason: str | None = None,
    notes: Sequence[str] = (),
) -> dict:
    """Everything a person or a program needs to check the choice, as JSON values."""
    evaluations = eval_rows(records) if records else []
    by_quarter = quarters(records) if records else None
    return {
        "format": REPORT_FORMAT,
        "run": run,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "chosen_step": selection.chosen_step,
        "best_step": selection.best_step,
        "last_step": selection.last_step,
        "tied_steps": list(selection.tied_steps),
        "tied_range": [selection.tied_lo, selection.tied_hi],
        "state": selection.state,
        **spoken(selection.words),
        "offers": (offered := offers(selection, n_train=n_train, num_steps=settings.get("num_steps", 0))),
        "offer_messages": [as_json(offer) for offer in offered],
        "too_few": selection.too_few,
        "overridden": selection.overridden,
        "automatic_step": selection.automatic_step,
        "n_train": n_train,
        "n_images": selection.n_images,
        "split_id": split_id,
        "base_loss": json_number(selection.base_loss),
        "gain": json_number(selection.gain),
        "eval_delta": json_number(selection.eval_delta),
        "eval_delta_pct": json_number(selection.eval_delta_pct),
        "eval_se": json_number(selection.eval_se),
        "se_vs_best": json_number(selection.se_vs_best),
        "last_delta_pct": evaluations[-1]["loss_delta_pct"] if evaluations else None,
        "stop_reason": stop_reason,
        "notes": list(notes),
        "protocol": {
            "version": PROTOCOL_VERSION,
            "loss_space": LOSS_SPACE,
            "confidence": CONFIDENCE,
            "tie_share": TIE_SHARE,
        },
        "quarters": {
            "order": "by timestep: 1 is the lowest noise, 4 the highest",
            "best_steps": list(by_quarter.best_steps) if by_quarter else [],
            "best_step_low_noise": by_quarter.best_step_low_noise if by_quarter else None,
            "best_step_high_noise": by_quarter.best_step_high_noise if by_quarter else None,
        },
        "t_values": evaluations[0]["t_values"] if evaluations else {},
        "evaluations": [{k: v for k, v in row.items() if k not in ("kind", "t_values")} for row in evaluations],
        "settings": settings,
        "seed": seed,
        "versions": dict(versions),
    }


def spoken(words: Sequence[str]) -> dict:
    """The report's sentences, and the same for a page that says them in another language; the verdict is the first."""
    messages = [as_json(sentence) for sentence in words]
    return {"verdict": words[0], "verdict_message": messages[0], "words": list(words), "messages": messages}


def seconds_spent(rows: Sequence[dict]) -> dict:
    """What the run took, and which share of it the evaluations after step 0 were (the protocol allows a tenth)."""
    training = math.fsum(row["seconds"] for row in rows if row.get("kind") == "train" and row.get("seconds"))
    evaluations = math.fsum(row["seconds"] for row in rows if row.get("kind") == "eval" and row["step"] > 0)
    return {
        "training": round(training, 3), "evaluations": round(evaluations, 3),
        "evaluation_share": round(evaluations / training, 4) if training else None,
    }


def gap_rows(rows: Sequence[dict]) -> list[dict]:
    """The gap curve: change of the loss on training pictures beside held-out ones, at the steps where both were measured."""
    held_out = {row["step"]: row["loss_delta_pct"] for row in rows if row.get("kind") == "eval"}
    return [
        {"step": step, "train_delta_pct": percent, "held_out_delta_pct": held_out[step], "gap_pct": held_out[step] - percent}
        for step, percent in train_curve(rows) if held_out.get(step) is not None
    ]


def offers(selection: Selection, *, n_train: int, num_steps: int) -> list[str]:
    """What the user may do next. Continuing is always offered: to the planned end, or past it."""
    if selection.last_step < num_steps:
        offered = [message("offer.planned", "Continue to step {step}, as planned.", step=num_steps)]
    else:
        further = selection.last_step + math.ceil(selection.last_step / 2)
        offered = [message("offer.continue", "Continue by 50 % (to step {step}).", step=further)]
    if selection.n_images and selection.chosen_step:
        offered.append(message(
            "offer.refit", "Train again on all {count} pictures for {step} steps; that result is not measured.",
            count=n_train + selection.n_images, step=selection.chosen_step,
        ) if n_train else message(
            "offer.refit_all", "Train again on all pictures for {step} steps; that result is not measured.", step=selection.chosen_step,
        ))
    return offered


def record_override(folder: RunFolder, step: int, lora_name: str) -> bool:
    """Write into report.json that a person took another checkpoint than the chosen one. The latest such choice stands.

    False where there is nothing to write it into: a run that has not finished has no report, or writes a new one at its end.
    """
    report = folder.report()
    if report is None or not folder.is_finished():
        return False
    before = report.get("override") or {}
    if step == report["chosen_step"] or (before.get("step") == step and before.get("chosen_step") == report["chosen_step"]):
        return True
    folder.write_json("report.json", report | {"override": {
        "step": step, "chosen_step": report["chosen_step"], "when": datetime.now(timezone.utc).isoformat(timespec="seconds"), "lora_name": lora_name,
    }})
    return True


def withdraw_override(folder: RunFolder) -> None:
    """A person took the chosen checkpoint again: no other choice stands."""
    report = folder.report()
    if report is not None and "override" in report:
        folder.write_json("report.json", {key: value for key, value in report.items() if key != "override"})


def write_report(run_folder: Path, report: dict, rows: Sequence[dict], selection: Selection) -> tuple[Path, Path]:
    """Write report.json and loss.png into the run folder, each whole or not at all. `rows`: the run's metrics."""
    picture = BytesIO()
    draw_loss_chart(rows, selection).save(picture, format="PNG")
    report_path, chart_path = run_folder / "report.json", run_folder / "loss.png"
    # The report last: with it the run counts as finished, and everything is there.
    atomic_write_bytes(chart_path, picture.getvalue())
    atomic_write_bytes(report_path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode())
    return report_path, chart_path
