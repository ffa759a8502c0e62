"""Pictures of the model in training, by the host's own sampler: what a graph with KSampler and VAE Decode would make of it.

Prompts are encoded before training, so that the text encoder can leave the device. Between two steps the model is
lent to the host for sampling; no random stream and no patch of the model is left changed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..dataset.captions import with_trigger, without_trigger
from ..dataset.types import EncodedDataset
from ..training.config.samples import SampleConfig
from ..training.errors import PistachioError
from ..training.samples import SamplePicture
from .encode import check_clip, check_vae, text_encoder
from .model import HostModel
from .text_encoder import TextTrainedModel

DEFAULT_PROMPTS = 2  # held-out pictures whose captions are used when no prompt is written
TRIGGER_PLACEHOLDER = "[trigger]"
CFG_DISTILLED, CFG_FLOW, CFG_OTHER = 1.0, 4.5, 7.0  # what cfg 0 means: see `automatic_cfg`
SAMPLERS, SCHEDULERS = tuple(comfy.samplers.KSampler.SAMPLERS), tuple(comfy.samplers.KSampler.SCHEDULERS)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What the PISTACHIO_SAMPLES socket carries."""

    config: SampleConfig
    clip: Any
    vae: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    text: str
    with_trigger: bool
    seed: int  # a prompt and its twin without the trigger share one: they start from the same noise

    def file_name(self, index: int) -> str:
        return f"{index:02d}-{'with' if self.with_trigger else 'without'}-trigger.png"


def prompts_for(config: SampleConfig, encoded: EncodedDataset) -> list[Prompt]:
    """As written, or captions of held-out pictures; each followed by its twin without the trigger."""
    trigger = encoded.trigger_word
    texts = [text.replace(TRIGGER_PLACEHOLDER, trigger) for text in config.prompts]
    if not texts:
        texts = [with_trigger(item.caption, trigger) for item in (encoded.held_out or encoded.train)[:DEFAULT_PROMPTS]]
    prompts: list[Prompt] = []
    for index, text in enumerate(texts):
        twin = without_trigger(text, trigger)
        prompts.append(Prompt(text=text, with_trigger=twin != text.strip(), seed=config.seed + index))
        if config.without_trigger and prompts[-1].with_trigger:
            prompts.append(Prompt(text=twin, with_trigger=False, seed=config.seed + index))
    return prompts


class HostSampler:
    """`training.samples.Sampler` over the host. Make it under inference mode, before the model trains; then `attach` the model."""

    def __init__(
        self, settings: SampleSettings, encoded: EncodedDataset, *, run_name: str, check_interrupted: Callable[[], None] = lambda: None
    ):
        check_clip(settings.clip)
        check_vae(settings.vae)
        if not callable(getattr(settings.vae.first_stage_model, "decode", None)):
            raise PistachioError("This VAE can only encode. Load the full VAE of the model and connect it to Sample Settings.")
        self.config, self.vae, self.run_name, self.check_interrupted = settings.config, settings.vae, run_name, check_interrupted
        self.prompts = prompts_for(self.config, encoded)
        encode = text_encoder(settings.clip)
        self.positive = [_on_cpu(encode(prompt.text)) for prompt in self.prompts]
        self.negative = _on_cpu(encode(self.config.negative_prompt))
        first = encoded.items[0]
        step = int(self.vae.spacial_compression_decode())
        # Rounded as the encode node's empty latents are.
        self.width, self.height = (max(1, size // step) * step for size in (self.config.width or first.width, self.config.height or first.height))
        self.model: HostModel | None = None

    def attach(self, model: HostModel) -> "HostSampler":
        self.model = model
        # A text encoder in training says the prompts its own way, other than before the run.
        self.live = model if isinstance(model, TextTrainedModel) else None
        self.cfg = self.config.cfg or automatic_cfg(model)
        return self

    def sample(self, step: int) -> list[SamplePicture]:
        assert self.model is not None, "attach a model first"
        with _same_random_streams(self.model.device), self.model.generating():
            positives = self.positive if self.live is None else [self.live.encode_text(prompt.text) for prompt in self.prompts]
            latents = [self._latents(positive, prompt.seed) for prompt, positive in zip(self.prompts, positives)]
            images = [self._decoded(latent) for latent in latents]
        return [
            SamplePicture(
                file_name=prompt.file_name(index), png=self._png(image, prompt, step), prompt=prompt.text,
                with_trigger=prompt.with_trigger, seed=prompt.seed,
            )
            for index, (prompt, image) in enumerate(zip(self.prompts, images))
        ]

    def _latents(self, positive: list, seed: int) -> Tensor:
        patcher, config = self.model.patcher, self.config
        step = int(self.vae.spacial_compression_decode())
        empty = torch.zeros(1, self.model.latent_channels, self.height // step, self.width // step)
        empty = comfy.sample.fix_empty_latent_channels(patcher, empty)
        return comfy.sample.sample(
            patcher, comfy.sample.prepare_noise(empty, seed), config.num_steps, self.cfg, config.sampler, config.scheduler,
            positive, self.negative, empty, callback=lambda *progress: self.check_interrupted(), disable_pbar=True, seed=seed,
        )

    def _decoded(self, latent: Tensor) -> Image.Image:
        self.check_interrupted()
        pixels = self.vae.decode(latent)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])[0]  # of a video's frames the first
        if not torch.isfinite(pixels).all():
            raise PistachioError("the VAE gave values that are not finite; load it in fp32 or bf16")
        return Image.fromarray((pixels.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())

    def _png(self, image: Image.Image, prompt: Prompt, step: int) -> bytes:
        """With its settings as text: once for people and picture managers, once for programs."""
        config = self.config
        described = {
            "run": self.run_name, "step": step, "prompt": prompt.text, "with_trigger": prompt.with_trigger, "negative_prompt": config.negative_prompt,
            "seed": prompt.seed, "steps": config.num_steps, "cfg": self.cfg, "sampler": config.sampler, "scheduler": config.scheduler,
            "width": image.width, "height": image.height,
        }
        text = PngInfo()
        negative = f"\nNegative prompt: {config.negative_prompt}" if config.negative_prompt else ""
        text.add_itxt("parameters", (
            f"{prompt.text}{negative}\nSteps: {config.num_steps}, Sampler: {config.sampler}, Schedule type: {config.scheduler}, "
            f"CFG scale: {self.cfg:g}, Seed: {prompt.seed}, Size: {image.width}x{image.height}, Run: {self.run_name}, Step: {step}"
        ))
        text.add_itxt("pistachio", json.dumps(described, ensure_ascii=False))
        data = io.BytesIO()
        image.save(data, format="PNG", pnginfo=text)
        return data.getvalue()


def automatic_cfg(model: HostModel) -> float:
    """1 where guidance is an input of the network (distilled models), 4.5 for other flow models, 7 for the rest."""
    if model.base_model.model_config.unet_config.get("guidance_embed"):
        return CFG_DISTILLED
    return CFG_FLOW if model.is_flow else CFG_OTHER


def _on_cpu(conditioning: list) -> list:
    return [[_cpu(tensor), {key: _cpu(value) for key, value in extra.items()}] for tensor, extra in conditioning]


def _cpu(value):
    return value.cpu() if torch.is_tensor(value) else value


@contextmanager
def _same_random_streams(device: torch.device) -> Iterator[None]:
    """The host seeds the process's own streams for its noise; the caller's go on unmoved."""
    accelerated = device.type not in ("cpu", "meta")
    indices = [device.index if device.index is not None else torch.get_device_module(device).current_device()] if accelerated else []
    with torch.random.fork_rng(devices=indices, device_type=device.type if accelerated else "cuda"):
        yield
