"""The arms of the whole-step comparison and of the ablation: ours under one setting each, the built-in trainer, and peers.

An arm is made from a Workload and has `run(steps, clock)`; what it tells of itself is in `notes`. Knows no clock and no result.
"""

from __future__ import annotations

import gc
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Callable

import torch

from bench_arms import LEARNING_RATE, BuiltIn, Floor, Planned, StepClock, Workload, _OnHostModel

AS_LOADED = "as-loaded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How ours runs a step; each field as in Memory Settings or Optimizer Settings, but for `directions`."""

    format: str = AS_LOADED
    keep: str = "everything"
    keep_in_ram: bool = False
    streamed_share: float = 0.0  # of the blocks
    kernels: str = "auto"
    attention: str = "auto"
    compile: str = "off"
    cuda_graph: str = "off"
    optimizer: str = "adamw"
    optimizer_place: str = "device"
    directions: str = "both"  # "forward": the backward's products are read back to 16 bits


class Own(_OnHostModel):
    """Ours, put together in the order of a run: streaming, attention's race, the kernels' door, trainer, runtime."""

    def __init__(self, workload: Workload, setup: Setup):
        if setup.format != AS_LOADED:
            from pistachio.bridge.quantize import quantize_base

            model, _ = quantize_base(workload.model, setup.format)
            workload = replace(workload, model=model)
        super().__init__(workload)
        self.setup, self.notes, self.told = setup, [], {}

    def config(self, *, targets: str = "all-linear"):
        from pistachio.training.config import OptimizerConfig
        from pistachio.training.config import replace as replaced

        config = super().config(targets=targets)
        return replaced(config, optimizer=OptimizerConfig(name=self.setup.optimizer, learning_rate=LEARNING_RATE))

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        clock = clock or StepClock()
        with self.trainer_ready() as trainer:
            for _ in range(steps):
                trainer.advance()
                clock.mark()
        return clock

    @contextmanager
    def trainer_ready(self):
        from pistachio.training.compiled import CompiledBlocks
        from pistachio.training.graphs import SimulatedGraphs
        from pistachio.training.kernels import open_door
        from pistachio.training.runtime import choose_runtime
        from pistachio.training.streaming.context import streamed
        from pistachio.training.trainer import Trainer

        setup, on_card = self.setup, self.model.device.type == "cuda"
        count = round(setup.streamed_share * len(self.model.blocks()))
        with self.model.training(), streamed(self.model, count) as ring, _directions(setup.directions):
            self._settle_attention()
            door = open_door(setup.kernels, self.model.device, said=self.notes.append)
            trainer = Trainer(
                self.model, self.items, self.config(), keep=setup.keep, keep_in_ram=setup.keep_in_ram, optimizer_place=setup.optimizer_place,
                average_place=setup.optimizer_place,
            )
            trainer.tell = self.notes.append
            choose_runtime(
                trainer, cuda_graph=setup.cuda_graph, compile=setup.compile, is_streaming=ring is not None, tell=self.notes.append,
                device=None if on_card else SimulatedGraphs(),
            )
            if trainer.network.compiled and not on_card:  # a rehearsal traces; it waits for no compiler
                trainer.network.compiled = CompiledBlocks(self.model, backend="eager", tell=self.notes.append)
            with trainer.network:
                yield trainer
            if ring is not None and on_card:
                self.notes.extend(ring.device.notes)
        self.told = {"kernels": door.line, "keep": trainer.network.keep}

    def _settle_attention(self) -> None:
        """As a run does it: the shapes of one forward, raced for, or the one that is named."""
        from pistachio.bridge.attention import attention_by, observed
        from pistachio.training.attention import Dispatcher, choose

        device, item = self.model.device, self.items[0]
        with observed(self.model) as shapes, torch.no_grad():
            self.model.predict(item.latents.to(device), self.model.sigma_at(torch.tensor([0.5])), [item.condition])
        if device.type != "cuda":
            assert shapes
            return
        table = choose(
            [replace(shape, batch=self.workload.batch * shape.batch) for shape in shapes], device, device_name=torch.cuda.get_device_name(device),
            capability=torch.cuda.get_device_capability(device), wanted=self.setup.attention,
        )
        self.model.attention = attention_by(Dispatcher(table))
        self.notes.append(table.note)


@contextmanager
def _directions(which: str):
    """"forward": gradients go through the weight as 16-bit numbers, whatever the forward does."""
    from pistachio.training import frozen

    kept = frozen.eight_bit_gradient
    if which == "forward":
        frozen.eight_bit_gradient = lambda *arguments: None
    try:
        yield
    finally:
        frozen.eight_bit_gradient = kept


class PlannedOwn(Planned):
    """Ours under the plan for a limit; the allocator is held to it on a card."""

    notes: tuple = ()

    @property
    def told(self) -> dict:
        from pistachio.training.memory.plan import words_of

        return {"plan": words_of(self.plan)}


class Peft(_OnHostModel):
    """PEFT's LoRA injected into the same layers, with the same batches, clipping and AdamW; PyTorch's attention, cuDNN's first.

    `compiles`: each block through torch.compile, as regional compilation does. `codes`: the blocks' linear layers in 8 bits both
    ways (gpu_w8a8.py)."""

    def __init__(self, workload: Workload, *, keep: str, compiles: bool = False, codes: torch.dtype | None = None):
        super().__init__(workload)
        self.keep, self.compiles, self.notes, self.told = keep, compiles, [], {}
        if codes is not None:
            from gpu_w8a8 import replace_linears

            self.told["linears_in_8_bits"] = replace_linears(self.model.network, self.model.blocks(), codes)
            assert self.told["linears_in_8_bits"]

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        from peft import LoraConfig, inject_adapter_in_model
        from pistachio.training.batches import BatchPlan, micro_batches
        from pistachio.training.compiled import CompiledBlocks
        from pistachio.training.objective import prediction_error
        from pistachio.training.patching import replaced_forward
        from pistachio.training.saving import saved_blocks
        from pistachio.training.timesteps import resolve

        clock = clock or StepClock()
        model, network, batch, device = self.model, self.model.network, self.workload.batch, self.model.device
        plan = BatchPlan(self.items, batch=batch, seed=1, prior_fraction=0.0, distribution=resolve("auto", is_flow=model.is_flow))
        with model.training(), _cudnn_first(device), ExitStack() as stack:
            network.requires_grad_(False)
            if type(network).__name__ == "Flux":  # it adds in place to what its norms have saved
                for module in network.modules():
                    if isinstance(module, torch.nn.LayerNorm):
                        stack.enter_context(replaced_forward(module, lambda x, base=module.forward: base(x.clone())))
            names = [path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
            config = LoraConfig(r=self.workload.rank, lora_alpha=self.workload.rank, target_modules=names)
            inject_adapter_in_model(config, network)
            parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
            for parameter in parameters:  # in the base's type, as PEFT makes them beside a base of numbers
                parameter.data = parameter.data.to(model.compute_dtype)
            optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)
            if self.compiles:
                stack.enter_context(CompiledBlocks(model, backend="inductor" if device.type == "cuda" else "eager").placed())
            if self.keep != "everything":
                stack.enter_context(saved_blocks(model, self.keep))
            for step in range(1, steps + 1):
                samples = plan.samples(step)
                for group in micro_batches(samples, batch):
                    place = lambda tensors: torch.cat(tensors).to(device)
                    sigma = model.sigma_at(torch.stack([sample.t for sample in group]))
                    errors = prediction_error(
                        model, place([s.item.latents for s in group]), place([s.noise for s in group]), sigma, [s.condition for s in group],
                    )
                    (errors.sum() / len(samples)).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                clock.mark()
        return clock


def _cudnn_first(device: torch.device):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type != "cuda":
        return nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


# ---- the arms ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    make: Callable[[Workload], object]
    ours: bool = False
    setup: Setup | None = None
    bits: int = 16  # of the products
    needs: tuple[str, ...] = field(default=())  # inputs of the built-in node, or packages
    compiles: bool = False


def own(bits: int = 16, **values) -> Arm:
    setup = Setup(**values)
    return Arm(make=lambda workload: Own(workload, setup), ours=True, setup=setup, bits=bits, needs=("bitsandbytes",) if setup.format == "nf4" else (), compiles=setup.compile != "off")


def planned(limit_gb: float) -> Arm:
    return Arm(make=lambda workload: PlannedOwn(workload, limit_gb=limit_gb), ours=True)


def built_in(*needs: str, **modes) -> Arm:
    return Arm(make=lambda workload: BuiltIn(workload, **modes), needs=needs)


def peft(bits: int = 16, **values) -> Arm:
    return Arm(make=lambda workload: Peft(workload, **values), needs=("peft",), bits=bits, compiles=values.get("compiles", False))


INT8, E4M3 = torch.int8, torch.float8_e4m3fn
# In the order in which they are worth their time: what the targets speak of first.
ARMS: dict[str, Arm] = {
    "built-in, default": built_in(),
    "PEFT eager": peft(keep="everything"),
    "PEFT, compiled blocks": peft(keep="everything", compiles=True),
    "W8A8 fp8, compiled blocks": peft(8, keep="everything", compiles=True, codes=E4M3),
    "W8A8 int8, compiled blocks": peft(8, keep="everything", compiles=True, codes=INT8),
    "ours, bf16": own(),
    "ours, fp8-row, own kernels": own(8, format="fp8-row", kernels="cuda"),
    "ours, int8-convrot, own kernels": own(8, format="int8-convrot", kernels="cuda"),
    "ours, fp8-row, library": own(8, format="fp8-row", kernels="library"),
    "ours, int8-convrot, library": own(8, format="int8-convrot", kernels="library"),
    "ours, bf16, own kernels": own(kernels="cuda"),
    "ours, bf16, compiled blocks": own(compile="blocks"),
    "ours, fp8-row, compiled blocks": own(8, format="fp8-row", kernels="library", compile="blocks"),
    "ours, int8-convrot, compiled blocks": own(8, format="int8-convrot", kernels="library", compile="blocks"),
    "ours, bf16, CUDA graphs": own(cuda_graph="on"),
    "ours, bf16, own kernels, CUDA graphs": own(kernels="cuda", cuda_graph="on"),
    "ours, int8-convrot, own kernels, CUDA graphs": own(8, format="int8-convrot", kernels="cuda", cuda_graph="on"),
    "ours, bf16, products kept": own(keep="products"),
    "ours, bf16, attention kept": own(keep="attention"),
    "ours, bf16, blocks checkpointed": own(keep="blocks"),
    "ours, fp8-row, blocks checkpointed": own(8, format="fp8-row", kernels="cuda", keep="blocks"),
    "ours, planned for 16 GB": planned(16.0),
    "ours, planned for 12 GB": planned(12.0),
    "ours, nf4": own(format="nf4"),
    "ours, nf4, blocks checkpointed": own(format="nf4", keep="blocks"),
    "ours, bf16, kept in RAM": own(keep="blocks", keep_in_ram=True),
    "ours, bf16, one block in two streamed": own(keep="blocks", streamed_share=0.5),
    "built-in, bypass": built_in("bypass_mode", bypass_mode=True),
    "built-in, bypass, depth 2": built_in("bypass_mode", "checkpoint_depth", bypass_mode=True, checkpoint_depth=2),
    "built-in, no checkpointing": built_in("gradient_checkpointing", gradient_checkpointing=False),
    "PEFT eager, blocks checkpointed": peft(keep="blocks"),
    "PEFT, compiled blocks, checkpointed": peft(keep="blocks", compiles=True),
    "W8A8 fp8, compiled blocks, checkpointed": peft(8, keep="blocks", compiles=True, codes=E4M3),
    "W8A8 int8, compiled blocks, checkpointed": peft(8, keep="blocks", compiles=True, codes=INT8),
}


# ---- the ablation --------------------------------------------------------

BASE = dict(format="int8-convrot", kernels="cuda")


def levers() -> dict[str, Arm]:
    """One thing at a time beside BASE: each kernel back to torch, then each other choice that a run has."""
    from pistachio.training.kernels.door import parse_setting
    from pistachio.training.kernels.table import OPERATIONS

    wanted = {name: next(kind for kind in ("cuda", "library", "torch") if kind in OPERATIONS[name].implementations) for name in parse_setting("cuda")}

    def without(operation: str) -> str:
        return ",".join(f"{name}={'torch' if name == operation else kind}" for name, kind in wanted.items())

    found = {"as it is": own(8, **BASE)}
    found |= {f"{name} in torch": own(8, **(BASE | {"kernels": without(name)})) for name, kind in wanted.items() if kind == "cuda"}
    found |= {
        "8 bits in the forward alone": own(8, **BASE, directions="forward"), "library products": own(8, **(BASE | {"kernels": "library"})),
        "weights in 16 bits": own(kernels="cuda"), "codes read back to 16 bits": own(format="int8-convrot"),
        "fp8-row": own(8, format="fp8-row", kernels="cuda"),
        **{f"keeps {keep}": own(8, **BASE, keep=keep) for keep in ("products", "attention", "blocks")},
        "keeps in RAM": own(8, **BASE, keep_in_ram=True),
        **{f"attention {name}": own(8, **BASE, attention=name) for name in ("cudnn", "flash", "efficient")},
        "compiled blocks": own(8, **BASE, compile="blocks"), "CUDA graphs": own(8, **BASE, cuda_graph="on"),
        "AdamW 8-bit with Kahan": own(8, **BASE, optimizer="adamw-8bit-kahan"), "optimiser in RAM": own(8, **BASE, optimizer_place="cpu"),
        "no adapters": Arm(make=_floor),
    }
    return found


def _floor(workload: Workload) -> Floor:
    return Floor(workload)


def why_unavailable(arm: Arm) -> str | None:
    """Why this host or environment has no such arm."""
    import comfy_extras.nodes_train as nodes_train

    for needed in arm.needs:
        if needed in ("peft", "bitsandbytes"):
            try:
                __import__(needed)
            except (ImportError, OSError) as error:
                return f"{needed} can't be loaded ({error})"
        elif needed not in {entry.id for entry in nodes_train.TrainLoraNode.define_schema().inputs}:
            return f"this ComfyUI's Train LoRA has no {needed}"
    return None


def forget_compiled() -> None:
    """Between two arms: compiled code, what it holds, and the doors."""
    import torch._dynamo
    from pistachio.training.kernels import shut_doors

    torch._dynamo.reset()
    shut_doors()
    gc.collect()
