"""The plan of a run's memory: counts on the host's own model, asks for free memory, and lets the engine choose.

It runs before anything is loaded on the device. Nothing is planned on a CPU unless a limit or a choice is given: the run is
then as it always was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import comfy.model_management
import torch

from ..training.adapted import AdaptedNetwork
from ..training.batches import TrainItem
from ..training.config import TrainConfig
from ..training.config.memory import AUTO, MemoryConfig
from ..training.memory.estimate import BaseSize, Facts
from ..training.memory.optimizer_size import optimizer_size
from ..training.memory.plan import AS_LOADED, GB, MemoryPlan, size_words, words_of
from ..training.memory.scratch import scratch_bytes
from ..training.memory.search import Allowed, Choice, DoesNotFit, allowed, choose, leaner
from ..training.memory.trace import Scratch, StepTrace, trace_forward, trace_step
from ..training.quantization.formats import FORMATS
from .families import blocks_of
from .quantize import packed_bytes, size_bytes
from .shadow import ShadowModel

log = logging.getLogger("pistachio")

# Of a card's free memory: what the allocator can't use between blocks, and what cuBLAS and cuDNN take for themselves.
UNUSABLE_SHARE = 0.04
LIBRARY_BYTES = 400_000_000
LOOKED_AT = 32  # items whose captions are measured for the longest
SMALLER = (0.75, 0.5)  # shares of the resolution that a refusal tries
# What tracing a network may raise that only real numbers satisfy.
UNTRACEABLE = (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError)


class Planner:
    """Plans for one model, one set and one configuration."""

    def __init__(
        self, patcher, items: Sequence, config: TrainConfig, memory: MemoryConfig, *, device: torch.device, has_held_out: bool = True,
        samples: "SampleSize | None" = None, limit: int | None = None,
    ):
        """`limit`: bytes that may be used, where the device is not to be asked.

        `items`: as `load_items` gives them for training; `samples`: where pictures are sampled in between."""
        self.patcher, self.config, self.memory, self.device = patcher, config, memory, device
        self.has_held_out, self.samples = has_held_out, samples
        self.network = patcher.model.diffusion_model
        self.largest = _largest(items)
        self.limit_bytes = limit or limit_bytes(device, memory)
        self.shadow = ShadowModel(patcher, device=device, precision=config.precision)
        self.scratch: Scratch | None = scratch_bytes if device.type == "cpu" else None
        self.facts = self._facts(self.largest)

    @property
    def allowed(self) -> Allowed:
        return self._allowed(self.memory, self.config)

    def _allowed(self, memory: MemoryConfig, config: TrainConfig) -> Allowed:
        on_cpu = self.device.type == "cpu"
        return allowed(config, memory, has_blocks=bool(blocks_of(self.network)), on_cpu=on_cpu, limit_bytes=self.limit_bytes)

    def choose(self) -> Choice:
        """PistachioError with the nearest plan that fits, where none does that the settings allow."""
        try:
            return choose(self.config, self.memory, self.allowed, self.facts)
        except DoesNotFit as error:
            raise DoesNotFit(error.least, error.limit_bytes, self._nearest()) from None

    def leaner(self, plan: MemoryPlan) -> MemoryPlan | None:
        return leaner(plan, self.config, self.memory, self.allowed, self.facts)

    def _nearest(self) -> str:
        """A sentence, or nothing where not even half the resolution would fit."""
        free = replace(self.memory, keep=AUTO, blocks_streamed=-1, base_format=AUTO, optimizer_state=AUTO, weight_average=AUTO, keep_in_ram=False)
        config = replace(self.config, block_checkpointing="auto")
        for share, batch in ((1.0, free.batch), (1.0, "effective"), *((share, "effective") for share in SMALLER)):
            facts = self.facts if share == 1 else self._facts(_scaled(self.largest, share))
            wanted = replace(free, batch=batch)
            try:
                plan = choose(config, wanted, self._allowed(wanted, config), facts).plan
            except DoesNotFit:
                continue
            how = "with everything on 'auto' in Memory Settings and on Train LoRA" if share == 1 else f"at {share:.0%} of this resolution on Encode Dataset"
            return f"The nearest that fits: {words_of(plan)}, {how} ({size_words(plan.peak_bytes)})."
        return ""

    # ---- what is counted -----------------------------------------------

    def _facts(self, item: TrainItem) -> Facts:
        def trace(pictures: int, keep: str) -> StepTrace:
            with self.shadow.training():
                return trace_step(self.shadow, [item] * pictures, self.config, keep=keep, scratch=self.scratch)

        def forward(pictures: int, latents_shape: tuple[int, ...] | None = None) -> int:
            batch = [item if latents_shape is None else _resized(item, latents_shape)] * pictures
            with self.shadow.training():
                return trace_forward(self.shadow, batch, scratch=self.scratch)

        with self.shadow.training():
            network = AdaptedNetwork(self.shadow, self.config.adapter, seed=self.config.seed)
        samples = self.samples
        return Facts(
            base=self._bases(), optimizer=optimizer_size(network, self.config.optimizer), trace=cache(trace), forward_bytes=cache(forward),
            sample_bytes=None if samples is None else cache(lambda: forward(samples.pictures, samples.latent_shape)),
            decode_bytes=samples.decode_bytes if samples else 0, has_held_out=self.has_held_out,
            num_blocks=len(blocks_of(self.network)),
        )

    def _bases(self) -> dict[str, BaseSize]:
        blocks = [block for _, block in blocks_of(self.network)]
        total = size_bytes(self.network)
        nested = _nested(blocks)
        sizes = {AS_LOADED: BaseSize(total_bytes=total, block_bytes=() if nested else tuple(map(size_bytes, blocks)))}
        wanted = FORMATS if self.memory.base_format == AUTO and self.device.type != "cpu" else (self.memory.base_format,)
        for name in wanted:
            if name in FORMATS and blocks:
                packed = packed_bytes(self.network, name)
                if packed:
                    sizes[name] = self._packed(sizes[AS_LOADED], blocks, packed)
        return sizes

    def _packed(self, loaded: BaseSize, blocks: list[torch.nn.Module], packed: dict[torch.nn.Module, int]) -> BaseSize:
        spared = {module: size_bytes(module) - size for module, size in packed.items()}
        largest = max(module.out_features * module.in_features for module in packed) * self.shadow.compute_dtype.itemsize
        of_blocks = [size - sum(spared.get(module, 0) for module in block.modules()) for size, block in zip(loaded.block_bytes, blocks)]
        return BaseSize(total_bytes=loaded.total_bytes - sum(spared.values()), block_bytes=tuple(of_blocks), largest_layer_bytes=largest)


class SampleSize:
    """What sampling pictures while a run trains holds at once."""

    def __init__(self, sampler, patcher):
        """`sampler`: a HostSampler."""
        step = int(sampler.vae.spacial_compression_decode())
        latent_format = patcher.model.latent_format
        frames = (1,) if latent_format.latent_dimensions == 3 else ()
        self.latent_shape = (1, latent_format.latent_channels, *frames, sampler.height // step, sampler.width // step)
        self.pictures = 2  # with the prompt and without, as guidance asks
        decode = getattr(sampler.vae, "memory_used_decode", None)
        weights = size_bytes(sampler.vae.first_stage_model)
        self.decode_bytes = weights + (int(decode(self.latent_shape, sampler.vae.vae_dtype)) if decode else 0)


def limit_bytes(device: torch.device, memory: MemoryConfig) -> int | None:
    """What may be used of the device; None on a CPU without a limit."""
    asked = round(memory.limit_gb * GB) or None
    if device.type == "cpu":
        return asked
    free = int(comfy.model_management.get_free_memory(device) * (1 - UNUSABLE_SHARE)) - LIBRARY_BYTES
    return free if asked is None else min(asked, free)


def _largest(items: Sequence) -> TrainItem:
    """An item of the largest latents, with the longest caption of those that were looked at."""
    most = max(torch.Size(item.shape).numel() for item in items)
    same = [item for item in items if torch.Size(item.shape).numel() == most][:LOOKED_AT]
    item = max(same, key=lambda item: _condition_size(item.condition))
    return _resized(item, tuple(item.shape))


def _condition_size(condition) -> int:
    arguments = getattr(condition, "arguments", {})
    return sum(value.cond.numel() for value in arguments.values() if torch.is_tensor(value.cond))


def _resized(item, shape: tuple[int, ...]) -> TrainItem:
    """The same captions beside latents of this shape, which have no numbers."""
    with torch.inference_mode(False):
        latents = torch.empty(shape, device="meta")
    return TrainItem(
        content_hash=item.content_hash, latents=latents, condition=item.condition, group=item.group, prior_condition=item.prior_condition,
        prior_group=item.prior_group,
    )


def _scaled(item: TrainItem, share: float) -> TrainItem:
    *rest, height, width = item.shape
    even = lambda size: max(2, int(size * share) // 2 * 2)
    return _resized(item, (*rest, even(height), even(width)))


def _nested(blocks: list[torch.nn.Module]) -> bool:
    """Blocks inside blocks would be counted twice."""
    inside = {id(module) for block in blocks for module in block.modules() if module is not block}
    return any(id(block) in inside for block in blocks)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


