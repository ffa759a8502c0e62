"""Are streamed blocks, graphs and compiled blocks right on the card: six steps of each against six plain ones.

What a CPU can't show is here: copies beside the computing, pinned memory, recorded graphs and the kernels of the compiler.
On the CPU the same lines run with the simulated device and simulated graphs.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from gpu_models import Network

STEPS = 6
TOLERANCE = 2e-3  # ||w - w_plain|| / ||w_plain - w_start|| after the steps; sums may run in another order
COMPILED_TOLERANCE = 2e-2
COMPILED = ("WAN21_T2V", "KOALA_700M")  # compiling takes minutes


def check_runtime(network: Network, device: torch.device) -> list:
    from gpu_correctness import Check

    start, plain, *_ = _trained(network, device)
    moved = (plain - start).norm()

    def difference(weights: torch.Tensor) -> float:
        return ((weights - plain).norm() / moved).item()

    _, weights, told, ring = _trained(network, device, streams=True)
    checks = [Check(
        name="streamed blocks", passed=difference(weights) <= TOLERANCE and not told,
        figure=f"relative difference {difference(weights):.1e}; {ring.words} {' '.join(told)}".strip(),
    )]
    _, weights, told, _ = _trained(network, device, cuda_graph="on")
    checks.append(Check(name="CUDA graphs", passed=difference(weights) <= TOLERANCE and not told, figure=f"relative difference {difference(weights):.1e} {' '.join(told)}".strip()))
    if device.type == "cuda" and network.config_class in COMPILED:
        _, weights, told, _ = _trained(network, device, compile="blocks")
        checks.append(Check(
            name="compiled blocks", passed=difference(weights) <= COMPILED_TOLERANCE and not told,
            figure=f"relative difference {difference(weights):.1e} {' '.join(told)}".strip(),
        ))
    return checks


def _trained(network: Network, device: torch.device, *, streams: bool = False, cuda_graph: str = "off", compile: str = "off"):
    """(weights before, weights after, sentences, the ring)."""
    from gpu_correctness import _arm, _with_adapter
    from pistachio.training.graphs import SimulatedGraphs
    from pistachio.training.runtime import choose_runtime
    from pistachio.training.streaming.context import streamed

    arm = _arm(network, device)
    told: list[str] = []
    num_blocks = len(arm.model.blocks())
    slots = 2 if num_blocks > 2 else 1  # else every block would have a slot of its own
    with arm.model.training(), streamed(arm.model, num_blocks, slots=slots) if streams else nullcontext() as ring:
        trainer = _with_adapter(arm)
        trainer.tell = told.append
        start = trainer.network.parameters.detach().cpu().clone()
        choose_runtime(
            trainer, cuda_graph=cuda_graph, compile=compile, is_streaming=streams, tell=told.append,
            device=None if device.type == "cuda" else SimulatedGraphs(),
        )
        with trainer.network:
            for _ in range(STEPS):
                trainer.advance()
        if ring is not None:
            told.extend(ring.device.notes)
        return start, trainer.network.parameters.detach().cpu().clone(), told, ring
