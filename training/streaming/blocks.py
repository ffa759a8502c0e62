"""Which blocks are streamed, and how many bytes that leaves on the device. Pure functions of sizes, for whoever plans memory."""

from __future__ import annotations

from typing import Sequence

from ..errors import PistachioError
from ..model import TrainableModel
from .image import size_of

DEFAULT_SLOTS = 2


def streamed_indices(num_blocks: int, count: int) -> tuple[int, ...]:
    """Spread evenly: a block that stays gives the next copy time to arrive."""
    if not 0 <= count <= num_blocks:
        raise PistachioError(f"{count} blocks can't be streamed: the model has {num_blocks}. Set blocks_streamed between 0 and that in Memory Settings.")
    return tuple((index * num_blocks + num_blocks // 2) // count for index in range(count))


def block_bytes(model: TrainableModel) -> tuple[int, ...]:
    """What each block takes in a slot, in the order of `model.blocks()`."""
    return tuple(size_of(block) for _, block in model.blocks())


def resident_bytes(block_bytes: Sequence[int], streamed: int, slots: int = DEFAULT_SLOTS) -> int:
    """Bytes of the blocks' weights on the device: those that stay, and the slots. All else of the network stays too, beside this."""
    indices = set(streamed_indices(len(block_bytes), streamed))
    staying = sum(size for index, size in enumerate(block_bytes) if index not in indices)
    return staying + min(slots, streamed) * max((block_bytes[index] for index in indices), default=0)


def host_bytes(block_bytes: Sequence[int], streamed: int) -> int:
    """Bytes of pinned host memory that hold the streamed blocks, beside what the host itself keeps of them."""
    return sum(block_bytes[index] for index in streamed_indices(len(block_bytes), streamed))


def copied_bytes(block_bytes: Sequence[int], streamed: int, slots: int = DEFAULT_SLOTS) -> int:
    """Bytes that go to the device for one forward and its backward: the last blocks of each are still there for the next."""
    sizes = [block_bytes[index] for index in streamed_indices(len(block_bytes), streamed)]
    kept = min(slots, streamed)
    return sum(sizes[kept:]) + sum(sizes[: len(sizes) - kept])
