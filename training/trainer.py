"""The state of a run in memory, and its optimiser step.

A step is a function of the state after the step before it and of (seed, step): `batches` says what is
drawn, `adapted` holds the weights. Nothing here evaluates, writes or knows a run folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor

from . import schedules, timesteps
from .adapted import AdaptedNetwork
from .adapters.start import AdapterStart
from .batches import BatchPlan, TrainItem, micro_batches
from .compiled import is_from_compiling
from .config import TrainConfig
from .errors import NonFiniteLossError, PistachioError
from .graphs import StepGraphs
from .model import TrainableModel
from .objective import Objective
from .optimizers import RunOptimizer, clip_gradient
from .step import StepInputs, inputs_of, losses_of, sum_at

LOSS_SMOOTHING = 0.98


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: float
    prior_loss: float | None
    grad_norm: float
    learning_rate: float


class Trainer:
    """The state of a run in memory; `loop.train` drives it."""

    def __init__(
        self, model: TrainableModel, items: Sequence[TrainItem], config: TrainConfig, *, keep: str = "everything", keep_in_ram: bool = False,
        start: AdapterStart | None = None, micro_batch: int = 0,
        optimizer_place: str = "device", average_place: str = "device",
    ):
        """`micro_batch`: pictures in a forward pass, where that is not the configured batch size; the step stays the same.
        `optimizer_place`, `average_place`: "device" or "cpu", where the optimiser's state and the averaged weights live."""
        self.micro_batch = micro_batch or config.batch_size
        self.model = model
        self.config = config
        self.distribution = timesteps.distribution_for(config.objective, model)
        self.plan = BatchPlan(
            items, batch=config.effective_batch, seed=config.seed,
            prior_fraction=config.objective.prior_fraction, distribution=self.distribution, objective=config.objective,
        )
        self.objective = Objective(config.objective, model)
        self.notes = self.objective.notes(config.effective_batch)
        self.tell: Callable[[str], object] = self.notes.append  # for what becomes of the runtime; the run's own notes once it has begun
        self.network = AdaptedNetwork(model, config.adapter, seed=config.seed, keep=keep, keep_in_ram=keep_in_ram, start=start)
        self.optimizer = RunOptimizer(self.network, config.optimizer, place=optimizer_place)
        self._average_on_cpu = average_place == "cpu"
        # Exponential moving average, or the optimiser's own.
        self.average = self.network.parameters.detach().to("cpu" if self._average_on_cpu else self.model.device, copy=True)
        self.graphs: StepGraphs | None = None  # put there by whoever wants micro-batches played from graphs
        self._compiled_kinds: set[tuple] = set()  # of micro-batches: compiling them has succeeded, forward and backward
        self.step = 0
        self.is_updating = False  # what is in memory belongs to no step
        self.loss_ema: float | None = None

    def advance(self) -> StepResult:
        """One optimiser step. Raises NonFiniteLossError before anything is changed by a bad gradient."""
        step = self.step + 1
        samples = self.plan.samples(step)
        gradients = self.network.gradients.zero_()
        sums = torch.zeros(2, device=self.model.device)
        for index, batch in enumerate(micro_batches(samples, self.micro_batch)):
            with self.network.training_pass(step, index):
                errors_B = self._pass(inputs_of(self.model, self.objective, batch), len(samples))
            sums += torch.stack([
                sum_at(errors_B, [index for index, sample in enumerate(batch) if sample.is_prior == is_prior]) for is_prior in (False, True)
            ])
        norm = clip_gradient(gradients, self.config.optimizer.clip_norm)
        scale = self.optimizer.scale
        own, prior, grad_norm, *scales = torch.cat([sums, norm.view(1), *([] if scale is None else [scale.view(1)])]).tolist()  # the step's one synchronisation
        num_priors = sum(sample.is_prior for sample in samples)
        loss = own / (len(samples) - num_priors) if num_priors < len(samples) else math.nan
        if not math.isfinite(own + prior + grad_norm):
            raise NonFiniteLossError(
                f"The loss became {own + prior} at step {step}. Lower the learning rate in Optimizer Settings, "
                "or choose precision 'fp32' on Train LoRA. The run is saved up to the step before."
            )
        learning_rate = schedules.learning_rate_at(step, num_steps=self.config.num_steps, config=self.config.optimizer)
        self.is_updating = True
        self.optimizer.step(learning_rate)
        if self.optimizer.averages:
            self.optimizer.copy_average(self.average)
        else:
            self.average.lerp_(self._latest_weights(), 1 - self.config.ema_decay)
        self.step, self.is_updating = step, False
        if math.isfinite(loss):
            self.loss_ema = loss if self.loss_ema is None else LOSS_SMOOTHING * self.loss_ema + (1 - LOSS_SMOOTHING) * loss
        return StepResult(
            loss=loss, prior_loss=prior / num_priors if num_priors else None, grad_norm=grad_norm,
            learning_rate=learning_rate * (scales[0] if scales else 1.0),
        )

    def _latest_weights(self) -> Tensor:
        """Where the average lives; with the optimiser there too, they are there already."""
        if not self._average_on_cpu:
            return self.network.parameters
        return self.optimizer.held.parameters if self.optimizer.held is not None else self.network.parameters.detach().cpu()

    def _pass(self, inputs: StepInputs, num_samples: int) -> Tensor:
        """The losses [B] of a micro-batch, whose gradients are added to the network's."""
        run = self.compute if self.graphs is None else self.graphs.run
        compiled = self.network.compiled
        if compiled is None or not compiled.is_on or inputs.key in self._compiled_kinds:
            return run(inputs, num_samples)
        before = self.network.gradients.clone()
        try:
            losses_B = run(inputs, num_samples)
        except Exception as error:
            if not is_from_compiling(error):
                raise
            compiled.give_up(error)
        else:
            self._compiled_kinds.add(inputs.key)
            return losses_B
        self.network.gradients.copy_(before)
        return run(inputs, num_samples)

    def compute(self, inputs: StepInputs, num_samples: int) -> Tensor:
        losses_B = losses_of(self.model, self.network, self.objective, inputs)
        (losses_B.sum() / num_samples).backward()
        return losses_B.detach()

    def state(self) -> dict:
        return {
            "step": self.step,
            "loss_ema": self.loss_ema,
            "parameters": self.network.parameters.detach().cpu(),
            "average": self.average.cpu(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict) -> None:
        if state["parameters"].shape != self.network.parameters.shape:
            raise PistachioError("The saved run has another number of adapter weights. Train under a new run name.")
        with torch.no_grad():
            self.network.parameters.copy_(state["parameters"])
        self.average.copy_(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.loss_ema = state["step"], state["loss_ema"]
