"""A captioner that costs nothing until the first picture, and who owns the memory that it then takes.

Knows when to load, reload and free; knows nothing of how captions are made or where they go.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, ClassVar, Protocol, Sequence

import torch
from PIL import Image
from torch import nn

from .download import resolve_model, weights_bytes
from .model import Generated, JoyCaptioner, load_joycaption
from .prompts import CaptionRequest
from .quantization import QUANTIZED, quantization_config

STORED_BYTES, NEEDED_BYTES = 2.0, {"bf16": 2.0, "fp32": 4.0, "int8": 1.15, "nf4": 0.75}  # a weight, on disk and loaded; the vision part stays bf16


class Captioner(Protocol):
    """Cheap to make and pass around: memory is taken by the first `generate` and given back by `free`."""

    most_at_once: int | None  # pictures in a batch; None: as many as there is memory for

    @property
    def kind(self) -> str:
        """Which prompts it was trained on; known after loading."""

    @property
    def is_loaded(self) -> bool: ...

    def prepare(self, image: Image.Image) -> Image.Image:
        """What `generate` needs of a picture; called on other threads, after loading."""

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None, check_interrupted: Callable[[], None] | None = None
    ) -> list[Generated]: ...

    def free(self) -> None: ...


class Loaded(Protocol):
    """What a residence knows of a model."""

    model: nn.Module | None  # None: another library holds the weights
    quantized: bool  # it can't be moved to another device

    def free(self) -> None: ...


class Residence(Protocol):
    """Who owns the memory of a loaded model. ComfyUI's memory manager is one, in bridge/."""

    def loading_device(self, *, quantized: bool) -> torch.device: ...

    def before_load(self, size_bytes: int) -> None:
        """Make room."""

    def admit(self, captioner: Loaded) -> None:
        """Just loaded, on `loading_device`."""

    def enter(self, working_bytes: int) -> None:
        """Before each batch: put the model on its device, with room to work."""

    def leave(self) -> None:
        """The model was freed."""


@dataclass(kw_only=True, slots=True)
class OwnDevice:
    """Loaded to a device and left there."""

    device: torch.device

    def loading_device(self, *, quantized: bool) -> torch.device:
        return self.device

    def before_load(self, size_bytes: int) -> None:
        pass  # nobody else's memory to ask for

    def admit(self, captioner: Loaded) -> None:
        pass

    def enter(self, working_bytes: int) -> None:
        pass

    def leave(self) -> None:
        pass


class OnFirstUse:
    """What captioners share that load their model when the first picture needs it. They keep it in `_loaded` and have `_load`."""

    __slots__ = ()

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None and not self._loaded.is_freed

    @property
    def kind(self) -> str:
        return self._load().kind

    def prepare(self, image: Image.Image) -> Image.Image:
        loaded = self._loaded  # not `_load`: this runs on other threads
        return image if loaded is None else loaded.prepare(image)


@dataclass(kw_only=True, slots=True)
class LazyJoyCaptioner(OnFirstUse):
    """The settings of Load JoyCaption; `load_joycaption` runs on first use."""

    most_at_once: ClassVar[int | None] = None
    folder_or_repo: str | Path
    precision: str = "bf16"
    device: str | torch.device = "cpu"
    models_folder: Path | None = None
    version: str = "auto"
    progress: Callable[[int, int], None] = lambda done, total: None  # bytes of the download
    check_interrupted: Callable[[], None] = lambda: None  # asked while downloading
    residence: Residence | None = None  # None: `device`
    _loaded: JoyCaptioner | None = field(default=None, repr=False)

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None, check_interrupted: Callable[[], None] | None = None
    ) -> list[Generated]:
        captioner = self._load()
        self._place().enter(captioner.working_bytes(len(images), request))
        return captioner.generate(images, request, seed=seed, check_interrupted=check_interrupted)

    def free(self) -> None:
        if self._loaded is not None:
            self._loaded.free()
            self._loaded = None
            self._place().leave()

    def _place(self) -> Residence:
        if self.residence is None:
            self.residence = OwnDevice(device=torch.device(self.device))
        return self.residence

    def _load(self) -> JoyCaptioner:
        if not self.is_loaded:  # or the residence took it back
            place = self._place()
            quantized = self.precision in QUANTIZED
            device = place.loading_device(quantized=quantized)
            if quantized:
                quantization_config(self.precision, device)  # refuse before 17 GB are fetched for nothing
            folder = resolve_model(
                self.folder_or_repo, models_folder=self.models_folder, progress=self.progress, check_interrupted=self.check_interrupted,
            )
            place.before_load(int(weights_bytes(folder) * NEEDED_BYTES.get(self.precision, STORED_BYTES) / STORED_BYTES))
            self._loaded = load_joycaption(folder, precision=self.precision, device=device, kind=self.version)
            place.admit(self._loaded)
        return self._loaded
