"""JoyCaption (LLaVA: SigLIP and Llama 3.1) through transformers 4.46 to 5.x.

Owns how a picture and a prompt become tokens, and seeded generation in left-padded batches.
Sizes and token ids come from the model's own config. Knows nothing about files of captions.
Shapes: B batch, L tokens, S the vision tower's image side in pixels.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...training.errors import PistachioError
from .download import resolve_model
from .prompts import BETA_ONE, KINDS, SYSTEM_PROMPTS, CaptionRequest, build_prompt
from .quantization import QUANTIZED, check_quantized, quantization_config

log = logging.getLogger(__name__)

NO_MEMORY = "There is not enough GPU memory for JoyCaption (about 17 GB in bf16, 10 in int8, 7 in nf4). Choose a smaller precision on Load JoyCaption, or close other programs."
DTYPES = {"bf16": torch.bfloat16, "int8": torch.bfloat16, "nf4": torch.bfloat16, "fp32": torch.float32}  # of what is not quantised
PRECISIONS = tuple(DTYPES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    text: str
    num_tokens: int
    finished: bool  # False: cut off at max_new_tokens


def load_joycaption(
    folder_or_repo: str | Path,
    *,
    precision: str = "bf16",
    device: str | torch.device = "cpu",
    models_folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,  # bytes of the download
    kind: str = "auto",  # or one of KINDS: which system prompt and options
) -> JoyCaptioner:
    """Load a model from a folder, or download it first. PistachioError says what is missing or wrong.

    int8 and nf4 are made from the bf16 files while loading, on `device`; a folder that is quantised already keeps its own precision.
    """
    if precision not in PRECISIONS:
        raise PistachioError(f"Captioner precision '{precision}' is unknown. Choose one of {', '.join(PRECISIONS)} on Load JoyCaption.")
    try:
        from transformers import AutoConfig, AutoTokenizer, LlavaForConditionalGeneration
    except ImportError as error:
        raise PistachioError(f"JoyCaption needs the package transformers, 4.46 or later ({error}): pip install transformers.") from error
    quantization = quantization_config(precision, device) if precision in QUANTIZED else None  # before 17 GB are fetched for it
    folder = resolve_model(folder_or_repo, models_folder=models_folder, progress=progress)
    config = _load(folder, AutoConfig.from_pretrained)
    if config.model_type != "llava":
        raise PistachioError(f"'{folder}' holds a '{config.model_type}' model, not a LLaVA one. Choose a JoyCaption folder on Load JoyCaption.")
    tokenizer = _load(folder, AutoTokenizer.from_pretrained)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _chat_template(folder)
    # "torch_dtype" became "dtype" in 4.56
    dtype_key = "dtype" if hasattr(type(config)(), "dtype") else "torch_dtype"
    options: dict[str, Any] = {dtype_key: DTYPES[precision]}
    quantized_on_disk = getattr(config, "quantization_config", None) is not None
    quantized = quantized_on_disk or quantization is not None
    if quantization is not None and not quantized_on_disk:
        options["quantization_config"] = quantization
    if quantized:
        options["device_map"] = {"": str(device)}  # quantised weights can't be moved afterwards
    model, report = _load(folder, LlavaForConditionalGeneration.from_pretrained, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise PistachioError(f"'{folder}' lacks {len(missing)} weights, first '{missing[0]}'. Its files are damaged or of another model: download it again.")
    if "quantization_config" in options:
        check_quantized(model, precision)
    if not quantized:
        try:
            model.to(device)
        except torch.cuda.OutOfMemoryError as error:
            raise PistachioError(NO_MEMORY) from error
    model.train(False)
    return JoyCaptioner(model, tokenizer, kind=model_kind(kind, folder_or_repo, folder, config), quantized=quantized)


def _load(folder: Path, from_pretrained: Callable, **options: Any) -> Any:
    try:
        return from_pretrained(str(folder), local_files_only=True, **options)
    except ImportError as error:  # bitsandbytes, compressed-tensors or accelerate, as transformers names it
        raise PistachioError(f"The captioner in '{folder}' needs another package: {error}") from error
    except torch.cuda.OutOfMemoryError as error:
        raise PistachioError(NO_MEMORY) from error
    except Exception as error:  # transformers, tokenizers and safetensors raise plain Exception subclasses for damaged files
        raise PistachioError(
            f"The captioner in '{folder}' can't be loaded ({type(error).__name__}: {error}). "
            "If its files are damaged, delete the folder and download it again."
        ) from error


def model_kind(kind: str, *names_and_config: Any) -> str:
    """'alpha-two' or 'beta-one', as given or from the first name or config that says so."""
    if kind != "auto":
        if kind not in KINDS:
            raise PistachioError(f"JoyCaption version '{kind}' is unknown. Choose auto, {' or '.join(KINDS)} on Load JoyCaption.")
        return kind
    for source in names_and_config:
        text = str(getattr(source, "_name_or_path", source)).lower().replace("_", "-")
        for known in KINDS:
            if known in text:
                return known
    log.warning("'%s' does not say whether it is JoyCaption alpha-two or beta-one: taken as beta-one. Choose it on Load JoyCaption.", names_and_config[0])
    return BETA_ONE


def _chat_template(folder: Path) -> str:
    """The template of a folder whose tokenizer file does not carry it: processors keep it in a file of its own."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if (folder / "chat_template.json").is_file():
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    raise PistachioError(f"'{folder}' has no chat template. Copy tokenizer_config.json and chat_template.* from the model's page.")


def to_pixels(images: Sequence[Image.Image], side: int) -> Tensor:
    """float32 [B, 3, S, S] in -1..1: squashed to a square, never padded, as the model was trained."""
    squares = [np.asarray(squashed(image, side), dtype=np.float32) for image in images]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255.0 * 2.0 - 1.0


def squashed(image: Image.Image, side: int) -> Image.Image:
    """RGB [S, S] by LANCZOS; a picture that is so already keeps its pixels."""
    return image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)


def kv_cache_bytes(config: Any, num_tokens: int) -> int:
    """Keys and values of one row, 2 bytes a number."""
    text = config.text_config
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head_dim * num_tokens


class JoyCaptioner:
    """A loaded model. `free()` gives its memory back, after which it can't be used."""

    def __init__(self, model: Any, tokenizer: Any, *, kind: str, quantized: bool = False):
        assert kind in SYSTEM_PROMPTS
        self.model, self.tokenizer, self.kind, self.quantized = model, tokenizer, kind, quantized
        config = model.config
        token = getattr(config, "image_token_index", None)
        self.image_token_id = int(token if token is not None else config.image_token_id)
        self.image_seq_length = int(config.image_seq_length)
        self.image_side = int(config.vision_config.image_size)
        # transformers before 4.50 takes fewer picture tokens than this for a prompt that it must expand, every later token among them, and then attends to the padding
        self._guesses_expansion = hasattr(model, "_merge_input_ids_with_image_features")
        self._base_generation = copy.deepcopy(model.generation_config)
        eos = self._base_generation.eos_token_id
        if eos is None:
            eos = tokenizer.eos_token_id
        self.eos_token_ids = frozenset(eos if isinstance(eos, (list, tuple)) else [eos])
        pads = (tokenizer.pad_token_id, self._base_generation.pad_token_id, config.pad_token_id if hasattr(config, "pad_token_id") else None)
        self.pad_token_id = next((p for p in pads if p is not None and p != self.image_token_id), min(self.eos_token_ids))

    @property
    def is_freed(self) -> bool:
        return self.model is None

    def caption(self, images: Sequence[Image.Image], request: CaptionRequest | Sequence[CaptionRequest], *, seed: int | None = None) -> list[str]:
        """One caption a picture, without trigger word; `seed` replaces the request's."""
        return [item.text for item in self.generate(images, request, seed=seed)]

    def prepare(self, image: Image.Image) -> Image.Image:
        """All that `generate` needs of a picture; it may run on another thread, ahead of time."""
        return squashed(image, self.image_side)

    def generate(
        self, images: Sequence[Image.Image], request: CaptionRequest | Sequence[CaptionRequest], *, seed: int | None = None,
        check_interrupted: Callable[[], None] | None = None,
    ) -> list[Generated]:
        """One batch. The same pictures, requests and seed give the same tokens; the global RNG is left alone.

        `check_interrupted` is called once a token, and what it raises ends the batch. Requests may differ in their prompts; sampling settings and seed are the first one's.
        """
        if self.model is None:
            raise PistachioError("This captioner was freed. Queue again to load it.")
        if not images:
            return []
        requests = [request] * len(images) if isinstance(request, CaptionRequest) else list(request)
        assert len(requests) == len(images)
        first = requests[0]
        rows = [self.prompt_tokens(build_prompt(r, self.kind)) for r in requests]
        input_ids_BL, mask_BL = self._left_pad(rows)
        device = self.model.get_input_embeddings().weight.device
        pixels = to_pixels(images, self.image_side).to(device, self.model.dtype)
        # set on the model instead of passed: transformers 5 fills unset fields of a passed config from the file's sampling settings
        self.model.generation_config = self._generation_config(first)
        if self._guesses_expansion:
            self.model.config.image_seq_length = 0
        devices = [device] if device.type == "cuda" else []
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=devices):
                torch.manual_seed(first.seed if seed is None else seed)
                output_BL = self.model.generate(
                    input_ids=input_ids_BL.to(device), attention_mask=mask_BL.to(device), pixel_values=pixels, **_stopping(check_interrupted)
                )
        finally:
            self.model.generation_config = self._base_generation
            if self._guesses_expansion:
                self.model.config.image_seq_length = self.image_seq_length
        return [self._decode(tokens) for tokens in output_BL[:, input_ids_BL.shape[1] :].tolist()]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """System and user turn with exactly one BOS and the picture's place expanded to its sequence length."""
        text = self._chat(prompt)
        tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if tokens.count(self.image_token_id) == 0:  # a template that leaves the picture's place to the caller
            text = self._chat(self.tokenizer.convert_ids_to_tokens(self.image_token_id) + "\n" + prompt)
            tokens = self.tokenizer.encode(text, add_special_tokens=False)
        if tokens.count(self.image_token_id) != 1:
            raise PistachioError(
                f"The prompt has {tokens.count(self.image_token_id)} places for the picture instead of one. "
                "Take image tokens out of the custom prompt; if there are none, the captioner's folder is not a JoyCaption model."
            )
        bos = self.tokenizer.bos_token_id
        if bos is not None:
            start = next((i for i, token in enumerate(tokens) if token != bos), len(tokens))
            tokens = [bos, *tokens[start:]]
        place = tokens.index(self.image_token_id)
        return [*tokens[:place], *[self.image_token_id] * self.image_seq_length, *tokens[place + 1 :]]

    def _chat(self, prompt: str) -> str:
        turns = [{"role": "system", "content": SYSTEM_PROMPTS[self.kind]}, {"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _left_pad(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        input_ids = torch.full((len(rows), longest), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            input_ids[i, longest - len(row) :] = torch.tensor(row)
            mask[i, longest - len(row) :] = 1
        return input_ids, mask

    def _generation_config(self, request: CaptionRequest) -> Any:
        config = copy.deepcopy(self._base_generation)
        config.max_new_tokens = request.max_new_tokens
        config.max_length = None
        config.suppress_tokens = None
        config.eos_token_id = sorted(self.eos_token_ids)
        config.pad_token_id = self.pad_token_id
        config.do_sample = request.temperature > 0
        if config.do_sample:
            # 0, not None: None becomes transformers' own default of 50
            config.temperature, config.top_p, config.top_k = request.temperature, request.top_p, request.top_k
        else:
            config.temperature = config.top_p = config.top_k = None
        return config

    def working_bytes(self, batch_size: int, request: CaptionRequest) -> int:
        """Memory that a batch needs beside the weights: keys and values, and about as much again while the pictures are read."""
        num_tokens = self.image_seq_length + len(self.tokenizer.encode(build_prompt(request, self.kind))) + 100 + request.max_new_tokens
        return 2 * batch_size * kv_cache_bytes(self.model.config, num_tokens)

    def _decode(self, tokens: list[int]) -> Generated:
        end = next((i for i, token in enumerate(tokens) if token in self.eos_token_ids), None)
        kept = tokens[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generated(text=text.strip(), num_tokens=len(kept), finished=end is not None)

    def free(self) -> None:
        """Drop the model and give cached GPU memory back."""
        self.model = self.tokenizer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stopping(check_interrupted: Callable[[], None] | None) -> dict[str, Any]:
    """For `generate`: transformers asks each criterion after every token."""
    if check_interrupted is None:
        return {}
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Interrupt(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            check_interrupted()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    return {"stopping_criteria": StoppingCriteriaList([Interrupt()])}
