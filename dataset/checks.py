"""Is this Dataset enough to train on? Refusals before anything heavy is loaded."""

from __future__ import annotations

from ..training.errors import PistachioError
from .folder import name_list, plural
from .types import Dataset

MIN_PICTURES = 5  # different ones: two held out, three to train on


def check_trainable(dataset: Dataset, *, trigger_word: str = "", allow_missing_captions: bool = False) -> tuple[str, ...]:
    """Raise PistachioError if training can't work; returns notes on what is merely odd.

    A missing caption is allowed only with `allow_missing_captions` and a trigger word, which then is the caption.
    """
    first_by_hash: dict[str, str] = {}
    repeated: list[str] = []
    for picture in dataset.pictures:
        first = first_by_hash.setdefault(picture.content_hash, picture.relative_path)
        if first != picture.relative_path:
            repeated.append(picture.relative_path)
    distinct = len(first_by_hash)
    if distinct == 1 and repeated:
        raise PistachioError(
            f"All {len(dataset.pictures)} pictures in '{dataset.folder}' are the same picture. "
            f"Put at least {MIN_PICTURES} different ones in the folder."
        )
    if distinct < MIN_PICTURES:
        details = ""
        if repeated:
            details += f" {plural(len(repeated), 'file')} repeat another picture: {name_list(repeated)}."
        if dataset.skipped:
            details += f" {plural(len(dataset.skipped), 'file')} can't be read: {name_list([s.relative_path for s in dataset.skipped])}."
        raise PistachioError(
            f"Only {plural(distinct, 'different picture')} in '{dataset.folder}'; training needs at least {MIN_PICTURES}, "
            f"and about 20 is a good number. Add pictures to the folder.{details}"
        )
    check_captions(dataset, trigger_word=trigger_word, allow_missing_captions=allow_missing_captions)
    if not repeated:
        return ()
    return (f"{plural(len(repeated), 'file')} repeat another picture and {'is' if len(repeated) == 1 else 'are'} used once: {name_list(repeated)}.",)


def check_captions(dataset: Dataset, *, trigger_word: str = "", allow_missing_captions: bool = False) -> None:
    """Raise PistachioError naming the pictures without a caption; an empty one is missing too unless there is a trigger word."""
    trigger = trigger_word.strip() or dataset.trigger_word
    missing = [p.relative_path for p in dataset.pictures if p.caption is None or (not p.caption and not trigger)]
    if not missing or (allow_missing_captions and trigger):
        return
    trigger_hint = " or give a trigger word and allow missing captions on Encode Dataset," if not trigger else " or allow missing captions on Encode Dataset,"
    raise PistachioError(
        f"{plural(len(missing), 'picture')} of {len(dataset.pictures)} have no caption: {name_list(missing)}. "
        f"Connect Caption Dataset before this node,{trigger_hint} or write a .txt file of the same name beside each picture."
    )
