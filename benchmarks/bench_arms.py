"""The trainers that the benchmarks compare, each over a model of its own.

An arm has `run(steps)`, which trains and returns the clock that it marked after each step. Ours runs the steps that
users run, the built-in runs ComfyUI's own node, the floor trains nothing.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch

LEARNING_RATE = 1e-4
SEED = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """A model of one's own, and what it is trained on."""

    model: Any  # MODEL
    latents: list[torch.Tensor]  # [1, C, ...] each, as a VAE node gives them
    captions: list  # CONDITIONING each
    batch: int
    rank: int = 8
    precision: str = "fp32"


class StepClock:
    """Marks (wall, processor) seconds at the start and at the end of each step."""

    def __init__(self):
        self.marks = [self._now()]

    def _now(self):
        return time.perf_counter(), time.process_time()

    def mark(self) -> None:
        self.marks.append(self._now())

    def steps(self, warmup: int = 1) -> list[tuple[float, float]]:
        """Without the first ones; the very first also holds what `run` sets up."""
        marks = self.marks[warmup:]
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:])]


class BuiltIn:
    """ComfyUI's TrainLoraNode.execute. It adapts every weight, norm and bias, and has no choice of targets."""

    def __init__(self, workload: Workload, **modes):
        self.workload = workload
        with torch.inference_mode():
            self.latents = [{"samples": latent.clone()} for latent in workload.latents]
        self.modes = modes

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        import comfy.utils
        import comfy_extras.nodes_train as nodes_train

        comfy.utils.PROGRESS_BAR_ENABLED = False
        clock = clock or StepClock()
        arguments = {name: [value] for name, value in builtin_arguments(self.workload, steps, self.modes).items()}
        with torch.inference_mode(), _marked_adamw(clock):
            nodes_train.TrainLoraNode.execute(
                model=[self.workload.model], latents=self.latents, positive=self.workload.captions, **arguments
            )
        gc.collect()
        return clock


def builtin_arguments(workload: Workload, steps: int, modes: dict) -> dict:
    """The node's own defaults, whatever this host's are, but for what the comparison fixes."""
    import comfy_extras.nodes_train as nodes_train

    defaults = {
        entry.id: entry.default for entry in nodes_train.TrainLoraNode.define_schema().inputs
        if getattr(entry, "default", None) is not None
    }
    fixed = {
        "batch_size": workload.batch, "steps": steps, "rank": workload.rank, "learning_rate": LEARNING_RATE, "seed": SEED,
        "training_dtype": workload.precision, "lora_dtype": workload.precision,
    }
    return defaults | fixed | modes


class _marked_adamw:
    """torch.optim.AdamW that tells the clock when a step has ended: the node offers no other place to look."""

    def __init__(self, clock: StepClock):
        self.clock = clock

    def __enter__(self):
        clock, self.original = self.clock, torch.optim.AdamW

        class Marked(self.original):
            def zero_grad(self, *args, **kwargs):
                super().zero_grad(*args, **kwargs)
                clock.mark()

        torch.optim.AdamW = Marked

    def __exit__(self, *exc_info):
        torch.optim.AdamW = self.original


class _OnHostModel:
    """Shared by ours and the floor: the same model, noise, timesteps and captions through the bridge."""

    def __init__(self, workload: Workload):
        from pistachio.bridge.conditions import prepare
        from pistachio.bridge.model import HostModel
        from pistachio.training.batches import TrainItem

        self.workload = workload
        self.model = HostModel(workload.model, precision=workload.precision)
        self.items = []
        with self.model.training():
            for i, (latent, caption) in enumerate(zip(workload.latents, workload.captions)):
                latent = self.model.base_model.process_latent_in(latent)
                condition = prepare(self.model.base_model, caption, latent)
                self.items.append(TrainItem(
                    content_hash=f"{i:016x}", latents=latent, condition=condition, group=condition.group,
                    prior_condition=condition, prior_group=condition.group,
                ))

    def config(self, *, targets: str = "all-linear"):
        from pistachio.training.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig

        rank = self.workload.rank
        return TrainConfig(
            batch_size=self.workload.batch, seed=SEED, precision=self.workload.precision,
            adapter=AdapterConfig(rank=rank, alpha=float(rank), targets=targets),
            optimizer=OptimizerConfig(learning_rate=LEARNING_RATE),
            objective=ObjectiveConfig(prior_fraction=0.0),  # the built-in has no prior preservation
        )


class Ours(_OnHostModel):
    """`training.loop.Trainer`: batch, forward, backward, clipping, AdamW and weight average, as a run does them."""

    def __init__(self, workload: Workload, *, targets: str = "all-linear", keep: str = "everything"):
        super().__init__(workload)
        self.targets = targets
        self.keep = keep
        self.trainer = None

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        from pistachio.training.trainer import Trainer

        clock = clock or StepClock()
        with self.model.training():
            # Made here and not before, so that a peak taken around `run` holds adapters and optimiser, as the node's does.
            if self.trainer is None:
                self.trainer = Trainer(self.model, self.items, self.config(targets=self.targets), keep=self.keep)
            with self.trainer.network:
                for _ in range(steps):
                    self.trainer.advance()
                    clock.mark()
        return clock


class Planned(Ours):
    """Ours under the plan that is chosen for a limit, on a card with the allocator held to it. Its weights stay in the format they have."""

    def __init__(self, workload: Workload, *, limit_gb: float):
        from pistachio.bridge.planning import Planner
        from pistachio.training.config.memory import MemoryConfig

        super().__init__(workload)
        self.limit_bytes = round(limit_gb * 1e9)
        on_cpu = self.model.device.type == "cpu"
        # On a CPU every network fits: one block is streamed all the same, so that a rehearsal runs that path too.
        memory = MemoryConfig(limit_gb=limit_gb, base_format="as-loaded", blocks_streamed=1 if on_cpu else -1, keep="blocks" if on_cpu else "auto")
        planner = Planner(
            workload.model, self.items, self.config(targets=self.targets), memory, device=self.model.device, has_held_out=False, limit=self.limit_bytes,
        )
        self.plan = planner.choose().plan
        self.keep = self.plan.keep

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        from pistachio.training.streaming.context import streamed
        from pistachio.training.trainer import Trainer

        clock, plan = clock or StepClock(), self.plan
        with self.model.training(), streamed(self.model, plan.blocks_streamed):
            self._hold_to_limit()
            self.trainer = Trainer(
                self.model, self.items, self.config(targets=self.targets), keep=plan.keep, keep_in_ram=plan.keep_in_ram, micro_batch=plan.batch_size,
                optimizer_place=plan.optimizer_state, average_place=plan.weight_average,
            )
            with self.trainer.network:
                for _ in range(steps):
                    self.trainer.advance()
                    clock.mark()
        return clock

    def _hold_to_limit(self) -> None:
        """From here on: the network was made on the card whole, and what is streamed has left it by now."""
        device = self.model.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.limit_bytes / torch.cuda.get_device_properties(device).total_memory), device)
            torch.cuda.reset_peak_memory_stats(device)


class Floor(_OnHostModel):
    """Forward and backward of the host's own frozen layers with no adapter: what a trainer can't go below by much.

    The gradient reaches every activation behind a linear layer or a convolution, captions and timesteps included, since
    adapters there need it. `latents_only` sends it to the noised latents alone, which no adapter of those paths can do with.
    `shares_padding`: with a caption's padding computed once, as ours does it, and not as the host does.
    """

    def __init__(self, workload: Workload, *, latents_only: bool = False, shares_padding: bool = False):
        from pistachio.training.batches import BatchPlan
        from pistachio.training.timesteps import resolve

        super().__init__(workload)
        self.model.shares_padding = shares_padding
        self.plan = BatchPlan(
            self.items, batch=workload.batch, seed=SEED, prior_fraction=0.0,
            distribution=resolve("auto", is_flow=self.model.is_flow),
        )
        self.latents_only = latents_only
        self.next_step = 1

    def run(self, steps: int, clock: StepClock | None = None) -> StepClock:
        clock = clock or StepClock()
        handles = [] if self.latents_only else [
            layer.register_forward_hook(_start_gradient) for layer in self.model.network.modules()
            if self.model.is_linear(layer) or self.model.is_conv(layer)
        ]
        try:
            with self.model.training():
                self.model.network.requires_grad_(False)
                for _ in range(steps):
                    self._step()
                    clock.mark()
        finally:
            for handle in handles:
                handle.remove()
        return clock

    def _step(self) -> float:
        from pistachio.training.batches import micro_batches
        from pistachio.training.objective import squared_error

        samples = self.plan.samples(self.next_step)
        self.next_step += 1
        (group,) = micro_batches(samples, self.workload.batch)
        latents = torch.cat([sample.item.latents for sample in group]).to(self.model.device)
        noise = torch.cat([sample.noise for sample in group]).to(self.model.device)
        sigma = self.model.sigma_at(torch.stack([sample.t for sample in group]))
        x_t = self.model.add_noise(latents, noise, sigma).requires_grad_(self.latents_only)
        denoised = self.model.predict(x_t, sigma, [sample.condition for sample in group])
        loss = squared_error(self.model, denoised, latents, sigma).mean()
        loss.backward()
        return loss.item()


def _start_gradient(module, inputs, output):
    if not output.requires_grad:
        output.requires_grad_(True)
