"""A micro-batch's forward and backward as one recorded graph a bucket, for models that wait for launches more than they compute.

The first micro-batch of a kind runs as it is; at the second its graph is recorded; the third is played and also computed as it
is, and the two are compared. What can't be recorded, or doesn't agree, runs as it is from then on, and that is told.
Knows the step as a function of `StepInputs`; `GraphDevice` records it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .adapted import AdaptedNetwork
from .model import TrainableModel
from .step import StepInputs
from .streaming.tensors import leaves, replaced

log = logging.getLogger("pistachio")

# Played and computed gradients differ by the order of sums alone. What a graph must not miss (another caption, another
# noise) changes them by their own size.
LARGEST_DIFFERENCE = 0.02
WARM_UPS = 2
MAX_GRAPHS = 32  # each costs some memory; places of prior samples in a batch make kinds of their own

Step = Callable[[StepInputs, int], Tensor]  # (inputs, samples of the whole step): forward and backward; the losses [B], without a graph


class GraphDevice(Protocol):
    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """What runs `function` again, on the memory that it read and wrote. RuntimeError when it can't be recorded."""


class CudaGraphs:
    """Graphs of one device share their memory: one plays at a time, and what it leaves is read before the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pool: Any = None

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        computing, aside = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        aside.wait_stream(computing)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):  # libraries choose their kernels and workspaces
                function()
        computing.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The server's other threads may go on with their own work.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses_B = function()
        self._pool = graph.pool()

        def play() -> Tensor:
            graph.replay()
            return losses_B

        return play


class SimulatedGraphs:
    """For machines without a card: plays by running the function again, over the recorded memory alone."""

    def __init__(self) -> None:
        self.recorded = 0

    def record(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.recorded += 1
        losses_B = function()

        def play() -> Tensor:
            losses_B.copy_(function())
            return losses_B

        return play


@dataclass(slots=True)
class _Graph:
    inputs: StepInputs  # the memory it reads
    play: Callable[[], Tensor]
    is_checked: bool = False


@dataclass(slots=True)
class StepGraphs:
    """`tell` is given each sentence for the run's report."""

    step: Step
    network: AdaptedNetwork
    device: GraphDevice
    tell: Callable[[str], None] = field(default=log.warning)
    _seen: set = field(default_factory=set)
    _graphs: dict[tuple, _Graph] = field(default_factory=dict)
    _refused: set = field(default_factory=set)

    def run(self, inputs: StepInputs, num_samples: int) -> Tensor:
        """Adds the micro-batch's gradients to the network's; its losses are good until the next call."""
        key = (*inputs.key, num_samples)
        if key in self._refused:
            return self.step(inputs, num_samples)
        graph = self._graphs.get(key)
        if graph is None:
            if key not in self._seen:
                self._seen.add(key)
                return self.step(inputs, num_samples)
            self._record(key, inputs, num_samples)
            return self.step(inputs, num_samples)
        for static, given in zip(leaves(graph.inputs), leaves(inputs), strict=True):
            static.copy_(given, non_blocking=True)
        return graph.play() if graph.is_checked else self._checked(key, graph, inputs, num_samples)

    def _record(self, key: tuple, inputs: StepInputs, num_samples: int) -> None:
        if len(self._graphs) == MAX_GRAPHS:
            self._refuse(key, f"{MAX_GRAPHS} other kinds of micro-batches have one already")
            return
        static = replaced(inputs, lambda leaf: leaf.detach().clone(), {})
        gradients = self.network.gradients
        before = gradients.clone()
        try:
            play = self.device.record(lambda: self.step(static, num_samples))
        except torch.OutOfMemoryError:
            self._refuse(key, "there is no memory for its graph")
        except RuntimeError as error:
            self._refuse(key, f"its step can't be recorded ({str(error).splitlines()[0]})")
        else:
            self._graphs[key] = _Graph(static, play)
        finally:
            gradients.copy_(before)  # warming up has added to them

    def _checked(self, key: tuple, graph: _Graph, inputs: StepInputs, num_samples: int) -> Tensor:
        gradients = self.network.gradients
        before = gradients.clone()
        computed_B = self.step(inputs, num_samples).clone()
        computed = gradients.clone()
        gradients.copy_(before)
        played_B = graph.play()
        difference = (gradients - computed).norm() / (computed - before).norm().clamp_min(torch.finfo(computed.dtype).tiny)
        if difference.item() <= LARGEST_DIFFERENCE and torch.allclose(played_B, computed_B, rtol=LARGEST_DIFFERENCE):
            graph.is_checked = True
            return played_B
        del self._graphs[key]
        self._refuse(key, f"its played gradients differ from the computed ones by {100 * difference.item():.1f} %")
        gradients.copy_(computed)
        return computed_B

    def _refuse(self, key: tuple, reason: str) -> None:
        self._refused.add(key)
        shape = "x".join(map(str, key[0][0][0]))
        self.tell(f"No CUDA graph for latents of {shape}: {reason}. These micro-batches run kernel by kernel, which is slower and equally right.")


def why_no_graphs(model: TrainableModel, network: AdaptedNetwork, *, is_streaming: bool) -> str | None:
    """A sentence's end for settings that a graph can't honour, or None."""
    if is_streaming:
        return "blocks are streamed, whose copies a graph can't follow"
    if network.config.dropout:
        return "the adapter's dropout draws new numbers in each pass"
    if network.keep_in_ram:
        return "what blocks keep goes to the computer's memory"
    if not model.has_fixed_conditions:
        return "the text encoder is trained too, and reads other words in each pass"
    away = next((path for path, tensor in model.network.named_parameters() if tensor.device.type != model.device.type), None)
    if away is not None:
        return f"the host keeps weights off the device ('{away}')"
    return None
