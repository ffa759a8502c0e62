"""JoyCaption inside ComfyUI: which device, where its files lie, and whose memory it takes.

Owns nothing of how captions are made. The socket carries settings only: the model lives from the
first picture that needs a caption to the last.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Sequence

import comfy.model_management
from PIL import Image

from ..dataset.joycaption.captioner import Captioner, LazyJoyCaptioner, caption_dataset
from ..dataset.joycaption.model import Generated
from ..dataset.joycaption.prompts import ALPHA_TWO, BETA_ONE, CaptionRequest
from ..dataset.types import Dataset
from .folders import captioners_folder
from .progress import NodeProgress, check_interrupted

REPOSITORIES = {
    BETA_ONE: "fancyfeast/llama-joycaption-beta-one-hf-llava",
    ALPHA_TWO: "fancyfeast/llama-joycaption-alpha-two-hf-llava",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class JoyCaptionChoice:
    """What the PISTACHIO_CAPTIONER socket carries."""

    version: str  # a key of REPOSITORIES
    precision: str
    folder: Path | None = None  # None: found in, or downloaded to, the captioners' folder

    def captioner(self, progress: NodeProgress) -> LazyJoyCaptioner:
        return LazyJoyCaptioner(
            folder_or_repo=self.folder or REPOSITORIES[self.version],
            precision=self.precision,
            device=comfy.model_management.get_torch_device(),
            models_folder=captioners_folder(),
            version=self.version,
            progress=lambda done, total: progress.text(f"Downloading JoyCaption: {done / 1e9:.1f} of {total / 1e9:.1f} GB"),
            before_load=make_room,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WithAffixes:
    """A captioner whose every caption begins and ends with fixed words."""

    captioner: Captioner
    prefix: str
    suffix: str

    @property
    def kind(self) -> str:
        return self.captioner.kind

    @property
    def is_loaded(self) -> bool:
        return self.captioner.is_loaded

    def generate(self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None) -> list[Generated]:
        results = self.captioner.generate(images, request, seed=seed)
        # An empty answer stays empty: it is a failure, which affixes would hide.
        return [replace(r, text=joined(self.prefix, r.text, self.suffix)) if r.text else r for r in results]

    def free(self) -> None:
        self.captioner.free()


def caption(
    dataset: Dataset, choice: JoyCaptionChoice, request: CaptionRequest,
    *, prefix: str, suffix: str, batch_size: int, overwrite: bool, trigger_word: str, node_id: str,
) -> Dataset:
    progress = NodeProgress(node_id, unit="pictures captioned")
    try:
        return caption_dataset(
            dataset, WithAffixes(captioner=choice.captioner(progress), prefix=prefix, suffix=suffix), request,
            batch_size=batch_size, overwrite=overwrite, trigger_word=trigger_word, progress=progress, check_interrupted=check_interrupted,
        )
    finally:
        comfy.model_management.soft_empty_cache()


def make_room() -> None:
    """JoyCaption is not one of the host's models, so the host can't make room for it by itself."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def joined(*parts: str) -> str:
    """'photo of' + 'A man.' + 'film grain' -> 'photo of, A man. film grain': a comma unless a sentence ends there."""
    text = ""
    for part in (part.strip() for part in parts):
        if part:
            gap = "" if not text else " " if text[-1] in ",.;:!?" else ", "
            text += gap + part
    return text
