"""Which pictures, timesteps and noises make up each optimiser step.

A step is a function of (seed, step) alone, so resuming needs no data position. An
effective batch holds one latent shape; a bucket's turn comes in proportion to its size, and
within a bucket every picture is seen once before any is seen again.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from . import timesteps
from .model import Condition
from .seeds import generator


@dataclass(frozen=True, kw_only=True)
class TrainItem:
    """One picture, ready for the network."""

    content_hash: str
    latents: Tensor  # [1, C, (T,) h, w] in the network's latent space, CPU
    condition: Condition
    group: str  # conditions of one group share a forward pass
    prior_condition: Condition  # the caption without the trigger
    prior_group: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    item: TrainItem
    t: Tensor  # [] in (0, 1)
    noise: Tensor  # [1, C, (T,) h, w] float32, CPU
    is_prior: bool

    @property
    def condition(self) -> Condition:
        return self.item.prior_condition if self.is_prior else self.item.condition

    @property
    def group(self) -> str:
        return self.item.prior_group if self.is_prior else self.item.group


class BatchPlan:
    def __init__(self, items: Sequence[TrainItem], *, batch: int, seed: int, prior_fraction: float, distribution: str):
        self.items = list(items)
        self.batch = batch
        self.seed = seed
        self.prior_fraction = prior_fraction
        self.distribution = distribution
        buckets: dict[tuple, list[int]] = defaultdict(list)
        for index, item in enumerate(self.items):
            buckets[tuple(item.latents.shape)].append(index)
        self.buckets = [buckets[shape] for shape in sorted(buckets)]
        self._turns: list[tuple[int, int]] = []  # per step: (bucket, how many turns it had before)
        self._taken = [0] * len(self.buckets)

    def samples(self, step: int) -> list[Sample]:
        """The effective batch of optimiser step `step` (1-based)."""
        bucket, turn = self._turn(step - 1)
        priors = self._prior_slots(step)
        return [
            self._sample(self._picture(bucket, turn * self.batch + k), step, k, k in priors) for k in range(self.batch)
        ]

    def _turn(self, index: int) -> tuple[int, int]:
        """Smooth weighted round robin: the bucket that is furthest behind its share goes next."""
        taken = self._taken
        while len(self._turns) <= index:
            n = len(self._turns) + 1
            behind = [n * len(b) / len(self.items) - taken[i] for i, b in enumerate(self.buckets)]
            bucket = max(range(len(behind)), key=behind.__getitem__)
            self._turns.append((bucket, taken[bucket]))
            taken[bucket] += 1
        return self._turns[index]

    def _picture(self, bucket: int, position: int) -> TrainItem:
        members = self.buckets[bucket]
        epoch, place = divmod(position, len(members))
        order = torch.randperm(len(members), generator=generator("order", self.seed, bucket, epoch))
        return self.items[members[int(order[place])]]

    def _prior_slots(self, step: int) -> range:
        """The last slots of the batch; over the steps their share is the asked fraction, also at batch 1."""
        before = int((step - 1) * self.batch * self.prior_fraction)
        now = int(step * self.batch * self.prior_fraction)
        return range(self.batch - (now - before), self.batch)

    def _sample(self, item: TrainItem, step: int, k: int, is_prior: bool) -> Sample:
        source = generator("sample", self.seed, step, k)
        u = torch.rand((), generator=source)
        noise = torch.randn(item.latents.shape, generator=source)
        return Sample(item=item, t=timesteps.sample(self.distribution, u), noise=noise, is_prior=is_prior)


def micro_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Split an effective batch into forward passes of at most `size` samples whose conditions concatenate."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
