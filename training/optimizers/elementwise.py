"""Optimisers that treat each weight alone: Lion, Prodigy, schedule-free AdamW.

They see one long vector (or a few), so a step is a handful of kernels; none waits for the GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lion(Optimizer):
    """Chen et al. 2023 (arXiv 2302.06675), algorithm 2: the sign of an interpolated momentum; decoupled weight decay."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((momentum * beta1).add_(p.grad, alpha=1 - beta1).sign_(), alpha=-group["lr"])
                momentum.lerp_(p.grad, 1 - beta2)


class Prodigy(Optimizer):
    """Mishchenko & Defazio 2023 (arXiv 2306.06101), algorithm 4 (Adam): finds the step size d; `lr` multiplies it.

    d and its running sums stay on the device, and are one for all groups; a group of another rate (a text encoder's) only
    takes its updates at that. Defaults and options are those of the authors' prodigyopt; their decay
    is decoupled, as here.
    """

    def __init__(
        self, params, lr: float = 1.0, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        beta3: float | None = None, use_bias_correction: bool = False, safeguard_warmup: bool = False, d0: float = 1e-6,
        d_coef: float = 1.0, growth_rate: float = math.inf,
    ):
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "beta3": betas[1] ** 0.5 if beta3 is None else beta3,
            "use_bias_correction": use_bias_correction, "safeguard_warmup": safeguard_warmup, "d0": d0, "d_coef": d_coef,
            "growth_rate": growth_rate, "step": 0,
        })

    @property
    def scale(self) -> Tensor | None:
        """d, by which the learning rate is multiplied; none before the first step."""
        return self.state[self.param_groups[0]["params"][0]].get("d")

    @torch.no_grad()
    def step(self, closure=None) -> None:
        first = self.param_groups[0]
        shared = self.state[first["params"][0]]
        if not shared:
            d0 = first["params"][0].new_tensor(first["d0"])
            shared.update(d=d0, d_max=d0.clone(), numerator=torch.zeros_like(d0))
        d = shared["d"]
        (beta1, beta2), beta3, d0 = first["betas"], first["beta3"], first["d0"]
        steps = first["step"] + 1
        correction = math.sqrt(1 - beta2**steps) / (1 - beta1**steps) if first["use_bias_correction"] else 1.0
        lr = max(group["lr"] for group in self.param_groups)
        rate = d * (lr * correction)
        numerator, denominator = shared["numerator"] * beta3, torch.zeros_like(d)
        for group in self.param_groups:
            for p in group["params"]:
                state = self._moments(p)
                grad = p.grad
                numerator += (d / d0) * rate * torch.dot(grad.flatten(), (state["start"] - p).flatten())
                state["exp_avg"].mul_(beta1).add_(grad * (d * (1 - beta1)))
                state["exp_avg_sq"].mul_(beta2).add_(grad.square().mul_(d.square() * (1 - beta2)))
                growth = (d / d0) * (d if group["safeguard_warmup"] else rate)
                state["s"].mul_(beta3).add_(grad * growth)
                denominator += state["s"].abs().sum()
        estimate = first["d_coef"] * numerator / denominator
        is_first = d == d0
        risen = torch.where(is_first, torch.maximum(d, estimate), d)
        d_max = torch.maximum(shared["d_max"], estimate)
        found = torch.minimum(d_max, risen * first["growth_rate"])
        # No gradient at all yet (or a rate of zero): nothing is known about d.
        known = (denominator > 0) & (lr > 0)
        shared["d"] = torch.where(known, found, d)
        shared["d_max"] = torch.where(known, d_max, shared["d_max"])
        shared["numerator"] = torch.where(known, numerator, shared["numerator"])
        for group in self.param_groups:
            group["step"] = steps
            own = d * (group["lr"] * correction)
            for p in group["params"]:
                state = self.state[p]
                denom = state["exp_avg_sq"].sqrt().add_(shared["d"] * group["eps"])
                p.mul_(1 - own * group["weight_decay"])
                p.sub_(state["exp_avg"] / denom * own)

    def _moments(self, p: Tensor) -> dict:
        state = self.state[p]
        if "start" not in state:
            state.update(start=p.clone(), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), s=torch.zeros_like(p))
        return state


class ScheduleFreeAdamW(Optimizer):
    """Defazio et al. 2024 (arXiv 2405.15682), algorithm 1, in the authors' memory-saving form.

    The parameters are y, where gradients are taken; z is the state; x, the average that is to be used, is
    recovered from both by `averaged`. The learning rate is constant after its warm-up.
    """

    def __init__(
        self, params, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        r: float = 0.0, weight_lr_power: float = 2.0,
    ):
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "r": r, "weight_lr_power": weight_lr_power,
            "step": 0, "lr_max": 0.0, "weight_sum": 0.0,
        })

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            lr, steps = group["lr"], group["step"] + 1
            group["step"], group["lr_max"] = steps, max(lr, group["lr_max"])
            weight = steps ** group["r"] * group["lr_max"] ** group["weight_lr_power"]
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if group["weight_sum"] else 0.0
            for y in group["params"]:
                state = self.state[y]
                if not state:
                    state.update(z=y.clone(), exp_avg_sq=torch.zeros_like(y))
                z, exp_avg_sq = state["z"], state["exp_avg_sq"]
                exp_avg_sq.mul_(beta2).addcmul_(y.grad, y.grad, value=1 - beta2)
                update = y.grad / exp_avg_sq.div(1 - beta2**steps).sqrt_().add_(group["eps"])
                if group["weight_decay"]:
                    update.add_(y, alpha=group["weight_decay"])
                y.lerp_(z, share)
                y.add_(update, alpha=lr * (beta1 * (1 - share) - 1))
                z.sub_(update, alpha=lr)

    @torch.no_grad()
    def averaged(self, y: Tensor, group: dict) -> Tensor:
        """x of one of the group's parameters."""
        state = self.state[y]
        return torch.lerp(y, state["z"], 1 - 1 / group["betas"][0]) if state else y
