"""AdamW with 8-bit states and Kahan compensation, in plain torch on any device.

Four bytes a weight instead of AdamW's eight: one code each for the two moments, and a bfloat16 that carries what
rounding takes from the weight. Codes are of Dettmers et al. 2021 (arXiv 2110.02861): blocks of 256 with a scale
each, and a grid that is finer near zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..kernels import adamw
from ..kernels.door import chosen
from ..seeds import seed_from

BLOCK = 256
PATTERN_SHIFT = 17  # leaves sign, exponent and six bits of a float32
CHUNK = BLOCK << 14  # weights whose random numbers are drawn at once: bounds the memory of a step, and fixes its numbers
CACHED = BLOCK << 10  # weights handled at once on a CPU: what a step makes of them stays in its cache


def dynamic_codes(signed: bool) -> Tensor:
    """256 ascending values in [-1, 1] or [0, 1]: decades down to 1e-7, each split evenly, with zero and one."""
    values = [0.0, 1.0]
    decades = 7
    for decade in range(decades):
        # Of the bits that don't name the decade; an unsigned code has one more.
        count = 2 ** (decade + (0 if signed else 1))
        edges = torch.linspace(0.1, 1.0, count + 1, dtype=torch.float64)
        values += ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - decades + 1)).tolist()
    if signed:
        values += [-v for v in values if v not in (0.0, 1.0)]
    return torch.tensor(sorted(values + [0.0] * (256 - len(values))), dtype=torch.float32)


class EightBit:
    """Codes, a scale for each block, and the grid: a vector of floats in a little more than a byte each.

    Made for the signed grid and for the squares of the other: neighbours must lie 1 / 64 of an octave apart, or more.
    """

    def __init__(self, grid: Tensor):
        self.grid = grid
        self.is_positive = bool(grid[0] == 0)
        self.gaps = grid.diff().clamp(min=torch.finfo(torch.float32).tiny)
        # A float's sign, exponent and first six bits -> the code below the least float that begins so. The grid is nowhere
        # finer than that, so at most one more code lies between: a look-up and a comparison instead of a search.
        patterns = torch.arange(1 << 15, dtype=torch.int64, device=grid.device)
        least = torch.where(patterns < 1 << 14, patterns << PATTERN_SHIFT, (patterns << PATTERN_SHIFT) + (1 << PATTERN_SHIFT) - 1 - (1 << 32))
        values = least.int().view(torch.float32).nan_to_num(0.0)
        self.start = (torch.bucketize(values, grid, right=True) - 1).clamp_(0, len(grid) - 2).int()

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        blocks = self.grid.index_select(0, codes.int()).view(-1, BLOCK) * scales.unsqueeze(1)
        return blocks.flatten()

    def below(self, unit: Tensor) -> Tensor:
        """The last code whose value is not above; of the last two values the first."""
        pattern = (unit.view(torch.int32) >> PATTERN_SHIFT) & ((1 << 15) - 1)
        start = self.start.index_select(0, pattern)
        return (start + (unit >= self.grid.index_select(0, start + 1)).int()).clamp_(max=len(self.grid) - 2)

    def encode(self, values: Tensor, random: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded up or down at random, in proportion: a change smaller than the grid's spacing still counts on average.

        Rounding to the nearest would hold a slow average (0.1 % a step) where it is for ever. On a grid without negative
        values, what is above zero stays there: a second moment of zero would make a step of any size.
        """
        blocks = values.view(-1, BLOCK)
        scales = blocks.abs().amax(1)
        unit = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).flatten()
        below = self.below(unit)
        up = (unit - self.grid.index_select(0, below)) / self.gaps.index_select(0, below) > random
        codes = below + up
        if self.is_positive:
            codes = torch.where(unit > 0, codes.clamp(min=1), codes)
        return codes.to(torch.uint8), scales


class AdamW8bitKahan(Optimizer):
    """Weight decay acts on the weights; the compensation only carries what the addition lost."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "step": 0})
        device = self.param_groups[0]["params"][0].device
        self.signed = EightBit(dynamic_codes(True).to(device))
        # The squares of the grid: its seven decades become fourteen, so that the second moment of a small gradient
        # beside a large one is not lost, and the rounding is without bias in the moment itself.
        self.squares = EightBit(dynamic_codes(False).square().to(device))
        self.source = torch.Generator(device)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group_index, group in enumerate(self.param_groups):
            group["step"] += 1
            for index, p in enumerate(group["params"]):
                state = self.state[p]
                if not state:
                    self._start(p, state)
                # A function of the place and the step, so a resumed run draws the same.
                seed = seed_from("adamw-8bit-kahan", group["step"], group_index, index)
                if chosen(p.device, "adamw8_") == "cuda":
                    self._step_at_once(p, state, group, seed)
                    continue
                self.source.manual_seed(seed)
                weights, gradient, compensation = p.view(-1), p.grad.reshape(-1), state["compensation"]
                for start in range(0, p.numel(), CHUNK):
                    part = slice(start, min(start + CHUNK, p.numel()))
                    self._step_part(weights[part], gradient[part].float(), compensation[part], state, start, group)

    def _start(self, p: Tensor, state: dict) -> None:
        blocks = math.ceil(p.numel() / BLOCK)
        codes = torch.zeros(blocks * BLOCK, dtype=torch.uint8, device=p.device)
        scales = torch.zeros(blocks, device=p.device)
        state.update(
            mean=codes, mean_scale=scales, square=codes.clone(), square_scale=scales.clone(),
            compensation=torch.zeros(p.numel(), dtype=torch.bfloat16, device=p.device),
        )

    def _step_at_once(self, p: Tensor, state: dict, group: dict, seed: int) -> None:
        """The same step in one launch, with draws of its own: a place's chance is a hash, not a generator's next number."""
        knobs = adamw.knobs(p.device, **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "step")})
        torch.ops.pistachio.adamw8_(
            p.view(-1), p.grad.reshape(-1).float(), state["mean"], state["mean_scale"], state["square"], state["square_scale"],
            state["compensation"], self.signed.grid, self.squares.grid, knobs, None, adamw.keys(p.device, seed),
        )

    def _step_part(self, weights: Tensor, gradient: Tensor, compensation: Tensor, state: dict, start: int, group: dict) -> None:
        padded = math.ceil(gradient.numel() / BLOCK) * BLOCK
        randoms = {name: torch.rand(padded, generator=self.source, device=gradient.device) for name in ("mean", "square")}
        length = CACHED if gradient.device.type == "cpu" else CHUNK
        for first in range(0, gradient.numel(), length):
            part = slice(first, min(first + length, gradient.numel()))
            drawn = {name: random[first : first + length] for name, random in randoms.items()}
            self._step_values(weights[part], gradient[part], compensation[part], state, start + first, group, drawn)

    def _step_values(
        self, weights: Tensor, gradient: Tensor, compensation: Tensor, state: dict, start: int, group: dict, randoms: dict[str, Tensor]
    ) -> None:
        count = gradient.numel()
        padded = math.ceil(count / BLOCK) * BLOCK
        codes, scales = slice(start, start + padded), slice(start // BLOCK, (start + padded) // BLOCK)
        beta1, beta2 = group["betas"]
        mean = self.signed.decode(state["mean"][codes], state["mean_scale"][scales])
        square = self.squares.decode(state["square"][codes], state["square_scale"][scales])
        gradient = torch.nn.functional.pad(gradient, (0, padded - count))
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** group["step"], 1 - beta2 ** group["step"]
        update = (mean / correction1) / (square / correction2).sqrt_().add_(group["eps"])
        for name, values, form in (("mean", mean, self.signed), ("square", square, self.squares)):
            state[name][codes], state[f"{name}_scale"][scales] = form.encode(values, randoms[name])
        before = weights.float().clone()
        delta = before.mul(-group["lr"] * group["weight_decay"]).sub_(update[:count], alpha=group["lr"]).add_(compensation.float())
        weights.add_(delta)
        compensation.copy_(delta - (weights.float() - before))
