"""A vision-language model that ComfyUI itself loads, as a captioner: its CLIP is asked as the host's own text node asks it.

Owns the questions whether a CLIP can write text and see pictures. Its memory is the host's own matter.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import comfy.sd
import comfy.utils
import numpy as np
import torch
from PIL import Image

from ..dataset.joycaption.model import Generated
from ..dataset.joycaption.prompts import GENERAL, CaptionRequest, build_prompt
from ..training.errors import PistachioError

NODE = "Captioner from CLIP"
KNOWN = "Qwen3-VL, Qwen3.5, Gemma 3 or Gemma 4"
MAX_PIXELS = 1024 * 1024  # these models take more tokens the larger a picture is
_THOUGHTS = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)


def check_vision_language(clip: Any) -> None:
    """PistachioError unless this CLIP can answer a question about a picture. Runs no model."""
    if not hasattr(comfy.sd.CLIP, "generate"):
        raise PistachioError("This ComfyUI can't write text with a model of its own: that came after 0.3.75. Update ComfyUI, or use Load JoyCaption.")
    model = getattr(clip, "cond_stage_model", None)
    if not hasattr(clip, "generate") or model is None or not _can_write(model):
        raise PistachioError(f"This CLIP is a text encoder that can't write text. Load a vision-language model ({KNOWN}) with Load CLIP and connect that to {NODE}.")
    if not _sees(_tokens(clip, "?", Image.new("RGB", (64, 64)))):
        raise PistachioError(f"This CLIP writes text but can't see pictures. Load a file with the vision part too ({KNOWN}) and connect that to {NODE}.")


def _can_write(model: torch.nn.Module) -> bool:
    """One of its parts makes tokens itself; the wrappers around it only pass the call on."""
    return any(callable(getattr(part, "sample_token", None)) for part in model.modules())


def _tokens(clip: Any, prompt: str, image: Image.Image) -> Any:
    pixels = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0)[None]

    def tokenize(text: str) -> Any:
        return clip.tokenize(text, image=pixels, skip_template=False, min_length=1, thinking=False)

    tokens = tokenize(prompt)
    if any(entry[1] != 1.0 for entry in _entries(tokens)):  # this tokenizer takes parentheses for weights and drops them
        tokens = tokenize(prompt.replace("(", "\\(").replace(")", "\\)"))
    return tokens


def _entries(tokens: Any) -> Iterator[tuple]:
    """(token or picture, weight, ...) of all that a CLIP's tokenizers made."""
    for rows in tokens.values() if isinstance(tokens, dict) else (tokens,):
        for row in rows:
            yield from row


def _sees(tokens: Any) -> bool:
    """Is the picture in the prompt? A tokenizer that knows no pictures takes the argument and says nothing."""
    return any(isinstance(entry[0], dict) and entry[0].get("type") == "image" for entry in _entries(tokens))


@dataclass(kw_only=True, slots=True)
class HostCaptioner:
    """`dataset.joycaption.lazy.Captioner` over a CLIP."""

    most_at_once: ClassVar[int | None] = 1
    clip: Any
    kind: str = GENERAL

    @property
    def is_loaded(self) -> bool:
        return True  # by the host's loader; it is brought to the device when it is asked

    def prepare(self, image: Image.Image) -> Image.Image:
        """At most MAX_PIXELS, with its own shape."""
        scale = (MAX_PIXELS / (image.width * image.height)) ** 0.5
        if scale >= 1:
            return image
        return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None, check_interrupted: Callable[[], None] | None = None
    ) -> list[Generated]:
        first = request.seed if seed is None else seed
        prompt = build_prompt(request, self.kind)
        with _hearing(check_interrupted or (lambda: None)):
            return [self._answer(prompt, self.prepare(image), request, (first + place) % 2**63) for place, image in enumerate(images)]

    def _answer(self, prompt: str, image: Image.Image, request: CaptionRequest, seed: int) -> Generated:
        tokens = _tokens(self.clip, prompt, image)
        if not _sees(tokens):  # a prompt in the model's own chat format leaves the picture out
            raise PistachioError("The picture has no place in the custom prompt. Write it in plain words on Caption Dataset, without the model's chat marks.")
        settings = {
            "do_sample": request.temperature > 0, "max_length": request.max_new_tokens, "temperature": request.temperature, "top_k": request.top_k,
            "top_p": request.top_p, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "seed": seed,
        }
        known = inspect.signature(self.clip.generate).parameters  # newer hosts know more of them
        with torch.inference_mode():
            answer = list(self.clip.generate(tokens, **{name: value for name, value in settings.items() if name in known}))
        finished = len(answer) < request.max_new_tokens or (bool(answer) and not self.clip.decode(answer[-1:]).strip())
        text = _THOUGHTS.sub("", self.clip.decode(answer))
        if "<think>" in text:  # it never came to the answer
            text, finished = "", False
        return Generated(text=text.strip(), num_tokens=len(answer), finished=finished)

    def free(self) -> None:
        """The model is the graph's: the host takes it off the device when another one needs the room."""


@contextmanager
def _hearing(check_interrupted: Callable[[], None]) -> Iterator[None]:
    """The host counts tokens on the node's bar, which counts pictures here: its calls are taken to look for a cancel."""
    hook = comfy.utils.PROGRESS_BAR_HOOK

    def heard(*_: Any, **__: Any) -> None:
        check_interrupted()

    comfy.utils.set_progress_bar_global_hook(heard)
    try:
        check_interrupted()
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(hook)
