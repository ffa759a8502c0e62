"""Which pictures are held out of training, and the same as train/ and eval/ folders.

The share, the minimum of four, the near-duplicate groups and the strata follow the selection
protocol. Depends on pixels alone: renaming or reordering files changes nothing.
Knows nothing about what the held-out pictures are used for.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
from dataclasses import replace
from pathlib import Path

from ..training.errors import PistachioError
from ..training.messages import counted, message
from .captions import atomic_write_bytes
from .duplicates import kin_groups
from .folder import MASK_ENDING, name_list, plural
from .types import Dataset, Picture, Split

MIN_HELD_OUT = 4  # fewer say little about the best step
FEW_PICTURES = 10
ASPECT_STEP = math.log(1.25)  # about one aspect bucket


def split_dataset(
    dataset: Dataset, *, held_out_share: float = 0.2, seed: int = 0, held_out_names: tuple[str, ...] = ()
) -> Dataset:
    """The dataset with its `split` set.

    Held out: max(4, round(share * n)) of n different pictures, but never more than half, so that
    training keeps at least as many (n = 5 holds out 2, n = 6 or 7 holds out 3). A share of 0 holds
    out none. Near-duplicates stay on one side. `held_out_names` (relative paths, file names, stems
    or patterns such as "eval/*") and what is marked in the review replace the automatic choice.
    """
    if not 0.0 <= held_out_share <= 0.5:
        raise PistachioError(f"The held-out share is {held_out_share}. Set it between 0 and 0.5 on Split Dataset; 0.2 is usual.")
    by_hash: dict[str, Picture] = {}
    for picture in sorted(dataset.pictures, key=lambda p: (p.content_hash, p.relative_path)):
        by_hash.setdefault(picture.content_hash, picture)
    if len(by_hash) < 2:
        raise PistachioError(
            f"'{dataset.folder}' has {plural(len(by_hash), 'different picture')}: nothing can be held out. Add at least five different pictures."
        )
    notes: list[str] = []
    groups = kin_groups(list(by_hash.values()))
    marks = set(dataset.held_out_marks)
    marked = [picture for picture in dataset.pictures if picture.relative_path in marks]
    if marked:
        notes.append(counted(
            "split.marked", len(marked), "{count} picture held out as marked in the review: {names}.",
            "{count} pictures held out as marked in the review: {names}.", names=name_list([p.relative_path for p in marked]),
        ))
    if held_out_names or marked:
        held_out = _named(dataset, held_out_names, {picture.content_hash for picture in marked}, groups, notes)
    elif held_out_share == 0:
        held_out = frozenset()
    else:
        if len(groups) < 2:
            raise PistachioError(
                f"All {len(by_hash)} pictures in '{dataset.folder}' are near-duplicates of one another: a held-out one would "
                "measure nothing. Add different pictures, or name the held-out ones on Split Dataset."
            )
        held_out = _chosen(groups, _held_out_count(len(by_hash), held_out_share), seed)
    train = sorted(set(by_hash) - held_out)
    if not train:
        raise PistachioError("Every picture is held out and none is left to train on. Name fewer pictures on Split Dataset, or mark fewer in the review.")
    notes.extend(_size_notes(len(by_hash), len(held_out)))
    split = Split(
        split_id=_split_id(sorted(by_hash), held_out_share, seed, sorted(held_out)),
        train=tuple(train), held_out=tuple(sorted(held_out)), notes=tuple(notes),
    )
    return replace(dataset, split=split)


def is_held_out(dataset: Dataset, picture: Picture) -> bool:
    return dataset.split is not None and picture.content_hash in dataset.split.held_out


def _held_out_count(n: int, share: float) -> int:
    return min(max(MIN_HELD_OUT, math.floor(share * n + 0.5)), n // 2)


def _key(*parts) -> str:
    return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()


def _split_id(hashes: list[str], share: float, seed: int, held_out: list[str]) -> str:
    return _key("split-1", f"{share:.6f}", seed, *hashes, "held out", *held_out)[:16]


def _aspect_class(group: list[Picture]) -> int:
    return round(math.log(group[0].width / group[0].height) / ASPECT_STEP)


def _chosen(groups: list[list[Picture]], count: int, seed: int) -> frozenset[str]:
    """Whole groups, at most `count` pictures, the aspect classes in proportion (largest remainders)."""
    strata: dict[int, list[list[Picture]]] = {}
    for group in sorted(groups, key=lambda g: _key(seed, g[0].content_hash)):
        strata.setdefault(_aspect_class(group), []).append(group)
    total = sum(map(len, groups))
    exact = {aspect: count * sum(map(len, members)) / total for aspect, members in strata.items()}
    quota = {aspect: math.floor(value) for aspect, value in exact.items()}
    # ties go by the first picture of the class, not by the class number: no aspect is always preferred
    by_remainder = sorted(strata, key=lambda a: (-(exact[a] - quota[a]), _key(seed, strata[a][0][0].content_hash)))
    for aspect in by_remainder[: count - sum(quota.values())]:
        quota[aspect] += 1
    taken: list[list[Picture]] = []

    def take(candidates: list[list[Picture]], room: int) -> int:
        for group in candidates:
            if len(group) <= room and group not in taken:
                taken.append(group)
                room -= len(group)
        return room

    short = sum(take(strata[aspect], quota[aspect]) for aspect in by_remainder)
    everything = sorted(groups, key=lambda g: _key(seed, g[0].content_hash))
    take(everything, short)
    if not taken:  # every group is larger than the count: the smallest, which is at most half of all
        taken.append(min(everything, key=len))
    return frozenset(p.content_hash for group in taken for p in group)


def _named(
    dataset: Dataset, names: tuple[str, ...], marked: set[str], groups: list[list[Picture]], notes: list[str]
) -> frozenset[str]:
    """Content hashes of the pictures with these names, of the marked ones and of what looks like them."""
    chosen = set(marked)
    for name in (n.strip().replace("\\", "/") for n in names):
        if not name:
            continue
        matches = [p for p in dataset.pictures if _matches(p.relative_path, name)]
        if not matches:
            raise PistachioError(
                f"The held-out picture '{name}' is not in '{dataset.folder}'. Its pictures are: "
                f"{name_list([p.relative_path for p in dataset.pictures])}. Correct the names on Split Dataset."
            )
        chosen.update(p.content_hash for p in matches)
    asked = set(chosen)
    for group in groups:
        if any(p.content_hash in asked for p in group):
            chosen.update(p.content_hash for p in group)
    along = [p.relative_path for group in groups for p in group if p.content_hash in chosen - asked]
    if along:
        notes.append(message("split.along", "Held out too, as near-duplicates of the named pictures: {names}.", names=name_list(along)))
    return frozenset(chosen)


def _matches(relative_path: str, name: str) -> bool:
    path = Path(relative_path)
    return name in (relative_path, path.name, path.stem, path.with_suffix("").as_posix()) or fnmatch.fnmatchcase(relative_path, name)


def _size_notes(n: int, held_out: int) -> list[str]:
    if held_out == 0:
        return [message("split.none", "No picture is held out. Nothing here can detect memorising.")]
    notes = []
    if held_out < MIN_HELD_OUT:
        notes.append(counted(
            "split.few", held_out, "Only {count} picture held out; the best step is uncertain. 4 pictures is the minimum we trust; 8 is clearly better.",
            "Only {count} pictures held out; the best step is uncertain. 4 pictures is the minimum we trust; 8 is clearly better.",
        ))
    elif held_out < 8:
        notes.append(message("split.some", "{pictures} pictures are held out. 4 pictures is the minimum we trust; 8 is clearly better.", pictures=held_out))
    if n < FEW_PICTURES:
        notes.append(message(
            "split.train_again",
            "With only {pictures} pictures, holding out {held_out} leaves {train} to train on: after the best step is found, "
            "train once more on all of them for that many steps.",
            pictures=n, held_out=held_out, train=n - held_out,
        ))
    return notes


def write_folders(dataset: Dataset, target: Path) -> tuple[Path, Path]:
    """Copy pictures and captions into target/train and target/eval; returns the two folders.

    Never changes or removes a file that is there: the same content is left alone, and anything else
    in the two folders is a PistachioError raised before the first copy.
    """
    target = Path(target).absolute()
    if dataset.split is None:
        raise PistachioError("The dataset has no split. Connect Split Dataset first.")
    if target.resolve() == dataset.folder.resolve() or dataset.folder.resolve() in target.resolve().parents:
        raise PistachioError(
            f"'{target}' lies inside the picture folder '{dataset.folder}': reading that folder again would find every picture twice. "
            "Choose a folder elsewhere, for example under output/."
        )
    planned: dict[Path, Path | bytes] = {}  # destination -> source file, or the caption's bytes
    for picture in dataset.pictures:
        destination = target / ("eval" if is_held_out(dataset, picture) else "train") / picture.relative_path
        planned[destination] = picture.path
        if picture.caption is not None:
            planned[destination.with_suffix(".txt")] = (picture.caption + "\n").encode("utf-8")
        for number, caption in enumerate(picture.more_captions, start=2):
            planned[destination.with_name(f"{destination.stem}.{number}.txt")] = (caption + "\n").encode("utf-8")
        if picture.mask_path is not None:
            planned[destination.with_name(f"{destination.stem}{MASK_ENDING}{picture.mask_path.suffix}")] = picture.mask_path
    folders = target / "train", target / "eval"
    strangers = [
        path.relative_to(target).as_posix()
        for folder in folders if folder.exists()
        for path in sorted(folder.rglob("*"))
        if not path.is_dir() and path not in planned
    ]
    changed = [path.relative_to(target).as_posix() for path, source in planned.items() if path.exists() and path.read_bytes() != _content(source)]
    if strangers or changed:
        what = "files of another split or dataset" if strangers else "other versions of the files"
        raise PistachioError(
            f"'{target}' already holds {what}: {name_list(strangers or changed)}. Nothing was written. "
            "Choose another folder on Split Dataset, or move the old one away."
        )
    for destination, source in planned.items():
        if not destination.exists():
            atomic_write_bytes(destination, _content(source))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    return folders


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise PistachioError(f"'{source}' can't be read any more ({error.strerror}). Queue again to read the folder afresh.") from error
