"""Runs that go by other runs: K folds, and the run on all pictures. Which pictures each part of them holds out.

The order of things is `training.folds`'; opening and training one part is `training`'s, which passes both in here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from ..dataset.types import EncodedDataset
from ..training.config import TrainConfig
from ..training.errors import PistachioError
from ..training.folds import Refit, assign_folds, fold_config, refit_of, run_folds, write_evidence
from ..training.run import RunFolder

# One part of the whole: its folder, its pictures, its settings, and what it goes by when it is the last.
Sit = Callable[[RunFolder, EncodedDataset, TrainConfig, Refit | None], None]
Open = Callable[[RunFolder, EncodedDataset, TrainConfig], bool]


def train_on_all(run: RunFolder, encoded: EncodedDataset, config: TrainConfig, *, source: RunFolder | None, open_part: Open, sit: Sit) -> None:
    """The folds that are not finished, then the run on all pictures. `source`: a finished run in place of the folds."""
    if source is not None:
        refit = refit_of(source)
        write_evidence(run, refit)
    else:
        settings = fold_config(config)

        def train_fold(part: RunFolder, held_out: frozenset[str], number: int) -> None:
            pictures = with_held_out(encoded, held_out)
            with part.locked():
                if open_part(part, pictures, settings):
                    sit(part, pictures, settings, None)

        refit = run_folds(run, held_out_sets(encoded, config), train_fold)
    sit(run, with_held_out(encoded, frozenset()), config, refit)


def is_refit_of(finished: RunFolder, config: TrainConfig) -> bool:
    """Whether continuing `finished` under `config` means a new run on all of its pictures."""
    before = (finished.config() or {"settings": {}})["settings"].get("evaluation", {})
    return config.evaluation.refit and not before.get("refit") and not before.get("folds")


def without_end(log_row: Callable[[dict], None]) -> Callable[[dict], None]:
    """For the parts of a run: their end is not its end."""

    def log_part(row: dict) -> None:
        if row["kind"] != "finished":
            log_row(row)

    return log_part


def held_out_sets(encoded: EncodedDataset, config: TrainConfig) -> tuple[frozenset[str], ...]:
    if config.evaluation.folds:
        groups = {item.content_hash: item.near_duplicate_of or item.content_hash for item in encoded.items}
        kinds = {item.content_hash: f"{item.width}x{item.height}" for item in encoded.items}
        return assign_folds(groups, config.evaluation.folds, kinds=kinds)
    if not encoded.held_out:
        raise PistachioError(
            "No picture is held out, so no number of steps can be chosen. Raise the held-out share on Split Dataset, "
            "or set folds in Evaluation Settings."
        )
    return (frozenset(item.content_hash for item in encoded.held_out),)


def with_held_out(encoded: EncodedDataset, held_out: frozenset[str]) -> EncodedDataset:
    """The same pictures under another split."""
    items = tuple(replace(item, held_out=item.content_hash in held_out) for item in encoded.items)
    split_id = hashlib.sha256("|".join([encoded.split_id, *sorted(held_out)]).encode()).hexdigest()[:16]
    return replace(encoded, items=items, split_id=split_id)


def swap_words(described: dict | None, encoded: EncodedDataset) -> str:
    """What was swapped since a run began, if nothing but the held-out pictures changed; else empty."""
    before = {picture["content_hash"]: picture for picture in (described or {}).get("pictures", ())}
    now = {item.content_hash: item for item in encoded.items}
    if before.keys() != now.keys() or any(now[h].caption != before[h]["caption"] for h in now):
        return ""
    out = sorted(now[h].relative_path for h in now if now[h].held_out and not before[h]["held_out"])
    back = sorted(now[h].relative_path for h in now if before[h]["held_out"] and not now[h].held_out)
    parts = [f"now held out: {', '.join(out)}"] * bool(out) + [f"now trained on: {', '.join(back)}"] * bool(back)
    return "; ".join(parts)
