"""Captioners inside ComfyUI: which device, where their files lie, and whose memory they take.

Owns nothing of how captions are made. The socket carries settings until the first picture needs a caption; after the
last one the model is freed, or stays with ComfyUI's other models until the room is needed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Protocol

from ..dataset.caption_rules import joined
from ..dataset.joycaption.captioner import Captioner, LazyJoyCaptioner, caption_dataset
from ..dataset.joycaption.gguf import LazyGgufCaptioner
from ..dataset.joycaption.prompts import ALPHA_TWO, BETA_ONE, CaptionRequest
from ..dataset.types import Dataset
from .captioner_memory import HostResidence
from .folders import captioners_folder
from .host_captioner import HostCaptioner
from .progress import NodeProgress, check_interrupted

REPOSITORIES = {
    BETA_ONE: "fancyfeast/llama-joycaption-beta-one-hf-llava",
    ALPHA_TWO: "fancyfeast/llama-joycaption-alpha-two-hf-llava",
}


class CaptionerChoice(Protocol):
    """What the PISTACHIO_CAPTIONER socket carries."""

    def captioner(self, progress: NodeProgress) -> Captioner:
        """For the node that runs now; the same one each time, so that a model can stay loaded."""


@dataclass(kw_only=True, slots=True)
class JoyCaptionChoice:
    """A model that is to stay loaded lives here, and goes when the host drops the node's output."""

    version: str  # a key of REPOSITORIES
    precision: str
    folder: Path | None = None  # None: found in, or downloaded to, the captioners' folder
    _captioner: LazyJoyCaptioner | None = field(default=None, repr=False, compare=False)

    def captioner(self, progress: NodeProgress) -> LazyJoyCaptioner:
        if self._captioner is None:
            residence = HostResidence()
            self._captioner = LazyJoyCaptioner(
                folder_or_repo=self.folder or REPOSITORIES[self.version], precision=self.precision, device=residence.device,
                models_folder=captioners_folder(), version=self.version, check_interrupted=check_interrupted, residence=residence,
            )
        # of the node that runs now
        self._captioner.progress = lambda done, total: progress.text(f"Downloading JoyCaption: {done / 1e9:.1f} of {total / 1e9:.1f} GB")
        return self._captioner


@dataclass(kw_only=True, slots=True)
class GgufChoice:
    """Two files on the disk, for llama.cpp."""

    model_file: Path
    projector_file: Path
    version: str
    context_length: int
    gpu_layers: int
    _captioner: LazyGgufCaptioner | None = field(default=None, repr=False, compare=False)

    def captioner(self, progress: NodeProgress) -> LazyGgufCaptioner:
        if self._captioner is None:
            self._captioner = LazyGgufCaptioner(
                model_file=self.model_file, projector_file=self.projector_file, version=self.version, context_length=self.context_length,
                gpu_layers=self.gpu_layers, residence=HostResidence() if self.gpu_layers else None,  # on the CPU it is in nobody's way
            )
        return self._captioner


@dataclass(kw_only=True, slots=True)
class HostChoice:
    """A CLIP that writes text and sees pictures."""

    clip: Any

    def captioner(self, progress: NodeProgress) -> HostCaptioner:
        return HostCaptioner(clip=self.clip)


class CaptionProgress:
    """The node's bar and the time left, from the speed of this job alone: loading the model is not counted in."""

    def __init__(self, show: NodeProgress, *, clock: Callable[[], float] = time.monotonic):
        self.show, self.clock = show, clock
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        self.show(done, total)
        now = self.clock()
        words = f"{done} of {total} pictures captioned"
        if self.first is None:
            self.first = (now, done)
        elif done < total:
            seconds_each = (now - self.first[0]) / (done - self.first[1])
            words += f", about {time_words(seconds_each * (total - done))} left"
        self.show.text(words)


def time_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def caption(
    dataset: Dataset, choice: CaptionerChoice, request: CaptionRequest,
    *, prefix: str, suffix: str, batch_size: int, overwrite: bool, trigger_word: str, node_id: str,
    overwrite_edited: bool = False, free_after: bool = True,
) -> Dataset:
    progress = NodeProgress(node_id)
    return caption_dataset(
        dataset, choice.captioner(progress), request, finish=lambda text: joined(prefix, text, suffix),
        batch_size=batch_size, overwrite=overwrite, overwrite_edited=overwrite_edited, trigger_word=trigger_word, free_after=free_after,
        progress=CaptionProgress(progress), check_interrupted=check_interrupted,
    )
