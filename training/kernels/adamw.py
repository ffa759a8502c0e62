"""AdamW over one flat float32 buffer: a launch a step, with float32 moments or with 8-bit moments and Kahan compensation.

`knobs` [7] and `clip` (one factor, or None) are tensors on the weights' device, so that a captured graph follows the
schedule. The 8-bit form keeps what training/optimizers/eight_bit.py keeps; its roundings are drawn from a hash of the place
and of `keys` [2], the same on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .glue import WIDTH, Unfit, ceil_div, is_aligned, long
from .programs import program

THREADS = 256
BLOCK = 256  # weights that share a scale, as in training/optimizers/eight_bit.py
MASK = 0xFFFFFFFF
ALMOST_ONE = 1 - 2**-24  # the largest float32 below


def knobs(device: torch.device, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, step: int) -> Tensor:
    beta1, beta2 = betas
    values = [lr, beta1, beta2, eps, weight_decay, 1 - beta1**step, 1 - beta2**step]
    return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)


def keys(device: torch.device, seed: int) -> Tensor:
    """Two 32-bit keys, one a moment, as int32 of the same bits."""
    mixed = [(seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03) >> 16 & MASK for index in range(2)]
    return torch.tensor([key - (1 << 32) if key >> 31 else key for key in mixed], dtype=torch.int32).to(device, non_blocking=True)


def clip_factor(gradient: Tensor, max_norm: float) -> tuple[Tensor, Tensor]:
    """(norm, factor), both on the device: the gradient itself isn't written."""
    norm = torch.linalg.vector_norm(gradient)
    return norm, (max_norm / (norm + 1e-6)).clamp(max=1.0)


# ---- float32 moments -----------------------------------------------------


def step_torch(p, g, m, v, knobs, clip):
    lr, beta1, beta2, eps, decay, correct1, correct2 = knobs.unbind()
    d = g if clip is None else g * clip
    m.lerp_(d, 1 - beta1)
    v.mul_(beta2).add_(d * d * (1 - beta2))
    p.mul_(1 - lr * decay).sub_(lr / correct1 * m / (v.sqrt() / correct2.sqrt() + eps))


def step_meta(p, g, m, v, knobs, clip):
    return None


def step_library(p, g, m, v, knobs, clip):
    """torch's fused AdamW: it reads its rate from the host, so it can't be given one of the device's where a graph is captured."""
    lr, beta1, beta2, eps, decay, correct1, correct2 = knobs.tolist()
    # By the slower moment: the other's correction is 1 in float32 after some hundred steps.
    beta, correct = max((beta1, correct1), (beta2, correct2))
    step = torch.tensor(float(round(math.log1p(-min(correct, ALMOST_ONE)) / math.log(beta))), device=p.device)
    d = g if clip is None else g * clip
    torch._fused_adamw_([p], [d], [m], [v], [], [step], lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay, eps=eps, amsgrad=False, maximize=False)


def step_cuda(launcher, p, g, m, v, knobs, clip):
    _check_flat(p, g, m, v)
    if p.numel():
        wanted = program("adamw", VECTOR=is_aligned(p, g, m, v), THREADS=THREADS, CODES=0)
        launcher.launch(wanted, "adamw", (ceil_div(p.numel(), THREADS * WIDTH), 1), THREADS, (p, g, m, v, knobs, clip, long(p.numel())), p.device)


# ---- 8-bit moments and compensation --------------------------------------


def chance(count: int, key: Tensor) -> Tensor:
    """`count` numbers in [0, 1), of 24 bits each: the kernel's hash, in int64."""
    h = torch.arange(count, device=key.device) ^ (key.long() & MASK)
    h = (h ^ h >> 16) * 0x7FEB352D & MASK
    h = (h ^ h >> 15) * 0x846CA68B & MASK
    h = h ^ h >> 16
    return (h >> 8).float() * 2.0**-24


def step8_torch(p, g, m, m_scale, v, v_scale, compensation, m_grid, v_grid, knobs, clip, keys):
    from ..optimizers.eight_bit import EightBit  # which stands above the layers that stand above this

    lr, beta1, beta2, eps, decay, correct1, correct2 = knobs.unbind()
    means, squares = EightBit(m_grid), EightBit(v_grid)
    count = p.numel()
    d = torch.nn.functional.pad(g if clip is None else g * clip, (0, m.numel() - count))
    mean, square = means.decode(m, m_scale), squares.decode(v, v_scale)
    mean.lerp_(d, 1 - beta1)
    square.mul_(beta2).add_(d * d * (1 - beta2))
    update = mean / correct1 / ((square / correct2).sqrt() + eps)
    before = p.clone()
    delta = compensation.float() - before * lr * decay - lr * update[:count]
    p.add_(delta)
    compensation.copy_(delta - (p - before))
    for codes, scales, values, form, key in ((m, m_scale, mean, means, keys[0]), (v, v_scale, square, squares, keys[1])):
        new_codes, new_scales = form.encode(values, chance(values.numel(), key))
        codes.copy_(new_codes)
        scales.copy_(new_scales)


def step8_meta(p, g, m, m_scale, v, v_scale, compensation, m_grid, v_grid, knobs, clip, keys):
    return None


def step8_cuda(launcher, p, g, m, m_scale, v, v_scale, compensation, m_grid, v_grid, knobs, clip, keys):
    _check_flat(p, g, m, v, compensation)
    assert m.numel() == v.numel() == ceil_div(p.numel(), BLOCK) * BLOCK
    if m.data_ptr() % 8 or v.data_ptr() % 8:
        raise Unfit("codes that begin between two words")
    if p.numel():
        vector = p.numel() % WIDTH == 0 and all(t.data_ptr() % 16 == 0 for t in (p, g, compensation))
        wanted = program("adamw", VECTOR=vector, THREADS=THREADS, CODES=1)
        launcher.launch(wanted, "adamw8", (ceil_div(p.numel(), THREADS * WIDTH), 1), THREADS, (
            p, g, m, m_scale, v, v_scale, compensation, m_grid, v_grid, knobs, clip, keys, long(p.numel()),
        ), p.device)


def _check_flat(p: Tensor, g: Tensor, *others: Tensor) -> None:
    if p.dtype != torch.float32 or g.dtype != torch.float32:
        raise Unfit(f"{p.dtype} weights with {g.dtype} gradients")
    if p.numel() >= 1 << 32:
        raise Unfit(f"{p.numel()} weights in one buffer")
    if not all(tensor.is_contiguous() for tensor in (p, g, *others)):
        raise Unfit("a buffer with gaps")
