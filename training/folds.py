"""Choosing the number of steps without giving up pictures: K folds, and a last run on all pictures for that many steps.

    <run>/folds/fold-1 ...    ordinary runs, each with other pictures held out
    <run>/folds/pooled.json   their evaluations as one curve over all pictures
    <run>                     the run on all pictures, which nothing measured

With one fold, or a finished run in its place, it is the refit alone. Owns which pictures a fold holds out, how curves
are pooled and what the report says; it does not know how a run is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..dataset.files import atomic_write_text
from .config import EvaluationConfig, TrainConfig
from .errors import PistachioError
from .messages import message
from .report import eval_rows, records_from_rows, spoken
from .run import RunFolder
from .seeds import seed_from
from .selection import EvaluationRecord, Selection, select

FOLDS_FOLDER = "folds"
POOLED_FILE = "pooled.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Refit:
    """What the run on all pictures goes by."""

    selection: Selection
    records: tuple[EvaluationRecord, ...]
    num_folds: int  # 1: an ordinary run with its own held-out pictures
    source: str = ""  # name of the finished run that chose; empty: the folds in the run's own folder
    notes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return self.selection.chosen_step

    def words(self, num_pictures: int) -> tuple[str, ...]:
        said = {"count": num_pictures, "step": self.step}
        if self.num_folds > 1:
            first = message(
                "verdict.refit_folds",
                "Trained again on all {count} pictures for {step} steps, as chosen on the average of {folds} runs, in which every picture "
                "was held out once; that result is not measured.", folds=self.num_folds, **said,
            )
        elif self.source:
            first = message(
                "verdict.refit_of",
                "Trained again on all {count} pictures for {step} steps, as chosen by run '{run}'; that result is not measured.",
                run=self.source, **said,
            )
        else:
            first = message(
                "verdict.refit",
                "Trained again on all {count} pictures for {step} steps, as chosen with pictures held out; that result is not measured.", **said,
            )
        return first, *self.selection.words

    def report_fields(self, num_pictures: int) -> dict:
        """What report.json says beyond an ordinary run's."""
        return spoken(self.words(num_pictures)) | {
            "offers": [], "offer_messages": [],  # to go on would be past what was chosen
            "refit": {
                "step": self.step, "n_pictures": num_pictures, "measured": False, "num_folds": self.num_folds, "source": self.source,
            },
        }


def fold_folder(run: RunFolder, number: int) -> RunFolder:
    return RunFolder(run.path / FOLDS_FOLDER / f"fold-{number}")


def fold_config(config: TrainConfig) -> TrainConfig:
    """The settings of one fold: an ordinary run. Several folds go to the same last step, so that they can be averaged."""
    evaluation = replace(config.evaluation, folds=0, refit=False, early_stop=config.evaluation.early_stop and not config.evaluation.folds)
    return replace(config, evaluation=evaluation)


def assign_folds(groups: Mapping[str, str], num_folds: int, *, kinds: Mapping[str, str] | None = None) -> tuple[frozenset[str], ...]:
    """Content hashes held out in each fold; every picture in exactly one.

    `groups`: content hash -> its group of near-duplicates, which is never split. `kinds` (of a group's first picture,
    such as its shape) are dealt out evenly. Depends on the pictures alone, never on their order.
    """
    members: dict[str, list[str]] = {}
    for content_hash in sorted(groups):
        members.setdefault(groups[content_hash], []).append(content_hash)
    if len(members) < num_folds:
        raise PistachioError(
            f"{num_folds} folds need as many different pictures, and there are {len(members)} (near-duplicates count as one). "
            "Lower the folds in Evaluation Settings, or add pictures."
        )
    kinds = kinds or {}
    dealt = sorted(members.values(), key=lambda group: (kinds.get(group[0], ""), seed_from("fold", group[0])))
    folds: list[list[str]] = [[] for _ in range(num_folds)]
    for group in dealt:
        smallest = min(folds, key=len)
        smallest += group
    return tuple(frozenset(fold) for fold in folds)


def pool(records_by_fold: Sequence[Sequence[EvaluationRecord]]) -> tuple[EvaluationRecord, ...]:
    """One curve: at each step that all folds measured, every picture by the run that held it out."""
    by_step = [{record.step: record for record in records} for records in records_by_fold]
    common = sorted(set.intersection(*(set(found) for found in by_step)))
    pooled = []
    for step in common:
        parts = [found[step] for found in by_step]
        pooled.append(EvaluationRecord(
            step=step, seconds=sum(part.seconds for part in parts),
            errors={content_hash: values for part in parts for content_hash, values in part.errors.items()},
            t_values={content_hash: values for part in parts for content_hash, values in part.t_values.items()},
        ))
    return tuple(pooled)


def choose(records: Sequence[EvaluationRecord], *, num_folds: int, source: str = "", notes: Sequence[str] = ()) -> Refit:
    """PistachioError when no step can be recommended."""
    selection = select(records)
    if selection.chosen_step < 1:
        raise PistachioError(
            f"No number of steps can be recommended: {selection.verdict} So nothing is trained on all pictures. "
            "Change the settings under a new run name."
        )
    return Refit(selection=selection, records=tuple(records), num_folds=num_folds, source=source, notes=tuple(notes))


def run_folds(
    run: RunFolder, held_out_sets: Sequence[frozenset[str]], train_fold: Callable[[RunFolder, frozenset[str], int], None],
    *, notes: Sequence[str] = (),
) -> Refit:
    """Train each fold that is not finished (`train_fold` resumes one that was begun), pool them and choose."""
    folders = [fold_folder(run, number) for number in range(1, len(held_out_sets) + 1)]
    for number, (folder, held_out) in enumerate(zip(folders, held_out_sets), start=1):
        train_fold(folder, held_out, number)
    records = pool([records_from_rows(folder.metrics()) for folder in folders])
    _write_pooled(run, records)
    return choose(records, num_folds=len(folders), notes=notes)


def refit_of(source: RunFolder) -> Refit:
    """A finished run's own choice, for a new run on all of its pictures."""
    report = source.report()
    if report is None or not source.is_finished():
        raise PistachioError(f"Run '{source.name}' is not finished. Let Train LoRA finish it, then train again on all pictures.")
    if report.get("refit"):
        raise PistachioError(f"Run '{source.name}' was trained on all pictures already. Choose the run that it goes by, or another.")
    records = records_from_rows(source.metrics())
    if len(records) < 2:
        raise PistachioError(f"Run '{source.name}' held out no pictures, so it chose no number of steps. Choose a run that held out some.")
    return choose(records, num_folds=1, source=source.name)


def write_evidence(run: RunFolder, refit: Refit) -> None:
    """The curve that a refit goes by, beside its own numbers."""
    _write_pooled(run, refit.records)


def evidence_rows(run: RunFolder) -> list[dict]:
    """Evaluation rows that a run on all pictures was chosen by; none for an ordinary run."""
    path = _pooled_path(run)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _pooled_path(run: RunFolder) -> Path:
    return run.path / FOLDS_FOLDER / POOLED_FILE


def _write_pooled(run: RunFolder, records: Sequence[EvaluationRecord]) -> None:
    path = _pooled_path(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(eval_rows(records), ensure_ascii=False, allow_nan=False))


def needs_folds(config: EvaluationConfig) -> bool:
    return bool(config.folds or config.refit)
