"""What an optimiser keeps, counted: a few of the run's own adapters are stepped once on the CPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import torch

from ..adapted import AdaptedNetwork
from ..config import OptimizerConfig
from ..optimizers import BY_MATRIX, RunOptimizer
from ..optimizers.eight_bit import CHUNK
from .counting import LiveStorage
from .estimate import OptimizerSize

SAMPLE_WEIGHTS = 1 << 18
COMPENSATION_BYTES = 2  # of a weight, which bitsandbytes' 8-bit AdamW lacks beside ours


def optimizer_size(network: AdaptedNetwork, config: OptimizerConfig) -> OptimizerSize:
    """For the whole network. It may be on `meta`: shapes alone are asked for."""
    sample = _sample(network)
    share = network.parameters.numel() / sample.parameters.numel()
    is_8bit = config.name.startswith("adamw-8bit")
    # bitsandbytes' own runs on a card alone; ours keeps the same codes.
    counted = replace(config, name="adamw-8bit-kahan") if is_8bit else config
    with torch.inference_mode(False), torch.enable_grad(), LiveStorage(torch.device("cpu")) as count:
        optimizer = RunOptimizer(sample, counted)
        tables = count.live_bytes if is_8bit else 0  # of one size, however many weights there are
        optimizer.step(config.learning_rate)
        state, work = count.live_bytes - tables, count.peak_bytes - count.live_bytes
        del optimizer
    state = round(state * share)
    if config.name == "adamw-8bit":
        state -= COMPENSATION_BYTES * network.parameters.numel()
    if is_8bit:  # done in parts of a fixed size
        work = round(work * min(share, CHUNK / sample.parameters.numel()))
    elif config.name in BY_MATRIX:  # one matrix after the other
        work = round(work * _largest(network) / _largest(sample))
    else:
        work = round(work * share)
    return OptimizerSize(state_bytes=state + tables, work_bytes=work)


def _largest(network) -> int:
    return max(tensor.numel() for adapter in network.adapters.values() for tensor in adapter.tensors.values())


def _sample(network: AdaptedNetwork) -> SimpleNamespace:
    """The first adapters, at least one, as ordinary zeros that have gradients."""
    chosen, count = {}, 0
    for path, adapter in network.adapters.items():
        chosen[path] = adapter
        count += sum(torch.Size(shape).numel() for shape in adapter.shapes.values())
        if count >= SAMPLE_WEIGHTS:
            break
    with torch.inference_mode(False):
        parameters = torch.zeros(count)
        gradients = torch.full_like(parameters, 1e-3)
        parameters.grad = gradients
        adapters, offset = {}, 0
        for path, adapter in chosen.items():
            tensors = {}
            for name, shape in adapter.shapes.items():
                end = offset + torch.Size(shape).numel()
                tensors[name] = adapter.view(name, parameters[offset:end]).requires_grad_(True)
                tensors[name].grad = adapter.view(name, gradients[offset:end])
                offset = end
            adapters[path] = SimpleNamespace(tensors=tensors)
    return SimpleNamespace(parameters=parameters, gradients=gradients, adapters=adapters)
