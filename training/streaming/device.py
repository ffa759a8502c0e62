"""What streaming asks of a device, and CUDA's answer: a stream for copies, events between it and the stream that computes.

Nothing here waits for the device but `close`.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import PistachioError
from .simulated import SimulatedDevice

log = logging.getLogger("pistachio")

# A point in the device's work: what was asked of it before has been done.
Mark = Any


class StreamDevice(Protocol):
    is_simulated: bool
    notes: list[str]  # sentences for the run's report

    def slot(self, size_bytes: int) -> Tensor:
        """Bytes on the device."""

    def pin(self, size_bytes: int) -> Tensor:
        """Bytes of host memory that the device reads by itself."""

    def resident(self, tensor: Tensor) -> Tensor:
        """The same values on the device, for as long as streaming lasts."""

    def computed(self) -> Mark:
        """All computing that was asked for so far."""

    def copy(self, slot: Tensor, source: Tensor, *, after: Mark) -> Mark:
        """Fill a slot when `after` is reached, beside the computing. The mark is reached when it is full. In the order of the calls."""

    def wait(self, copied: Mark) -> None:
        """What is computed from here on comes after the copy. The caller goes on at once."""

    def stall_seconds(self) -> float:
        """How long computing has waited for copies, as far as it is known by now."""

    def close(self) -> None:
        """When everything that was asked for is done; gives the memory back."""


def stream_device(device: torch.device) -> StreamDevice:
    if device.type == "cuda":
        return CudaDevice(device)
    if device.type == "cpu":
        return SimulatedDevice()
    raise PistachioError(f"Blocks can be streamed to a CUDA device only, not to '{device.type}'. Set blocks_streamed to 0 in Memory Settings.")


class CudaDevice:
    is_simulated = False

    def __init__(self, device: torch.device):
        self.device = device
        self.notes: list[str] = []
        self._copies = torch.cuda.Stream(device)
        self._pinned: list[Tensor] = []
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []  # computing stood still from the one to the other
        self._stalled_ms = 0.0

    def slot(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    def pin(self, size_bytes: int) -> Tensor:
        # PyTorch's own pinned allocator rounds up to a power of two: half of a large block's copy would be wasted.
        memory = torch.empty(size_bytes, dtype=torch.uint8)
        code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size_bytes, 0)) if size_bytes else 0
        if code == 0:
            self._pinned.append(memory)
            return memory
        _forget_error(self.device)
        if not self.notes:
            self.notes.append(
                f"Host memory could not be pinned (CUDA error {code}), so copies of streamed blocks hold up the computing. "
                "Close other programs, or stream fewer blocks in Memory Settings."
            )
            log.warning(self.notes[0])
        return memory

    def resident(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device)

    def computed(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def copy(self, slot: Tensor, source: Tensor, *, after: torch.cuda.Event) -> torch.cuda.Event:
        copied = torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(after)
            slot[: source.numel()].copy_(source, non_blocking=True)
            copied.record(self._copies)
        return copied

    def wait(self, copied: torch.cuda.Event) -> None:
        computing = torch.cuda.current_stream(self.device)
        asked, went_on = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        asked.record(computing)
        computing.wait_event(copied)
        went_on.record(computing)
        self._waits.append((asked, went_on))

    def stall_seconds(self) -> float:
        while self._waits and self._waits[0][1].query():
            asked, went_on = self._waits.pop(0)
            self._stalled_ms += asked.elapsed_time(went_on)
        return self._stalled_ms / 1000

    def close(self) -> None:
        torch.cuda.synchronize(self.device)
        for memory in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
        self._pinned.clear()


def _forget_error(device: torch.device) -> None:
    """A call of the runtime that failed leaves its error behind, and the next kernel's check would raise it as its own."""
    try:
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        log.debug("CUDA's last error is taken: %s", error)
