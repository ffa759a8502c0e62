"""Where on the noise scale training looks.

t is in (0, 1]: 1 is pure noise. A distribution is its inverse CDF, so that training
draws it at random u and evaluation at stratified u. The model's shift is not here:
`TrainableModel.sigma_at` maps t to sigma.
"""

from __future__ import annotations

import torch
from torch import Tensor

# u = 0 or 1 would be an infinite logit; 1e-5 keeps t within what float32 can tell from 0 and 1.
EDGE = 1e-5


def _uniform(u: Tensor) -> Tensor:
    return u


def _logit_normal(u: Tensor) -> Tensor:
    """sigmoid(N(0, 1)), Esser et al. 2024 (arXiv 2403.03206), section 3.1."""
    return torch.special.ndtri(u.double()).sigmoid().to(u.dtype)


INVERSE_CDF = {"uniform": _uniform, "logit-normal": _logit_normal}


def sample(distribution: str, u: Tensor | float) -> Tensor:
    """t for u in [0, 1]; any shape."""
    u = torch.as_tensor(u, dtype=torch.float32).clamp(EDGE, 1 - EDGE)
    return INVERSE_CDF[distribution](u)


def resolve(distribution: str, *, is_flow: bool) -> str:
    """`auto` follows what each family was trained with: logit-normal for flow models, uniform for eps and v."""
    if distribution != "auto":
        return distribution
    return "logit-normal" if is_flow else "uniform"
