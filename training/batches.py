"""Which pictures, timesteps and noises make up each optimiser step.

A step is a function of (seed, step) alone, so resuming needs no data position. An
effective batch holds one latent shape; a bucket's turn comes in proportion to its size, and
within a bucket every picture is seen once before any is seen again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import timesteps
from .config import ObjectiveConfig
from .model import Condition
from .seeds import generator


@dataclass(frozen=True, kw_only=True)
class TrainItem:
    """One picture at one size, ready for the network. Anything with these attributes will do: the host's reads them from disk."""

    content_hash: str
    latents: Tensor  # [1, C, (T,) h, w] in the network's latent space, CPU
    condition: Condition
    group: str  # conditions of one group share a forward pass
    prior_condition: Condition  # the caption without the trigger
    prior_group: str
    empty_condition: Condition = None  # the empty caption; needed where captions are dropped
    empty_group: str = ""
    mask: Tensor | None = None  # [1, 1, (1,) h, w]: weight of each place in the loss
    loss_weight: float = 1.0
    repeats: int = 1  # turns in each round
    others: tuple["TrainItem", ...] = ()  # the same picture and shape, cropped, flipped or captioned otherwise

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape)

    @property
    def num_versions(self) -> int:
        return 1 + len(self.others)

    def version(self, index: int) -> "TrainItem":
        """0 is the picture as it is."""
        return self.others[index - 1] if index else self


@dataclass(frozen=True, kw_only=True)
class TrainSet(Sequence):
    """All that a run trains on. As a sequence it is the pictures: one item each, at its first size."""

    items: tuple[TrainItem, ...]  # several of one picture where it is trained at several sizes
    regularization: tuple[TrainItem, ...] = ()  # ordinary pictures of the class, without the trigger
    regularization_share: float = 0.0  # of the steps
    caption_dropout: float = 0.0  # share of the samples, prior ones aside, that get the empty caption

    @property
    def pictures(self) -> list[TrainItem]:
        first: dict[str, TrainItem] = {}
        for item in self.items:
            first.setdefault(item.content_hash, item)
        return list(first.values())

    def __len__(self) -> int:
        return len({item.content_hash for item in self.items})

    def __getitem__(self, index):
        return self.pictures[index]

    def __iter__(self):
        return iter(self.pictures)


@dataclass(frozen=True, kw_only=True)
class Sample:
    item: TrainItem
    t: Tensor  # [] in (0, 1)
    noise: Tensor  # [1, C, (T,) h, w] float32, CPU
    is_prior: bool
    is_uncaptioned: bool = False
    perturbation: Tensor | None = None  # like noise; what the network sees and the target does not

    @property
    def condition(self) -> Condition:
        if self.is_uncaptioned:
            return self.item.empty_condition
        return self.item.prior_condition if self.is_prior else self.item.condition

    @property
    def group(self) -> str:
        if self.is_uncaptioned:
            return self.item.empty_group
        return self.item.prior_group if self.is_prior else self.item.group


class _Rotation:
    """Whose turn it is: after as many turns as there are entries, each picture had exactly its repeats times the batch."""

    def __init__(self, items: Sequence[TrainItem], *, batch: int, seed: int, label: tuple[str, ...] = ()):
        self.items = items
        self.batch = batch
        self.seed = seed
        self.label = label  # keeps two rotations of one run apart
        buckets: dict[tuple, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            buckets[item.shape].extend([index] * item.repeats)
        self.buckets = [buckets[shape] for shape in sorted(buckets)]
        self.num_entries = sum(map(len, self.buckets))
        self._turns: list[tuple[int, int]] = []  # per turn: (bucket, how many turns it had before)
        self._taken = [0] * len(self.buckets)
        self._orders: dict[int, tuple[int, list[int]]] = {}  # bucket -> (epoch, its order)

    def pictures(self, turn: int) -> list[TrainItem]:
        """The batch of turn `turn` (0-based); all of one shape."""
        bucket, before = self._turn(turn)
        return [self._picture(bucket, before * self.batch + k) for k in range(self.batch)]

    def _turn(self, index: int) -> tuple[int, int]:
        """Smooth weighted round robin: the bucket that is furthest behind its share goes next."""
        taken = self._taken
        while len(self._turns) <= index:
            n = len(self._turns) + 1
            behind = [n * len(b) / self.num_entries - taken[i] for i, b in enumerate(self.buckets)]
            bucket = max(range(len(behind)), key=behind.__getitem__)
            self._turns.append((bucket, taken[bucket]))
            taken[bucket] += 1
        return self._turns[index]

    def _picture(self, bucket: int, position: int) -> TrainItem:
        members = self.buckets[bucket]
        epoch, place = divmod(position, len(members))
        if self._orders.get(bucket, (None,))[0] != epoch:
            source = generator("order", self.seed, *self.label, bucket, epoch)
            self._orders[bucket] = epoch, torch.randperm(len(members), generator=source).tolist()
        return self.items[members[self._orders[bucket][1][place]]]


class BatchPlan:
    def __init__(self, items: Sequence[TrainItem], *, batch: int, seed: int, prior_fraction: float, distribution, objective: ObjectiveConfig = ObjectiveConfig()):
        """`distribution`: a `timesteps.Distribution` or the name of a plain one. Of `objective` the noise's settings count here."""
        data = items if isinstance(items, TrainSet) else TrainSet(items=tuple(items))
        self.batch = batch
        self.seed = seed
        self.prior_fraction = prior_fraction
        self.distribution = distribution
        self.objective = objective
        self.caption_dropout = data.caption_dropout
        self.regularization_share = data.regularization_share if data.regularization else 0.0
        self._own = _Rotation(data.items, batch=batch, seed=seed)
        self._regular = _Rotation(data.regularization, batch=batch, seed=seed, label=("regularization",))

    def samples(self, step: int) -> list[Sample]:
        """The effective batch of optimiser step `step` (1-based)."""
        regular = int(step * self.regularization_share)  # such steps so far
        if regular > int((step - 1) * self.regularization_share):
            pictures, priors = self._regular.pictures(regular - 1), range(0)
        else:
            own = step - regular
            pictures, priors = self._own.pictures(own - 1), self._prior_slots(own)
        return [self._sample(item, step, k, k in priors) for k, item in enumerate(pictures)]

    def _prior_slots(self, step: int) -> range:
        """The last slots of the batch; over the steps their share is the asked fraction, also at batch 1."""
        before = int((step - 1) * self.batch * self.prior_fraction)
        now = int(step * self.batch * self.prior_fraction)
        return range(self.batch - (now - before), self.batch)

    def _sample(self, item: TrainItem, step: int, k: int, is_prior: bool) -> Sample:
        # Each choice has a generator of its own: switching one on leaves the other draws as they were.
        if item.num_versions > 1:
            choice = torch.randint(item.num_versions, (), generator=generator("version", self.seed, step, k))
            item = item.version(int(choice))
        is_uncaptioned = False
        if self.caption_dropout and not is_prior:
            is_uncaptioned = torch.rand((), generator=generator("caption dropout", self.seed, step, k)).item() < self.caption_dropout
        source = generator("sample", self.seed, step, k)
        u = torch.rand((), generator=source)
        noise = torch.randn(item.shape, generator=source)
        perturbation = None
        if self.objective.stratified:
            u = timesteps.stratified(u, k, self.batch, self.seed, step)
        if self.objective.noise_offset:
            means = torch.randn(*item.shape[:2], *[1] * (len(item.shape) - 2), generator=generator("noise offset", self.seed, step, k))
            noise = noise + self.objective.noise_offset * means
        if self.objective.input_perturbation:
            perturbation = torch.randn(item.shape, generator=generator("input perturbation", self.seed, step, k))
        return Sample(
            item=item, t=timesteps.sample(self.distribution, u, item.shape), noise=noise, is_prior=is_prior, is_uncaptioned=is_uncaptioned,
            perturbation=perturbation,
        )


def micro_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Split an effective batch into forward passes of at most `size` samples whose conditions concatenate."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
