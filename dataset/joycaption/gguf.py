"""JoyCaption as GGUF files through llama-cpp-python: the same chat, prompts and squashed picture as through transformers.

Owns how the chat is written out and what is asked of the library. llama.cpp answers one picture at a time and holds its
own memory. Knows nothing about files of captions.
"""

from __future__ import annotations

import base64
import io
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, ClassVar, Sequence

from PIL import Image

from ...training.errors import PistachioError
from .gguf_file import LANGUAGE_MODEL, PROJECTOR, GgufFile, read_gguf
from .lazy import OnFirstUse, Residence
from .model import Generated, model_kind, squashed
from .prompts import SYSTEM_PROMPTS, CaptionRequest, build_prompt

log = logging.getLogger(__name__)

NODE = "Load GGUF Captioner"
ALL_LAYERS = -1
MAX_SEED = 2**32 - 1  # llama.cpp takes 32 bits, and the last number for "any"
PICTURE_TOKENS = ("<|reserved_special_token_69|>", "<image>")  # in a chat template: JoyCaption's, and that of other LLaVAs
PLACE = "<|pistachio-picture|>"  # where the template leaves the picture's place to the caller
RESERVED = (*PICTURE_TOKENS, PLACE, "<__media__>")  # the library's own mark is the last
LOG_ERROR = 4
_callbacks: list[Any] = []  # kept as long as the library may call them
SIDE = 384  # where the projector's file does not say it
# Llama 3.1's chat as JoyCaption's own template writes it, for files without one.
CHAT = (
    "{bos}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 July 2024\n\n{system}<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n<|reserved_special_token_70|><|reserved_special_token_69|><|reserved_special_token_71|>{prompt}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """How a model's file writes a system prompt and a user's prompt with a picture as one text."""

    template: str  # Jinja; empty: Llama 3.1's
    bos: str
    eos: str
    is_bos_added: bool  # by who reads the text: a second one degrades the answers

    def parts(self, system: str, prompt: str) -> tuple[str, str]:
        """The text before and after the picture."""
        used = [token for token in RESERVED if token in prompt]
        if used:
            raise PistachioError(f"The custom prompt holds '{used[0]}', which stands for the picture. Take it out on Caption Dataset.")
        text = self._text(system, prompt)
        if not any(token in text for token in PICTURE_TOKENS):
            text = self._text(system, f"{PLACE}\n{prompt}")
        place = next((token for token in (*PICTURE_TOKENS, PLACE) if token in text), PLACE)
        if text.count(place) != 1:
            raise PistachioError(f"The chat template of this GGUF file has {text.count(place)} places for the picture instead of one. Choose a JoyCaption file on {NODE}.")
        before, after = text.split(place)
        if self.bos:
            while before.startswith(self.bos):
                before = before.removeprefix(self.bos)
            before = before if self.is_bos_added else self.bos + before
        return before, after

    def _text(self, system: str, prompt: str) -> str:
        if not self.template:
            return CHAT.format(bos=self.bos, system=system, prompt=prompt)
        # as transformers renders them
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        turns = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        try:
            return environment.from_string(self.template).render(
                messages=turns, add_generation_prompt=True, bos_token=self.bos, eos_token=self.eos, tools=None,
            )
        except TemplateError as error:
            raise PistachioError(f"The chat template of this GGUF file can't be used ({error}). Choose another file on {NODE}.") from error


def check_files(model: Path, projector: Path) -> tuple[GgufFile, GgufFile]:
    """Both files' heads; PistachioError when one is damaged, or they are not a language model and its projector."""
    for path, what in ((model, "model"), (projector, "mmproj")):
        if not path.is_file():
            raise PistachioError(f"The {what} file '{path}' does not exist. Choose another one on {NODE}.")
    files = read_gguf(model), read_gguf(projector)
    if files[0].architecture == PROJECTOR:
        raise PistachioError(f"'{model}' is the projector ('mmproj') of a model, not the model. Choose the other file as 'model' on {NODE}.")
    if files[0].architecture != LANGUAGE_MODEL:
        raise PistachioError(f"'{model}' holds a '{files[0].architecture}' model; JoyCaption is a 'llama' one. Choose a JoyCaption file on {NODE}.")
    if files[1].architecture != PROJECTOR:
        raise PistachioError(f"'{projector}' holds a '{files[1].architecture}' model, not the projector of one. Choose the file with 'mmproj' in its name on {NODE}.")
    return files


def load_gguf(model: Path, projector: Path, *, version: str = "auto", context_length: int = 4096, gpu_layers: int = ALL_LAYERS) -> GgufCaptioner:
    """PistachioError says what is missing or wrong."""
    try:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import Llava15ChatHandler
    except ImportError as error:
        raise PistachioError(
            f"GGUF captioners need the package llama-cpp-python ({error}): pip install llama-cpp-python in ComfyUI's Python, in a build for your GPU. "
            "Load JoyCaption with int8 or nf4 works without it."
        ) from error
    except (OSError, RuntimeError) as error:  # its library does not fit the machine
        raise PistachioError(f"llama-cpp-python does not start here ({error}). Install the build for your machine, or use Load JoyCaption with int8 or nf4.") from error
    model_file, projector_file = check_files(model, projector)
    _quieten()

    class Verbatim(Llava15ChatHandler):
        """The chat is written out already: the parts of the one message are joined as they are."""

        DEFAULT_SYSTEM_MESSAGE = None
        CHAT_FORMAT = (
            "{% for message in messages %}{% for part in message.content %}"
            "{% if part.type == 'image_url' %}{{ part.image_url.url }}{% else %}{{ part.text }}{% endif %}"
            "{% endfor %}{% endfor %}"
        )

    try:
        llama = Llama(
            str(model), n_ctx=context_length, n_gpu_layers=gpu_layers, verbose=False, chat_handler=Verbatim(str(projector), verbose=False),
        )
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        raise PistachioError(
            f"llama.cpp can't load '{model}' ({type(error).__name__}: {error}). If the GPU's memory is too small, lower gpu_layers or the context length on {NODE}; "
            "else the installed llama-cpp-python may be too old for this file."
        ) from error
    kind = model_kind(version, model.name, model_file.name)
    return GgufCaptioner(llama, model_file, projector_file, kind=kind, context_length=context_length)


def _quieten() -> None:
    """The vision part prints every prompt in full, whatever the library's verbosity: only its errors are logged."""
    from llama_cpp import llama_log_callback

    try:
        from llama_cpp.mtmd_cpp import mtmd_helper_log_set
    except ImportError:  # an older library, which has another vision part
        return

    @llama_log_callback
    def told(level: int, text: bytes, _: Any) -> None:
        if level == LOG_ERROR:
            log.warning("llama.cpp: %s", text.decode("utf-8", "replace").strip())

    _callbacks[:] = [told]
    mtmd_helper_log_set(told, None)


class GgufCaptioner:
    """A loaded pair of files. `free()` gives the memory back, after which it can't be used."""

    model, quantized = None, True  # to a Residence: no torch weights, and nothing that could be moved

    def __init__(self, llama: Any, model_file: GgufFile, projector_file: GgufFile, *, kind: str, context_length: int):
        self.llama, self.kind, self.context_length = llama, kind, context_length
        template = model_file.values.get("tokenizer.chat_template", "")
        if not template:
            log.info("'%s' has no chat template: JoyCaption's own is used.", model_file.path)
        # the library puts a beginning-of-sequence token before every prompt where the file asks for it
        first = llama.tokenize(b"a", add_bos=True, special=True)[0]
        self.chat = Chat(template=template, bos=model_file.token("bos"), eos=model_file.token("eos"), is_bos_added=first == llama.token_bos())
        self.image_side = int(projector_file.values.get("clip.vision.image_size", SIDE))
        patch = int(projector_file.values.get("clip.vision.patch_size", 14))
        self.image_seq_length = (self.image_side // patch) ** 2

    @property
    def is_freed(self) -> bool:
        return self.llama is None

    def prepare(self, image: Image.Image) -> Image.Image:
        """All that `generate` needs of a picture; it may run on another thread, ahead of time."""
        return squashed(image, self.image_side)

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None, check_interrupted: Callable[[], None] | None = None
    ) -> list[Generated]:
        """One after the other. The same picture, request, seed and place in the batch give the same text."""
        if self.llama is None:
            raise PistachioError("This captioner was freed. Queue again to load it.")
        before, after = self.chat.parts(SYSTEM_PROMPTS[self.kind], build_prompt(request, self.kind))
        self._check_room(before + after, request)
        first = request.seed if seed is None else seed
        check = check_interrupted or (lambda: None)
        return [
            self._answer(before, squashed(image, self.image_side), after, request, (first + place) % MAX_SEED, check)
            for place, image in enumerate(images)
        ]

    def _check_room(self, text: str, request: CaptionRequest) -> None:
        num_tokens = len(self.llama.tokenize(text.encode(), add_bos=True, special=True)) + self.image_seq_length
        if num_tokens + request.max_new_tokens >= self.context_length:
            raise PistachioError(
                f"The picture and the prompt take {num_tokens} tokens and the answer up to {request.max_new_tokens}; context_length is {self.context_length}. "
                f"Raise it on {NODE}, or lower max_new_tokens on Caption Dataset."
            )

    def _answer(self, before: str, image: Image.Image, after: str, request: CaptionRequest, seed: int, check_interrupted: Callable[[], None]) -> Generated:
        check_interrupted()
        content = [{"type": "text", "text": before}, {"type": "image_url", "image_url": {"url": _data_url(image)}}, {"type": "text", "text": after}]
        try:
            stream = self.llama.create_chat_completion(
                [{"role": "user", "content": content}], stream=True, seed=seed, max_tokens=request.max_new_tokens, temperature=request.temperature,
                top_p=request.top_p, top_k=request.top_k, min_p=0.0, typical_p=1.0, repeat_penalty=1.0,  # the library's own values are not the model's
            )
            pieces, reason = [], None
            for chunk in stream:  # about one a token
                check_interrupted()
                choice = chunk["choices"][0]
                pieces.append(choice["delta"].get("content") or "")
                reason = choice["finish_reason"] or reason
        except ValueError as error:
            raise PistachioError(f"llama.cpp could not read the picture or the prompt ({error}). The mmproj file must be of the same model as the model file on {NODE}.") from error
        finished = reason == "stop"
        num_tokens = sum(map(bool, pieces)) if finished else request.max_new_tokens
        return Generated(text="".join(pieces).strip(), num_tokens=num_tokens, finished=finished)

    def free(self) -> None:
        if self.llama is not None:
            self.llama.close()
            self.llama = None


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(kw_only=True, slots=True)
class LazyGgufCaptioner(OnFirstUse):
    """The settings of Load GGUF Captioner; `load_gguf` runs on first use."""

    most_at_once: ClassVar[int | None] = 1
    model_file: Path
    projector_file: Path
    version: str = "auto"
    context_length: int = 4096
    gpu_layers: int = ALL_LAYERS
    residence: Residence | None = None  # None: nobody else's memory to ask for
    _loaded: GgufCaptioner | None = field(default=None, repr=False)

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest, *, seed: int | None = None, check_interrupted: Callable[[], None] | None = None
    ) -> list[Generated]:
        captioner = self._load()
        if self.residence is not None:
            self.residence.enter(0)  # llama.cpp has taken its working memory while loading
        return captioner.generate(images, request, seed=seed, check_interrupted=check_interrupted)

    def free(self) -> None:
        if self._loaded is not None:
            self._loaded.free()
            self._loaded = None
            if self.residence is not None:
                self.residence.leave()

    def _load(self) -> GgufCaptioner:
        if not self.is_loaded:  # or the residence took it back
            if self.residence is not None:
                self.residence.before_load(sum(file.size_bytes for file in check_files(self.model_file, self.projector_file)))
            self._loaded = load_gguf(
                self.model_file, self.projector_file, version=self.version, context_length=self.context_length, gpu_layers=self.gpu_layers,
            )
            if self.residence is not None:
                self.residence.admit(self._loaded)
        return self._loaded
