"""Which kernels one run starts: a step of a full-size network on `meta`, with every launch written down and none made.

Blocks, adapters, products in 8 bits and the optimiser's step are the run's own code; only numbers are missing. Knows sizes
and formats; knows nothing of what a kernel takes or costs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

FORMATS = ("bf16", "int8-convrot", "fp8-row")  # of a base
NETWORKS = ("wan14b", "flux", "sdxl")
META = torch.device("meta")
RANK = 32
# Arguments that leave one block of each kind: all others are like it.
SHALLOW = {
    "wan14b": dict(num_layers=1), "flux": dict(depth=1, depth_single_blocks=1),
    "sdxl": dict(transformer_depth=[0, 0, 1, 1, 1, 1], transformer_depth_output=[0, 0, 0, 1, 1, 1, 1, 1, 1], transformer_depth_middle=1),
}


class Recorder:
    """A launcher that starts nothing."""

    def __init__(self):
        self.launched: dict = {}  # program -> entries, in the order of their first use

    def launch(self, program, entry, grid, threads, arguments, device, *, shared_bytes=0) -> None:
        entries = self.launched.setdefault(program, [])
        if entry not in entries:
            entries.append(entry)


class _ThroughTheDoor(TorchDispatchMode):
    """Operators of ours as a card would run them, which `meta` tensors alone would not."""

    def __init__(self, door):
        super().__init__()
        self.door = door

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "pistachio":
            return self.door.call(function._schema.name.removeprefix("pistachio::"), *args)
        return function(*args, **(kwargs or {}))


def programs_of_run(network: str, format: str, setting: str = "cuda") -> tuple[dict, tuple[str, ...]]:
    """({program: its entries that are started}, the door's notes) of one step of `network` over a base in `format`. Needs a booted host."""
    from pistachio.bridge import row_kernels
    from pistachio.bridge.shadow import ShadowModel
    from pistachio.training.kernels import forget_inputs, open_door, shut_doors
    from pistachio.training.optimizers.eight_bit import AdamW8bitKahan

    from bench_memory import full_size

    patcher, items, config = full_size(network, **SHALLOW[network])
    config = replace(config, adapter=replace(config.adapter, rank=RANK, alpha=float(RANK)))
    model = ShadowModel(patcher, device=torch.device("cuda"), precision="bf16")
    if format != "bf16":
        _pack(model, format)
    recorder, kept = Recorder(), row_kernels.safe_weight
    door = open_door(setting, META, launcher=recorder)
    row_kernels.safe_weight = lambda weight: True  # looks at numbers
    try:
        with _ThroughTheDoor(door), model.training():
            _step(model, items[0], config)
        # Its grids are looked at, so it steps on the CPU: few weights are like many to it.
        open_door(setting, torch.device("cpu"), launcher=recorder)
        weights = torch.nn.Parameter(torch.zeros(4096))
        weights.grad = torch.zeros_like(weights)
        AdamW8bitKahan([weights], lr=1e-4).step()
    finally:
        row_kernels.safe_weight = kept
        shut_doors()
        forget_inputs()
    return recorder.launched, tuple(door.notes)


def for_card(program, target: str):
    """The same program as a card of this target gets it: there the product's blocks may have fewer rows."""
    from pistachio.training.kernels.gemm import tiles_of

    constants = dict(program.constants)
    if program.source != "gemm":
        return program
    most = tiles_of(bool(constants["FORMAT"]), int(target.removeprefix("sm_").rstrip("a")) // 10)
    return replace(program, constants=tuple(sorted((constants | {"MT": min(constants["MT"], most)}).items())))


def _step(model, item, config) -> None:
    """Forward and backward of one picture, as training/step.py has them."""
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.batches import Sample
    from pistachio.training.objective import Objective
    from pistachio.training.step import inputs_of, losses_of

    sample = Sample(item=item, t=torch.tensor(0.5), noise=torch.empty(item.shape, device=META), is_prior=False, perturbation=None)
    objective = Objective(config.objective, model)
    with AdaptedNetwork(model, config.adapter, seed=config.seed) as network, network.training_pass(1, 0):
        losses_of(model, network, objective, inputs_of(model, objective, [sample])).sum().backward()


def _pack(model, format: str) -> None:
    """The blocks' linear layers as Quantize Base stores them, but for numbers."""
    from pistachio.bridge.packed_linear import PackedLinear
    from pistachio.training.quantization.formats import PackedWeight, rotation_group, why_not

    for _, block in model.blocks():
        for path, module in list(block.named_modules()):
            if not isinstance(module, torch.nn.Linear) or why_not((module.out_features, module.in_features), format):
                continue
            codes = torch.empty(module.weight.shape, device=META, dtype=torch.float8_e4m3fn if format == "fp8-row" else torch.int8)
            packed = PackedWeight(
                format=format, codes=codes, scale=torch.empty(module.out_features, device=META), shape=tuple(codes.shape),
                group=0 if format == "fp8-row" else rotation_group(module.in_features),
            )
            parent, _, name = path.rpartition(".")
            setattr(block.get_submodule(parent) if parent else block, name, PackedLinear(packed, module.bias))
