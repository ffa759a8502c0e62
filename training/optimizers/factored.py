"""Optimisers that keep a row and a column for each matrix: Adafactor and CAME.

They must see the adapters' own matrices, not the flat buffer. Matrices of one shape are stacked, so that a
step takes a few kernels a shape, however many layers there are. N matrices of a shape.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

# Weights handled at once: bounds the memory that a step needs beside the weights and gradients.
STACK_NUMEL = 1 << 24


class _Stacked(Optimizer):
    """Hands `_update` the gradients of equal matrices as [N, rows, columns], or [N, length] for vectors."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            group["step"] += 1
            lr, weight_decay = group["lr"], group["weight_decay"]
            for members in self._stacks(group["params"]):
                gradients = torch.stack([p.grad.flatten(1) if p.ndim > 2 else p.grad for p in members])
                update = self._update(gradients, self.state[members[0]], group)
                if weight_decay:
                    torch._foreach_mul_(members, 1 - lr * weight_decay)
                torch._foreach_add_(members, [u.view(p.shape) for u, p in zip(update, members)], alpha=-lr)

    def _stacks(self, params: list[Tensor]) -> list[list[Tensor]]:
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            by_shape.setdefault(tuple(p.shape), []).append(p)
        stacks = []
        for members in by_shape.values():
            size = max(1, STACK_NUMEL // members[0].numel())
            stacks += [members[i : i + size] for i in range(0, len(members), size)]
        return stacks

    def _update(self, gradients: Tensor, state: dict, group: dict) -> Tensor:
        raise NotImplementedError


def _inverse_root(row: Tensor, column: Tensor) -> Tensor:
    """1 / sqrt of the matrices that the rows' and columns' means describe."""
    return (row / row.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * column.rsqrt().unsqueeze(-2)


def _average(state: dict, name: str, value: Tensor, decay: float) -> Tensor:
    """A running average kept in `state`, from zero."""
    if name not in state:
        state[name] = torch.zeros_like(value)
    return state[name].mul_(decay).add_(value, alpha=1 - decay)


def _clipped(update: Tensor, threshold: float) -> Tensor:
    """Each matrix's root mean square, at most `threshold`."""
    rms = update.square().flatten(1).mean(1).sqrt()
    return update.div_((rms / threshold).clamp(min=1.0).view(-1, *[1] * (update.ndim - 1)))


class Adafactor(_Stacked):
    """Shazeer & Stern 2018 (arXiv 1804.04235), algorithms 4 and 5, with a learning rate from outside and decoupled decay."""

    def __init__(
        self, params, lr: float, weight_decay: float = 0.0, clip_threshold: float = 1.0, decay_rate: float = -0.8,
        eps: float = 1e-30, beta1: float | None = None,
    ):
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "clip_threshold": clip_threshold, "decay_rate": decay_rate, "eps": eps,
            "beta1": beta1, "step": 0,
        })

    def _update(self, gradients: Tensor, state: dict, group: dict) -> Tensor:
        decay = 1 - group["step"] ** group["decay_rate"]
        square = gradients.square().add_(group["eps"])
        if gradients.ndim == 3:
            row = _average(state, "row", square.mean(-1), decay)
            column = _average(state, "column", square.mean(-2), decay)
            update = _inverse_root(row, column).mul_(gradients)
        else:
            update = _average(state, "exp_avg_sq", square, decay).rsqrt().mul_(gradients)
        update = _clipped(update, group["clip_threshold"])
        return update if group["beta1"] is None else _average(state, "exp_avg", update, group["beta1"])


class Came(_Stacked):
    """Luo et al. 2023 (arXiv 2307.02047), algorithm 2: Adafactor, held back where its update departs from its own average."""

    def __init__(
        self, params, lr: float, weight_decay: float = 0.0, betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        clip_threshold: float = 1.0, eps1: float = 1e-30, eps2: float = 1e-16,
    ):
        super().__init__(params, {
            "lr": lr, "weight_decay": weight_decay, "betas": betas, "clip_threshold": clip_threshold, "eps1": eps1, "eps2": eps2, "step": 0,
        })

    def _update(self, gradients: Tensor, state: dict, group: dict) -> Tensor:
        beta1, beta2, beta3 = group["betas"]
        square = gradients.square().add_(group["eps1"])
        if gradients.ndim != 3:
            update = _average(state, "exp_avg_sq", square, beta2).rsqrt().mul_(gradients)
            return _average(state, "exp_avg", _clipped(update, group["clip_threshold"]), beta1)
        row = _average(state, "row", square.mean(-1), beta2)
        column = _average(state, "column", square.mean(-2), beta2)
        update = _clipped(_inverse_root(row, column).mul_(gradients), group["clip_threshold"])
        momentum = _average(state, "exp_avg", update, beta1)
        departure = (update - momentum).square_().add_(group["eps2"])
        row = _average(state, "departure_row", departure.mean(-1), beta3)
        column = _average(state, "departure_column", departure.mean(-2), beta3)
        return _inverse_root(row, column).mul_(momentum)
