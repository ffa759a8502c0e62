"""Which block is copied into which slot, and when.

Block i has slot i modulo their number. Whoever needs a block says so (`use`); what comes after it is known from the last
time, so the next blocks are on their way meanwhile. A pass forward ends with the last blocks in the slots, which is where its
backward begins: neither that one's recompute nor its gradients ask for a second copy. There is no copy back.

Knows blocks as images and the device as a `StreamDevice`; knows no model.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Iterator, Sequence

import torch
from torch import Tensor

from .device import Mark, StreamDevice
from .image import BlockImage


class Pass(Enum):
    TRAINING = "a forward that a backward follows"
    BACKWARD = "the backward, with what it computes again"
    MEASURING = "a forward alone"


Use = tuple[Pass, int]


@dataclass(slots=True)
class Slot:
    memory: Tensor
    block: int | None = None  # whose weights it holds, or will when `copied` is reached
    copied: Mark = None  # until somebody has waited for it


@dataclass(slots=True)
class Counts:
    copies: int = 0
    copied_bytes: int = 0
    late: int = 0  # copies that were asked for only when the block was needed: nothing could hide them


class Ring:
    """Make it outside inference mode. `blocks`: those that are streamed, in the order they run."""

    def __init__(self, blocks: Sequence[torch.nn.Module], device: StreamDevice, *, slots: int):
        self.blocks, self.device = list(blocks), device
        self.images = [BlockImage(block, pin=device.pin) for block in self.blocks]
        size_bytes = max(image.size_bytes for image in self.images)
        self.slots = [Slot(device.slot(size_bytes)) for _ in range(min(slots, len(self.blocks)))]
        for index, image in enumerate(self.images):
            image.bind(self._slot(index).memory)
        self.counts = Counts()
        self._current: Use | None = None
        self._after: dict[Use, Use] = {}  # as it went the last time
        self._is_suspended = False

    def _slot(self, index: int) -> Slot:
        return self.slots[index % len(self.slots)]

    # ---- use -------------------------------------------------------------

    def use(self, index: int) -> None:
        """The block's weights are about to be read; they stay until another block's are."""
        if self._is_suspended:
            return
        use = (_pass(), index)
        if use == self._current:
            return
        if self._current is not None:
            self._after[self._current] = use
        self._current = None  # if it's interrupted here, the block isn't there
        computed: Mark = None
        for wanted in self._wanted(use):
            slot = self._slot(wanted)
            if slot.block != wanted:
                computed = self.device.computed() if computed is None else computed
                self.counts.late += wanted == index
                self._fill(slot, wanted, computed)
            if wanted == index:
                self._show(slot, index)
        self._current = use

    def _wanted(self, use: Use) -> list[int]:
        """The block, and what comes next, as far as slots go."""
        wanted, taken = [use[1]], {use[1] % len(self.slots)}
        for _ in range(2 * len(self.slots)):  # a block comes twice where the pass turns
            use = self._after.get(use) or self._expected(use)
            if use[1] in wanted:
                continue
            if use[1] % len(self.slots) in taken:
                break
            wanted.append(use[1])
            taken.add(use[1] % len(self.slots))
        return wanted

    def _expected(self, use: Use) -> Use:
        """Of a pass that was never seen: one block after the other, and back."""
        kind, index = use
        last = len(self.blocks) - 1
        if kind is Pass.BACKWARD:
            return (kind, index - 1) if index else (Pass.TRAINING, 0)
        if index < last:
            return kind, index + 1
        return (Pass.BACKWARD, last) if kind is Pass.TRAINING else (kind, 0)

    def _fill(self, slot: Slot, index: int, computed: Mark) -> None:
        before, slot.block = slot.block, None  # if it's interrupted here, the slot holds nothing
        if before is not None and self.images[before].is_attached:
            self.images[before].detach()
        image = self.images[index]
        slot.copied = self.device.copy(slot.memory, image.host, after=computed)
        slot.block = index
        self.counts.copies += 1
        self.counts.copied_bytes += image.size_bytes

    def _show(self, slot: Slot, index: int) -> None:
        if slot.copied is not None:
            self.device.wait(slot.copied)
            slot.copied = None
        if not self.images[index].is_attached:
            self.images[index].attach()

    # ---- the caller's model ----------------------------------------------

    def _let_go(self) -> None:
        for slot in self.slots:
            if slot.copied is not None:
                self.device.wait(slot.copied)
            slot.block = slot.copied = None
        for image in self.images:
            if image.is_attached:
                image.detach()
        self._current = None

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Between two steps: the modules hold their own tensors again, and the host may move them."""
        self._let_go()
        self._is_suspended = True
        try:
            yield
        finally:
            for index, (image, block) in enumerate(zip(self.images, self.blocks)):
                image.read_again(block, self._slot(index).memory)
            self._is_suspended = False

    def close(self) -> None:
        self._is_suspended = True  # a hook that outlives this does nothing
        for image in self.images:
            if image.is_attached:
                image.detach()

    @property
    def words(self) -> str:
        """For the report."""
        counts, simulated = self.counts, " on a simulated device" if self.device.is_simulated else ""
        return (
            f"{len(self.blocks)} blocks were streamed through {len(self.slots)} slots{simulated}: {counts.copies} copies, {counts.copied_bytes / 1e9:.3g} GB, "
            f"{counts.late} of them asked for only when needed. Computing waited {self.stall_seconds:.2f} s for them in all."
        )

    @property
    def stall_seconds(self) -> float:
        return self.device.stall_seconds()


def _pass() -> Pass:
    if torch._C._current_graph_task_id() != -1:
        return Pass.BACKWARD
    return Pass.TRAINING if torch.is_grad_enabled() else Pass.MEASURING
