"""Captioning a whole Dataset: who still needs a caption, in which batches, and what is saved.

The captioner is loaded for the first picture that needs it and freed at the end. A failed picture
is named and stays without a caption; nothing but a caption is ever written as one.
Knows the captioner only by its protocol.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable

import torch
from PIL import Image

from ...training.errors import PistachioError
from ...training.messages import counted
from ..caption_history import CaptionHistory
from ..caption_lock import writing_captions
from ..captions import read_caption, with_trigger
from ..files import atomic_write_text
from ..folder import name_list, plural
from ..types import Dataset, Picture
from ..versions import first_frame
from .glitches import Glitch, asks_for_no_meta, find_glitch, meta_phrase, one_line
from .lazy import Captioner, LazyJoyCaptioner
from .model import Generated
from .needs_review import FILE_NAME, ReviewEntry, update_needs_review
from .prefetch import Prefetch
from .prompts import CaptionRequest, prompt_notes

__all__ = ["Captioner", "LazyJoyCaptioner", "caption_dataset"]

log = logging.getLogger(__name__)

WRITTEN_BY = "Caption Dataset"  # in the history
MAX_SEED = 2**63
RETRY_TEMPERATURE = 0.6  # a greedy answer is the same with every seed
SHOWN_REASONS = 10  # of thousands of failures only so many are spelled out; all are in the list on disk
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")  # MPS, CPU and others raise a plain RuntimeError


@dataclass(slots=True)
class _Outcome:
    failures: dict[str, str] = field(default_factory=dict)  # relative path -> why there is no caption
    marks: dict[str, str] = field(default_factory=dict)  # relative path -> what to look at in the caption
    num_retried: int = 0
    num_meta: int = 0  # meta phrases that nobody asked to leave out
    kept_meanwhile: list[str] = field(default_factory=list)


def caption_dataset(
    dataset: Dataset,
    captioner: Captioner,
    request: CaptionRequest,
    *,
    batch_size: int = 4,
    overwrite: bool = False,
    overwrite_edited: bool = False,
    trigger_word: str = "",
    free_after: bool = True,
    finish: Callable[[str], str] = lambda text: text,  # a good answer -> the caption: fixed words around it
    progress: Callable[[int, int], None] = lambda done, total: None,  # pictures
    check_interrupted: Callable[[], None] = lambda: None,
) -> Dataset:
    """The dataset with captions, each batch saved beside its pictures at once; then the captioner is freed, unless it is to be kept.

    Pictures with a caption are kept unless `overwrite`; an empty caption file counts as none. A caption that was written here
    and that a person changed since is kept even then, unless `overwrite_edited`. Old texts stay in the folder's history. The
    seed of a batch comes from the request's seed and its pictures, so a resumed job samples alike.
    """
    if batch_size < 1:
        raise PistachioError(f"Batch size is {batch_size}. Set it to 1 or more on Caption Dataset.")
    trigger = trigger_word.strip() or dataset.trigger_word
    # a caption may have been written since the folder was read: never replace it unasked
    captions = {p.caption_path: p.caption if overwrite else (p.caption or read_caption(p.caption_path)) for p in dataset.pictures}
    history = CaptionHistory(dataset.folder)
    waiting: dict[Path, Picture] = {}  # by caption file: two pictures of one stem share it
    edited: list[str] = []
    for picture in dataset.pictures:
        path = picture.caption_path
        if captions[path] and overwrite and not overwrite_edited and history.is_edited(path, read_caption(path)):
            captions[path] = read_caption(path)
            edited.append(picture.relative_path)
        elif overwrite or not captions[path]:
            waiting.setdefault(path, picture)
    kept = sum(1 for p in dataset.pictures if p.caption_path not in waiting)
    notes = []
    if kept:
        notes.append(counted(
            "caption.kept", kept, "{count} picture already has a caption: kept.", "{count} pictures already have captions: kept.",
        ) if waiting else counted(
            "caption.all_kept", kept, "{count} picture already has a caption: kept; the captioner was not loaded.",
            "{count} pictures already have captions: kept; the captioner was not loaded.",
        ))
    if edited:
        notes.append(counted(
            "caption.edited", len(edited),
            "{count} caption changed by hand since it was written here: kept ({names}). Switch overwrite_edited on to replace them too.",
            "{count} captions changed by hand since they were written here: kept ({names}). Switch overwrite_edited on to replace them too.",
            names=name_list(edited),
        ))
    outcome = _Outcome()
    try:
        if waiting:
            for folder in sorted({path.parent for path in waiting}):
                _check_writable(folder)
            check_interrupted()
            with writing_captions(dataset.folder, by=WRITTEN_BY):
                notes.extend(prompt_notes(request, captioner.kind))
                job = _Job(
                    dataset=dataset, history=history, captioner=captioner, request=request, trigger=trigger, finish=finish, captions=captions,
                    outcome=outcome, notes=notes, progress=progress, check_interrupted=check_interrupted,
                )
                # one that answers one by one saves one by one
                job.run(list(waiting.values()), min(batch_size, captioner.most_at_once or batch_size))
    finally:
        if free_after:
            captioner.free()
    if outcome.failures:
        if len(outcome.failures) == len(waiting):
            raise PistachioError(f"No picture got a caption. {_reasons(outcome.failures)} Try another seed, caption type or captioner.")
        notes.append(
            f"{plural(len(outcome.failures), 'picture')} got no caption: {name_list(list(outcome.failures))}. {_reasons(outcome.failures)} "
            "Queue again with another seed, or write it by hand."
        )
    notes.extend(_outcome_notes(outcome))
    if waiting:
        captioned = len(waiting) - len(outcome.failures) - len(outcome.kept_meanwhile)
        notes.append(counted("caption.done", captioned, "{count} picture captioned.", "{count} pictures captioned."))
    for note in notes:
        log.info("%s", note)
    return replace(
        dataset,
        pictures=tuple(replace(p, caption=captions[p.caption_path]) for p in dataset.pictures),
        trigger_word=trigger, notes=(*dataset.notes, *notes),
    )


def _outcome_notes(outcome: _Outcome) -> list[str]:
    notes = []
    if outcome.kept_meanwhile:
        notes.append(f"{name_list(outcome.kept_meanwhile)} got a caption from someone else meanwhile: that one was kept.")
    if outcome.num_retried:
        notes.append(f"{plural(outcome.num_retried, 'answer')} of the captioner had a fault and was asked for again with another seed.")
    if outcome.marks:
        notes.append(
            f"{plural(len(outcome.marks), 'caption')} to look at: {name_list(list(outcome.marks))}. {_reasons(outcome.marks)} "
            f"They are saved, and listed in {FILE_NAME} beside the pictures."
        )
    if outcome.num_meta:
        notes.append(
            f"{plural(outcome.num_meta, 'caption')} begin{'s' if outcome.num_meta == 1 else ''} like 'This image shows', which teaches nothing. "
            "Switch no_meta_phrases on in Caption Options, or take the words out."
        )
    return notes


def _reasons(by_name: dict[str, str]) -> str:
    shown = [f"'{name}': {reason}." for name, reason in list(by_name.items())[:SHOWN_REASONS]]
    more = len(by_name) - len(shown)
    return " ".join([*shown, *([f"And {more} more."] if more else [])])


@dataclass(kw_only=True, slots=True)
class _Job:
    """The pictures that wait for a caption, batch by batch."""

    dataset: Dataset
    history: CaptionHistory
    captioner: Captioner
    request: CaptionRequest
    trigger: str
    finish: Callable[[str], str]
    captions: dict[Path, str | None]
    outcome: _Outcome
    notes: list[str]
    progress: Callable[[int, int], None]
    check_interrupted: Callable[[], None]

    def run(self, pictures: list[Picture], batch_size: int) -> None:
        prefetch = Prefetch(pictures, self._ready, ahead=2 * batch_size)
        start = 0
        try:
            while start < len(pictures):
                self.check_interrupted()
                batch = pictures[start : start + batch_size]
                try:
                    results = self._caption_batch(batch, prefetch.take(start, start + len(batch)))
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    log.info("Out of memory at batch %d: %s", len(batch), str(error).splitlines()[0])
                    results = None
                if results is None:  # outside the handler: its traceback would keep the batch's memory
                    gc.collect()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                    if len(batch) == 1:
                        raise PistachioError(
                            "There is not enough GPU memory to caption one picture. Choose nf4 or int8 on Load JoyCaption, or close other programs. "
                            "Captions made so far are saved."
                        )
                    batch_size = len(batch) // 2
                    self.notes.append(f"The GPU's memory was too small for the batch: {plural(batch_size, 'picture')} at a time from here on.")
                    continue
                self._save(batch, results)
                start += len(batch)
                self.progress(start, len(pictures))
        finally:
            prefetch.close()

    def _ready(self, picture: Picture) -> Image.Image | PistachioError:
        try:
            return self.captioner.prepare(first_frame(picture))
        except PistachioError as error:
            return error

    def _caption_batch(self, batch: list[Picture], images: list[Image.Image | PistachioError]) -> dict[str, tuple[str, Glitch | None] | str]:
        """By relative path: the text with what to mark it with, or why there is none. A glitch is tried once more with another seed."""
        results: dict[str, tuple[str, Glitch | None] | str] = {}
        readable: list[tuple[Picture, Image.Image]] = []
        for picture, image in zip(batch, images):
            if isinstance(image, PistachioError):
                results[picture.relative_path] = str(image).rstrip(".")
            else:
                readable.append((picture, image))
        if not readable:
            return results
        first = self._generate(readable, self.request, attempt=0)
        again = [pair for pair, (_, glitch) in zip(readable, first) if glitch]
        retry = self.request if self.request.temperature > 0 else replace(self.request, temperature=RETRY_TEMPERATURE)
        second = iter(self._generate(again, retry, attempt=1) if again else [])
        for (picture, _), answer in zip(readable, first):
            if answer[1]:
                answer = _better(answer, next(second))
            text, glitch = answer
            results[picture.relative_path] = answer if glitch is None or glitch.usable else glitch.reason
        self.outcome.num_retried += len(again)
        return results

    def _generate(self, pairs: list[tuple[Picture, Image.Image]], request: CaptionRequest, *, attempt: int) -> list[tuple[str, Glitch | None]]:
        seed = _batch_seed(self.request.seed, [picture for picture, _ in pairs], attempt)
        answers = self.captioner.generate([image for _, image in pairs], request, seed=seed, check_interrupted=self.check_interrupted)
        return [(one_line(answer.text), fault(answer, request)) for answer in answers]

    def _save(self, batch: list[Picture], results: dict[str, tuple[str, Glitch | None] | str]) -> None:
        changes: dict[str, ReviewEntry | None] = {}
        texts: dict[Path, str] = {}
        seen: dict[Path, str | None] = {}
        for picture in batch:
            name, path, result = picture.relative_path, picture.caption_path, results[picture.relative_path]
            if isinstance(result, str):
                self.outcome.failures[name] = result
                changes[name] = ReviewEntry(reason=result, caption=self.captions[path] or None)
                continue
            text, glitch = result
            if not picture.path.exists():  # no caption without its picture
                self.outcome.failures[name] = "the picture was removed meanwhile"
                continue
            try:
                there = read_caption(path)
            except PistachioError as error:  # what someone else put there is not replaced
                self.outcome.failures[name] = str(error).rstrip(".")
                continue
            if there and there != self.captions[path]:  # a person, or another captioner, was faster
                self.captions[path] = there
                self.outcome.kept_meanwhile.append(name)
                continue
            seen[path] = there
            self.captions[path] = texts[path] = caption = with_trigger(self.finish(text), self.trigger)
            changes[name] = ReviewEntry(reason=glitch.reason, caption=caption) if glitch else None
            if glitch:
                self.outcome.marks[name] = glitch.reason
            elif not asks_for_no_meta(self.request) and meta_phrase(text):
                self.outcome.num_meta += 1
        # who may be overwritten was decided above; an emptied file is one that a person "edited"
        written = self.history.write(texts, by=WRITTEN_BY, seen=seen, overwrite_edited=True)
        for picture in batch:
            path, name = picture.caption_path, picture.relative_path
            if path in texts and path.relative_to(self.dataset.folder).as_posix() in written.differing:  # changed since it was looked at above
                self.captions[path] = read_caption(path)
                self.outcome.kept_meanwhile.append(name)
                changes.pop(name, None)
                self.outcome.marks.pop(name, None)
        update_needs_review(self.dataset.folder, changes)


def fault(result: Generated, request: CaptionRequest) -> Glitch | None:
    """What is wrong with a generated text; None if nothing is."""
    return find_glitch(result.text, request, num_tokens=result.num_tokens, finished=result.finished)


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS)


def _better(first: tuple[str, Glitch | None], second: tuple[str, Glitch | None]) -> tuple[str, Glitch | None]:
    """The one without a glitch, else the one that is a caption at all, else the later."""
    if second[1] is None or not first[1].usable:
        return second
    return first


def _check_writable(folder: Path) -> None:
    """Before gigabytes are loaded for captions that could not be saved."""
    probe = folder / ".pistachio-writable"
    atomic_write_text(probe, "")
    probe.unlink(missing_ok=True)


def _batch_seed(seed: int, pictures: list[Picture], attempt: int) -> int:
    text = "|".join([str(seed), str(attempt), *(p.content_hash for p in pictures)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % MAX_SEED
