"""Captioning a whole Dataset: who still needs a caption, in which batches, and what is saved.

The captioner is loaded for the first picture that needs it and freed at the end. A failed picture
is named and stays without a caption; nothing but a caption is ever written as one.
Knows the captioner only by its protocol.
"""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Protocol, Sequence

import torch
from PIL import Image

from ...training.errors import PistachioError
from ..captions import read_caption, with_trigger, write_caption
from ..folder import name_list, plural
from ..images import read_rgb
from ..types import Dataset, Picture
from .model import Generated, JoyCaptioner, load_joycaption
from .prompts import CaptionRequest, prompt_notes

log = logging.getLogger(__name__)

LOOP_REPEATS = 5  # the same words this often in a row are a stuck model
MAX_SEED = 2**63


class Captioner(Protocol):
    """Cheap to make and pass around: memory is taken by the first `generate` and given back by `free`."""

    @property
    def kind(self) -> str:
        """Which prompts it was trained on; known after loading."""

    @property
    def is_loaded(self) -> bool: ...

    def generate(self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None) -> list[Generated]: ...

    def free(self) -> None: ...


@dataclass(kw_only=True, slots=True)
class LazyJoyCaptioner:
    """The settings of Load JoyCaption; `load_joycaption` runs on first use."""

    folder_or_repo: str | Path
    precision: str = "bf16"
    device: str | torch.device = "cpu"
    models_folder: Path | None = None
    version: str = "auto"
    progress: Callable[[int, int], None] = lambda done, total: None  # bytes of the download
    before_load: Callable[[], None] = lambda: None  # the host makes room here
    _loaded: JoyCaptioner | None = field(default=None, repr=False)

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    @property
    def kind(self) -> str:
        return self._load().kind

    def generate(self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None) -> list[Generated]:
        return self._load().generate(images, request, seed=seed)

    def free(self) -> None:
        if self._loaded is not None:
            self._loaded.free()
            self._loaded = None

    def _load(self) -> JoyCaptioner:
        if self._loaded is None:
            self.before_load()
            self._loaded = load_joycaption(
                self.folder_or_repo, precision=self.precision, device=self.device,
                models_folder=self.models_folder, progress=self.progress, kind=self.version,
            )
        return self._loaded


def caption_dataset(
    dataset: Dataset,
    captioner: Captioner,
    request: CaptionRequest,
    *,
    batch_size: int = 4,
    overwrite: bool = False,
    trigger_word: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,  # pictures
    check_interrupted: Callable[[], None] = lambda: None,
) -> Dataset:
    """The dataset with captions, each batch saved beside its pictures at once; the captioner is freed.

    Pictures with a caption are kept unless `overwrite`; an empty caption file counts as none. The
    seed of a batch comes from the request's seed and its pictures, so a resumed job samples alike.
    """
    if batch_size < 1:
        raise PistachioError(f"Batch size is {batch_size}. Set it to 1 or more on Caption Dataset.")
    trigger = trigger_word.strip() or dataset.trigger_word
    # a caption may have been written since the folder was read: never replace it unasked
    captions = {p.caption_path: p.caption if overwrite else (p.caption or read_caption(p.caption_path)) for p in dataset.pictures}
    waiting: dict[Path, Picture] = {}  # by caption file: two pictures of one stem share it
    for picture in dataset.pictures:
        if overwrite or not captions[picture.caption_path]:
            waiting.setdefault(picture.caption_path, picture)
    kept = sum(1 for p in dataset.pictures if p.caption_path not in waiting)
    notes = []
    if kept:
        tail = "" if waiting else "; the captioner was not loaded"
        verb = "has a caption" if kept == 1 else "have captions"
        notes.append(f"{plural(kept, 'picture')} already {verb}: kept{tail}.")
    failures: dict[str, str] = {}
    try:
        pictures, start = list(waiting.values()), 0
        if pictures:
            check_interrupted()
            notes.extend(prompt_notes(request, captioner.kind))
        while start < len(pictures):
            check_interrupted()
            batch = pictures[start : start + batch_size]
            try:
                results = _caption_batch(captioner, batch, request, failures)
            except torch.cuda.OutOfMemoryError as error:
                if batch_size == 1:
                    raise PistachioError(
                        "There is not enough GPU memory to caption one picture. Choose an nf4 captioner, or close other programs. "
                        "Captions made so far are saved."
                    ) from error
                batch_size //= 2
                torch.cuda.empty_cache()
                notes.append(f"The GPU's memory was too small for the batch: {plural(batch_size, 'picture')} at a time from here on.")
                continue
            for picture, text in results:
                captions[picture.caption_path] = caption = with_trigger(text, trigger)
                write_caption(picture.caption_path, caption)
            start += len(batch)
            progress(start, len(pictures))
    finally:
        captioner.free()
    if failures:
        details = " ".join(f"'{name}': {reason}." for name, reason in failures.items())
        if len(failures) == len(waiting):
            raise PistachioError(f"No picture got a caption. {details} Try another seed, caption type or captioner.")
        notes.append(f"{plural(len(failures), 'picture')} got no caption: {name_list(list(failures))}. {details} Queue again with another seed, or write it by hand.")
    if waiting:
        notes.append(f"{plural(len(waiting) - len(failures), 'picture')} captioned.")
    for note in notes:
        log.info("%s", note)
    return replace(
        dataset,
        pictures=tuple(replace(p, caption=captions[p.caption_path]) for p in dataset.pictures),
        trigger_word=trigger, notes=(*dataset.notes, *notes),
    )


def _caption_batch(
    captioner: Captioner, batch: list[Picture], request: CaptionRequest, failures: dict[str, str]
) -> list[tuple[Picture, str]]:
    """Good captions only. A glitch (1.5 to 3 % are known) is tried once more with another seed, then named."""
    readable, images = [], []
    for picture in batch:
        try:
            images.append(read_rgb(picture.path))
        except PistachioError as error:
            failures[picture.relative_path] = str(error).rstrip(".")
        else:
            readable.append(picture)
    if not readable:
        return []
    good = []
    seed = _batch_seed(request.seed, readable, 0)
    for picture, image, result in zip(readable, images, captioner.generate(images, request, seed=seed)):
        problem = fault(result)
        if problem and request.temperature > 0:
            (result,) = captioner.generate([image], request, seed=_batch_seed(request.seed, [picture], 1))
            problem = fault(result)
        if problem:
            failures[picture.relative_path] = problem
        else:
            good.append((picture, one_line(result.text)))
    return good


def one_line(text: str) -> str:
    """Paragraphs joined and control characters taken out: the text is the same when it is read back."""
    return " ".join("".join(c for c in text if c.isspace() or unicodedata.category(c) != "Cc").split())


def fault(result: Generated) -> str | None:
    """Why a generated text is no caption; None if it is one."""
    if not one_line(result.text):
        return "the answer was empty"
    if not result.finished:
        return f"the answer did not end within {plural(result.num_tokens, 'token')}; raise max_new_tokens or ask for a shorter length"
    words = re.findall(r"\w+", result.text.lower())
    for width in range(1, 9):
        for start in range(len(words) - width * LOOP_REPEATS + 1):
            unit = words[start : start + width]
            if all(words[start + k * width : start + (k + 1) * width] == unit for k in range(1, LOOP_REPEATS)):
                return f"the answer repeats '{' '.join(unit)}'"
    return None


def _batch_seed(seed: int, pictures: list[Picture], attempt: int) -> int:
    text = "|".join([str(seed), str(attempt), *(p.content_hash for p in pictures)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % MAX_SEED
