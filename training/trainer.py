"""The state of a run in memory, and its optimiser step.

A step is a function of the state after the step before it and of (seed, step): `batches` says what is
drawn, `adapted` holds the weights. Nothing here evaluates, writes or knows a run folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Sequence

import torch

from . import schedules, timesteps
from .adapted import AdaptedNetwork
from .adapters.start import AdapterStart
from .batches import BatchPlan, Sample, TrainItem, micro_batches
from .config import TrainConfig
from .errors import NonFiniteLossError, PistachioError
from .model import TrainableModel
from .objective import squared_error
from .optimizers import build_optimizer, clip_gradient

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
        self, model: TrainableModel, items: Sequence[TrainItem], config: TrainConfig, *, checkpointing: bool = False,
        start: AdapterStart | None = None,
    ):
        self.model = model
        self.config = config
        self.distribution = timesteps.resolve(config.objective.timestep_distribution, is_flow=model.is_flow)
        self.plan = BatchPlan(
            items, batch=config.effective_batch, seed=config.seed,
            prior_fraction=config.objective.prior_fraction, distribution=self.distribution,
        )
        self.network = AdaptedNetwork(model, config.adapter, seed=config.seed, checkpointing=checkpointing, start=start)
        self.optimizer = build_optimizer(self.network.parameters, config.optimizer)
        self.average = self.network.parameters.detach().clone()  # exponential moving average
        self.step = 0
        self.is_updating = False  # what is in memory belongs to no step
        self.loss_ema: float | None = None

    def advance(self) -> StepResult:
        """One optimiser step. Raises NonFiniteLossError before anything is changed by a bad gradient."""
        step = self.step + 1
        samples = self.plan.samples(step)
        gradients = self.network.gradients.zero_()
        sums = torch.zeros(2, device=self.model.device)
        for index, batch in enumerate(micro_batches(samples, self.config.batch_size)):
            with self.network.training_pass(step, index):
                errors_B = self._errors(batch)
                (errors_B.sum() / len(samples)).backward()
            is_prior_B = torch.tensor([sample.is_prior for sample in batch], device=errors_B.device)
            sums += torch.stack([errors_B.detach()[~is_prior_B].sum(), errors_B.detach()[is_prior_B].sum()])
        norm = clip_gradient(gradients, self.config.optimizer.clip_norm)
        own, prior, grad_norm = torch.cat([sums, norm.view(1)]).tolist()  # the step's one synchronisation
        num_priors = sum(sample.is_prior for sample in samples)
        loss = own / (len(samples) - num_priors) if num_priors < len(samples) else math.nan
        if not math.isfinite(own + prior + grad_norm):
            raise NonFiniteLossError(
                f"The loss became {own + prior} at step {step}. Lower the learning rate in Optimizer Settings, "
                "or choose precision 'fp32' on Train LoRA. The run is saved up to the step before."
            )
        learning_rate = schedules.learning_rate_at(step, num_steps=self.config.num_steps, config=self.config.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.is_updating = True
        self.optimizer.step()
        self.average.lerp_(self.network.parameters, 1 - self.config.ema_decay)
        self.step, self.is_updating = step, False
        if math.isfinite(loss):
            self.loss_ema = loss if self.loss_ema is None else LOSS_SMOOTHING * self.loss_ema + (1 - LOSS_SMOOTHING) * loss
        return StepResult(
            loss=loss, prior_loss=prior / num_priors if num_priors else None, grad_norm=grad_norm, learning_rate=learning_rate
        )

    def _errors(self, batch: list[Sample]):
        """[B] squared errors; a prior sample's target is what the base itself predicts there."""
        model = self.model
        latents = torch.cat([sample.item.latents for sample in batch]).to(model.device, torch.float32)
        noise = torch.cat([sample.noise for sample in batch]).to(model.device)
        sigma_B = model.sigma_at(torch.stack([sample.t for sample in batch]))
        x_t = model.add_noise(latents, noise, sigma_B)
        conditions = [sample.condition for sample in batch]
        priors = [i for i, sample in enumerate(batch) if sample.is_prior]
        target = latents
        if priors:
            with torch.no_grad(), self.network.disabled():
                base = model.predict(x_t[priors], sigma_B[priors], [conditions[i] for i in priors])
            target = latents.clone()
            target[priors] = base.float()
        return squared_error(model, model.predict(x_t, sigma_B, conditions), target, sigma_B)

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
