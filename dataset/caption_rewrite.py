"""Caption rules over a whole dataset: what would change, and writing it.

Owns which files a picture's captions lie in and the words of the preview. A rule starts from the
text that the last rules started from, so changed rules don't pile up; a person's own text is where they start anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from .caption_history import CaptionHistory, Written
from .caption_lock import writing_captions
from .caption_rules import REPLACE_SUBJECT, CaptionRules, RuleBook, differences, frequencies, in_place_of_subject
from .captions import CAPTION_TABLE, has_trigger, more_caption_paths, read_caption, read_caption_table
from .folder import name_list, plural, shown_name
from .types import Dataset, Picture

MOST_SHOWN = 20  # captions in the preview
MOST_COUNTED = 40  # tags or words in the table
MOST_LETTERS = 600  # of one caption in the preview
BY = "Caption Rules"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewritten:
    relative_path: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    dataset: Dataset
    captions: tuple[Rewritten, ...]  # those that change
    written: Written | None  # None: a preview
    notes: tuple[str, ...]
    kind: str  # of the counts: tags or words
    counts: dict[str, int]


def rewrite_captions(
    dataset: Dataset,
    rules: CaptionRules,
    *,
    write: bool = False,
    captions_json: bool = False,  # write the table that diffusion-pipe reads, too
    overwrite_edited: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> Rewrite:
    """The dataset with the new captions, which are on the disk too when `write`."""
    rules = replace(rules, trigger_word=rules.trigger_word.strip() or dataset.trigger_word)
    book, history = RuleBook(rules), CaptionHistory(dataset.folder)
    stems = {path.stem for path in {picture.path for picture in dataset.pictures}}
    new: dict[Path, str] = {}
    sources: dict[Path, str | None] = {}
    changed: list[Rewritten] = []
    edited: list[str] = []
    pictures: list[Picture] = []
    for done, picture in enumerate(dataset.pictures):
        check_interrupted()
        path = picture.caption_path
        caption = picture.caption
        if caption is not None:
            stays = not overwrite_edited and history.is_edited(path, caption)
            if stays:
                edited.append(picture.relative_path)
            elif path not in new:
                sources[path] = history.source(path, caption)
                new[path] = book(sources[path] or "")
            if not stays:
                if new[path] != caption:
                    changed.append(Rewritten(relative_path=picture.relative_path, before=caption, after=new[path]))
                caption = new[path]
        more = tuple(book(text) for text in picture.more_captions)
        for other in more_caption_paths(path, stems):
            text = read_caption(other)
            if text and other not in new and (overwrite_edited or not history.is_edited(other, text)):
                sources[other] = history.source(other, text)
                new[other] = book(sources[other] or "")
        pictures.append(replace(picture, caption=caption, more_captions=more))
        progress(done + 1, len(dataset.pictures))
    result = replace(dataset, pictures=tuple(pictures), trigger_word=rules.trigger_word)
    written = None
    if write:
        texts = new | (_tables(result) if captions_json else {})
        with writing_captions(dataset.folder, by=BY):
            written = history.write(texts, by=BY, sources=sources, overwrite_edited=overwrite_edited, check_interrupted=check_interrupted)
        edited = sorted({*edited, *(name for name in written.edited)})
    notes = _notes(dataset, rules, changed, edited, written)
    kind, counts = frequencies(picture.caption or "" for picture in result.pictures)
    return Rewrite(dataset=replace(result, notes=(*dataset.notes, *notes)), captions=tuple(changed), written=written, notes=notes, kind=kind, counts=counts)


def reread_captions(dataset: Dataset) -> Dataset:
    """The captions that are on the disk now; a sidecar counts before captions.json, as in Load Image Folder."""
    tables = {folder: read_caption_table(folder) for folder in {picture.path.parent for picture in dataset.pictures}}

    def caption(picture: Picture) -> str | None:
        text = read_caption(picture.caption_path)
        return text if text is not None else next(iter(tables[picture.path.parent].get(picture.path.name, ())), None)

    return replace(dataset, pictures=tuple(replace(picture, caption=caption(picture)) for picture in dataset.pictures))


def _tables(dataset: Dataset) -> dict[Path, str]:
    """captions.json of each folder: file name -> list of captions. Entries of other files are kept."""
    tables: dict[Path, dict[str, list[str]]] = {}
    for picture in dataset.pictures:
        folder = picture.path.parent
        if folder not in tables:
            tables[folder] = {name: list(captions) for name, captions in read_caption_table(folder).items()}
        if picture.caption is not None:
            tables[folder][picture.path.name] = [picture.caption, *picture.more_captions]
    return {folder / CAPTION_TABLE: json.dumps(table, ensure_ascii=False, indent=1, sort_keys=True) for folder, table in tables.items() if table}


def _notes(dataset: Dataset, rules: CaptionRules, changed: list[Rewritten], edited: list[str], written: Written | None) -> tuple[str, ...]:
    total = len(dataset.pictures)
    if written is None:
        first = f"{len(changed)} of {plural(total, 'caption')} would change. Nothing was written: switch 'write' on to save them."
    elif written.number is None:
        first = f"No file had to be changed: the captions of {plural(total, 'picture')} are as the rules give them."
    else:
        first = f"{plural(len(written.changed), 'file')} written. Caption History can go back: this was change {written.number}."
    notes = [first]
    if edited:
        verb = "was" if len(edited) == 1 else "were"
        notes.append(f"{plural(len(edited), 'caption')} {verb} edited by hand since and kept: {name_list(edited)}. Switch 'overwrite_edited' on to apply the rules to them too.")
    missing = [p.relative_path for p in dataset.pictures if p.caption is None]
    if missing:
        notes.append(f"{plural(len(missing), 'picture')} {'has' if len(missing) == 1 else 'have'} no caption, so there is nothing to change: {name_list(missing)}.")
    emptied = [c.relative_path for c in changed if c.before and c.after in ("", rules.called)]
    if emptied:
        notes.append(f"Nothing is left of {plural(len(emptied), 'caption')}: {name_list(emptied)}. Make the leak list shorter, or write them by hand.")
    if rules.trigger_place == REPLACE_SUBJECT and rules.trigger_word:
        without = [c.relative_path for c in changed if not has_trigger(c.before, rules.trigger_word) and in_place_of_subject(c.before, "x") is None]
        if without:
            notes.append(f"{plural(len(without), 'caption')} {'names' if len(without) == 1 else 'name'} no person, so the trigger word was put first: {name_list(without)}.")
    return tuple(notes)


# ---- words -------------------------------------------------------------------------


def preview_words(rewrite: Rewrite) -> str:
    """Each caption that changes, as it was and as it is, and what was taken out."""
    blocks = []
    for caption in rewrite.captions[:MOST_SHOWN]:
        gone = [old for old, _ in differences(caption.before, caption.after) if old]
        lines = [shown_name(caption.relative_path), f"  was: {_short(caption.before)}", f"  now: {_short(caption.after)}"]
        if gone:
            lines.append(f"  taken out: {_short(' | '.join(gone))}")
        blocks.append("\n".join(lines))
    if len(rewrite.captions) > MOST_SHOWN:
        blocks.append(f"and {len(rewrite.captions) - MOST_SHOWN} more")
    return "\n\n".join(blocks)


def table_words(rewrite: Rewrite) -> str:
    """The most frequent tags or words, in how many captions each is."""
    total = sum(1 for picture in rewrite.dataset.pictures if picture.caption)
    rows = list(rewrite.counts.items())[:MOST_COUNTED]
    if not rows:
        return ""
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {count:>4}  {100 * count / total:3.0f} %" for name, count in rows]
    more = len(rewrite.counts) - len(rows)
    return "\n".join([f"{rewrite.kind} in {plural(total, 'caption')}:", *lines, *([f"and {more} more"] if more > 0 else [])])


def counts_json(rewrite: Rewrite) -> str:
    return json.dumps({"kind": rewrite.kind, "captions": sum(1 for p in rewrite.dataset.pictures if p.caption), "counts": rewrite.counts}, ensure_ascii=False)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + " …"
