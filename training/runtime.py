"""How a trainer runs its micro-batches, as a plan says: from graphs, through the compiler, or operation by operation."""

from __future__ import annotations

from collections.abc import Callable

from .compiled import CompiledBlocks, why_not_compiled
from .graphs import CudaGraphs, GraphDevice, StepGraphs, why_no_graphs
from .trainer import Trainer

# Nobody has measured them on a card yet: until then only those who ask for graphs get them.
AUTOMATIC_GRAPHS = False


def choose_runtime(
    trainer: Trainer, *, cuda_graph: str, compile: str, is_streaming: bool, tell: Callable[[str], None], device: GraphDevice | None = None
) -> None:
    """Before the trainer's network is entered. `tell` is given a sentence for each wish that can't be met, now or in the run.

    `cuda_graph`: "on", "off" or "auto"; `compile`: "blocks" or "off"; `device`: records graphs, where that isn't CUDA.
    """
    model, network = trainer.model, trainer.network
    if compile == "blocks":
        reason = why_not_compiled(keep=network.keep, is_streaming=is_streaming)
        if reason is None and not model.blocks():
            reason = f"{model.family} has no known blocks"
        if reason is None:
            network.compiled = CompiledBlocks(model, tell=tell)
        else:
            tell(f"The blocks are not compiled: {reason}.")
    if cuda_graph == "on" or (cuda_graph == "auto" and AUTOMATIC_GRAPHS and model.device.type == "cuda"):
        reason = why_no_graphs(model, network, is_streaming=is_streaming)
        if reason is None and device is None and model.device.type != "cuda":
            reason = "there is no CUDA device"
        if reason is None:
            trainer.graphs = StepGraphs(trainer.compute, network, device or CudaGraphs(model.device), tell)
        else:
            tell(f"No CUDA graphs: {reason}.")
