"""Optimisers of installed packages, found by package and class name.

Each package is imported where it is asked for, so that none is needed by a run that does not use it.
"""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Callable

from torch import Tensor
from torch.optim import Optimizer

from ..config.check import meant
from ..config.optimizer import OptimizerConfig
from ..errors import PistachioError


def _torch() -> ModuleType:
    import torch.optim

    return torch.optim


def _pytorch_optimizer() -> ModuleType:
    import pytorch_optimizer

    return pytorch_optimizer


def _prodigyopt() -> ModuleType:
    import prodigyopt

    return prodigyopt


def _schedulefree() -> ModuleType:
    import schedulefree

    return schedulefree


def _bitsandbytes() -> ModuleType:
    import bitsandbytes.optim

    return bitsandbytes.optim


def _transformers() -> ModuleType:
    import transformers.optimization

    return transformers.optimization


# Name before the class -> (import, name for pip).
PACKAGES: dict[str, tuple[Callable[[], ModuleType], str]] = {
    "torch.optim": (_torch, "torch"),
    "pytorch_optimizer": (_pytorch_optimizer, "pytorch-optimizer"),
    "prodigyopt": (_prodigyopt, "prodigyopt"),
    "schedulefree": (_schedulefree, "schedulefree"),
    "bitsandbytes.optim": (_bitsandbytes, "bitsandbytes"),
    "transformers": (_transformers, "transformers"),
}


def optimizer_class(path: str) -> type[Optimizer]:
    """The class that "pytorch_optimizer.Lamb" names."""
    package, _, name = path.rpartition(".")
    if package not in PACKAGES:
        raise PistachioError(
            f"Optimiser '{path}' names no known package.{meant(package, PACKAGES)} Write one of {', '.join(PACKAGES)}, a dot and the class, "
            "in library of Optimizer Settings."
        )
    load, pip_name = PACKAGES[package]
    try:
        module = load()
    except ImportError as error:
        raise PistachioError(
            f"Optimiser '{path}' needs the package {pip_name} ({error}). Install it into ComfyUI's Python with 'pip install {pip_name}', "
            "or choose another optimiser in Optimizer Settings."
        ) from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, Optimizer)):
        names = [n for n, value in vars(module).items() if inspect.isclass(value) and issubclass(value, Optimizer)]
        by_lower = {n.lower(): n for n in names}
        hint = meant(name, by_lower)
        for lower, n in by_lower.items():
            hint = hint.replace(f"'{lower}'", f"'{n}'")
        raise PistachioError(f"Package {package} has no optimiser '{name}'.{hint} Correct library in Optimizer Settings.")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise PistachioError(f"Optimiser '{path}' measures the loss several times a step, which training here does not do. Choose another.")
    return found


def construct(found: type[Optimizer], groups: list[dict], arguments: dict, config: OptimizerConfig) -> Optimizer:
    try:
        return found(groups, **arguments)
    except (TypeError, ValueError, KeyError) as error:
        raise PistachioError(
            f"Optimiser '{config.library or config.name}' refuses its settings: {error}. Correct optimizer_args in Optimizer Settings."
        ) from error


def bitsandbytes_adamw(flat: Tensor) -> type[Optimizer]:
    if flat.device.type != "cuda":
        raise PistachioError(
            f"'adamw-8bit' needs an NVIDIA GPU, and this run is on '{flat.device.type}'. Choose 'adamw-8bit-kahan' in Optimizer Settings: "
            "it runs everywhere."
        )
    return optimizer_class("bitsandbytes.optim.AdamW8bit")
