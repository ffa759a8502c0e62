"""Where on the noise scale training looks.

t is in (0, 1]: 1 is pure noise. A distribution is its inverse CDF, so that training draws it at random u and
evaluation at stratified u. `TrainableModel.sigma_at` maps t to sigma with the model's own shift; a shift that is
given takes that one's place by bending t beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import torch
from torch import Tensor

from .config import ObjectiveConfig
from .errors import PistachioError
from .model import TrainableModel
from .seeds import generator

# u = 0 or 1 would be an infinite logit; 1e-5 keeps t within what float32 can tell from 0 and 1.
EDGE = 1e-5
# Flux's dynamic shift: log shift is linear in the tokens, 0.5 at 256 (a picture of 256 pixels) and 1.15 at 4096 (1024 pixels).
BASE_TOKENS, BASE_LOG_SHIFT = 256, 0.5
MAX_TOKENS, MAX_LOG_SHIFT = 4096, 1.15
BISECTIONS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """A setting, resolved for one model."""

    name: str = "uniform"
    mean: float = 0.0
    width: float = 1.0
    mode_scale: float = 0.0
    model_shift: float = 1.0  # what `sigma_at` applies; 1 for models without one
    shift: float | None = None  # None is the model's, NaN by resolution
    patch: int = 2  # latent pixels on a side of a token
    low: float = 0.0  # range of the noise level
    high: float = 1.0

    def shift_for(self, shape: Sequence[int]) -> float:
        """The shift in force for latents of this shape."""
        if self.shift is None:
            return self.model_shift
        return shift_by_resolution(shape, self.patch) if math.isnan(self.shift) else self.shift

    def sample(self, u: Tensor, shape: Sequence[int] = ()) -> Tensor:
        """t for u in [0, 1]."""
        shift = self.shift_for(shape)
        if (self.low, self.high) != (0.0, 1.0):
            # Cut, not squeezed: inside the range the distribution keeps its shape.
            first, last = (self._share_below(unshifted(level, shift)) for level in (self.low, self.high))
            u = first + (last - first) * u
        t = INVERSE_CDF[self.name](u.clamp(EDGE, 1 - EDGE), self)
        relative = shift / self.model_shift
        return t if relative == 1 else shifted(t, relative)

    def _share_below(self, t: float) -> float:
        """The CDF, by bisection of its inverse: every distribution has one this way."""
        if t <= 0 or t >= 1:
            return min(max(t, 0.0), 1.0)
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            value = float(INVERSE_CDF[self.name](torch.tensor(middle, dtype=torch.float64), self))
            low, high = (middle, high) if value < t else (low, middle)
        return (low + high) / 2


def _uniform(u: Tensor, of: Distribution) -> Tensor:
    return u


def _logit_normal(u: Tensor, of: Distribution) -> Tensor:
    """sigmoid(N(mean, width)), Esser et al. 2024 (arXiv 2403.03206), section 3.1."""
    return (torch.special.ndtri(u.double()) * of.width + of.mean).sigmoid().to(u.dtype)


def _mode(u: Tensor, of: Distribution) -> Tensor:
    """Esser et al. 2024, equation 20, read from the noisy end so that it rises."""
    v = 1 - u.double()
    return (1 - v - of.mode_scale * (torch.cos(math.pi / 2 * v).square() - 1 + v)).to(u.dtype)


INVERSE_CDF: dict[str, Callable[[Tensor, Distribution], Tensor]] = {"uniform": _uniform, "logit-normal": _logit_normal, "mode": _mode}


def shifted(t, shift: float):
    """SD3's time shift (Esser et al. 2024, equation 23)."""
    return shift * t / (1 + (shift - 1) * t)


def unshifted(level: float, shift: float) -> float:
    return level / (shift - (shift - 1) * level)


def shift_by_resolution(shape: Sequence[int], patch: int = 2) -> float:
    """Flux's; of a video, one frame's tokens count."""
    tokens = (shape[-2] // patch) * (shape[-1] // patch)
    slope = (MAX_LOG_SHIFT - BASE_LOG_SHIFT) / (MAX_TOKENS - BASE_TOKENS)
    return math.exp(BASE_LOG_SHIFT + slope * (tokens - BASE_TOKENS))


def sample(distribution: Distribution | str, u: Tensor | float, shape: Sequence[int] = ()) -> Tensor:
    """t for u in [0, 1], any shape of u; `shape` is the latents'. A name stands for the plain distribution."""
    if isinstance(distribution, str):
        distribution = Distribution(name=distribution)
    return distribution.sample(torch.as_tensor(u, dtype=torch.float32), shape)


def resolve(name: str, *, is_flow: bool) -> str:
    """`auto` follows what each family was trained with: logit-normal for flow models, uniform for eps and v."""
    if name != "auto":
        return name
    return "logit-normal" if is_flow else "uniform"


def distribution_for(config: ObjectiveConfig, model: TrainableModel) -> Distribution:
    """The setting for this model; PistachioError where the model has no shift to exchange."""
    if config.shift != "model" and not model.is_flow:
        raise PistachioError(
            f"Shift '{config.shift}' is for flow models, and {model.family} has no shift. Choose shift 'model' in Objective Settings."
        )
    name = resolve(config.timestep_distribution, is_flow=model.is_flow)
    # A model's shift s takes t = 1/2 to s / (1 + s).
    middle, quarter = model.sigma_at(torch.tensor([0.5, 0.25], dtype=torch.float64)).tolist() if model.is_flow else (0.5, 0.25)
    if abs(shifted(0.25, middle / (1 - middle)) - quarter) > 1e-3:
        if config.shift != "model" or (config.min_timestep, config.max_timestep) != (0.0, 1.0):
            raise PistachioError(
                f"The noise levels of {model.family} follow no shift that could be exchanged. Choose shift 'model' and the range 0 to 1 in "
                "Objective Settings."
            )
    return Distribution(
        name="logit-normal" if name == "sigmoid" else name,
        mean=config.logit_mean if name == "logit-normal" else 0.0,
        width=config.sigmoid_scale if name == "sigmoid" else config.logit_std,
        mode_scale=config.mode_scale,
        model_shift=middle / (1 - middle),
        shift={"model": None, "given": config.shift_value, "resolution": math.nan}[config.shift],
        patch=model.patch_size if config.shift == "resolution" else 2,
        low=config.min_timestep, high=config.max_timestep,
    )


def stratified(u: Tensor, k: int, batch: int, *key: object) -> Tensor:
    """u of sample k, moved into its own equal part of [0, 1]; which part is drawn anew for every `key` (the step)."""
    place = torch.randperm(batch, generator=generator("strata", *key))[k]
    return (place + u) / batch
