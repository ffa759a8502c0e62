"""The optimiser of a run: built over the adapters' weights, stepped at a rate, saved and restored bit for bit.

Elementwise methods get the run's one flat buffer. Methods that look at matrices get the adapters' own tensors,
which are views of it. Which layers there are, and what the gradients mean, is not known here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..adapted import AdaptedNetwork
from ..config import OptimizerConfig
from ..config.check import check
from ..errors import PistachioError
from .arguments import constructor_arguments
from .eight_bit import AdamW8bitKahan
from .elementwise import Lion, Prodigy, ScheduleFreeAdamW
from .factored import Adafactor, Came
from .groups import matrix_groups, vector_groups
from .library import bitsandbytes_adamw, construct, optimizer_class
from .placed import PLACES, HeldOnCpu

ELEMENTWISE = {
    "adamw": torch.optim.AdamW, "adamw-8bit-kahan": AdamW8bitKahan, "lion": Lion, "prodigy": Prodigy, "schedule-free": ScheduleFreeAdamW,
}
BY_MATRIX = {"adafactor": Adafactor, "came": Came}


def build_optimizer(network: AdaptedNetwork | HeldOnCpu, config: OptimizerConfig) -> Optimizer:
    """Every group carries "lr_ratio", its share of the run's learning rate."""
    if config.name == "library":
        found, groups = optimizer_class(config.library), matrix_groups(network, config)
    elif config.name in BY_MATRIX:
        found, groups = BY_MATRIX[config.name], matrix_groups(network, config)
    else:
        found = bitsandbytes_adamw(network.parameters) if config.name == "adamw-8bit" else ELEMENTWISE[config.name]
        groups = vector_groups(network, config)
    fused = {"fused": True} if config.name == "adamw" else {}
    return construct(found, groups, constructor_arguments(found, config, **fused), config)


class RunOptimizer:
    """An optimiser over a run's adapters, and the average that it keeps of them, if it does."""

    def __init__(self, network: AdaptedNetwork, config: OptimizerConfig, *, place: str = "device"):
        """`place`: where its state lives, "device" (beside the weights) or "cpu"; it then also steps there."""
        check(place in PLACES, f"Optimiser state in '{place}' is unknown. Choose one of {', '.join(PLACES)}.")
        check(
            place == "device" or config.name != "adamw-8bit",
            "'adamw-8bit' keeps its state on the graphics card, and the memory settings ask for main memory. Choose 'adamw-8bit-kahan' in Optimizer "
            "Settings, or leave the state on the device.",
        )
        self.network = network
        self.config = config
        self.held = HeldOnCpu(network) if place == "cpu" else None
        self._stepped = self.held or network  # whose weights the optimiser changes
        self.inner = build_optimizer(self._stepped, config)
        # Both libraries of schedule-free optimisers switch between the trained and the averaged weights this way.
        self._switches = config.name == "library" and hasattr(self.inner, "train") and hasattr(self.inner, "eval")
        if self._switches:
            self._to_trained, self._to_average = self.inner.train, self.inner.eval
            self._to_trained()

    @property
    def averages(self) -> bool:
        return self._switches or isinstance(self.inner, ScheduleFreeAdamW)

    @property
    def scale(self) -> Tensor | None:
        """What a learning-rate-free method multiplies the rate by, on the device."""
        scale = self.inner.scale if isinstance(self.inner, Prodigy) else None  # none before the first step
        return None if scale is None else scale.to(self.network.parameters.device)

    @property
    def state_bytes(self) -> int:
        """Of the state that there is now, once for each storage; none before the first step."""
        storages = {}
        for values in self.inner.state.values():
            for tensor in _tensors(values):
                storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return sum(storages.values())

    def step(self, learning_rate: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]
        if self.held is not None:
            self.held.take()
        try:
            self.inner.step()
        except (TypeError, RuntimeError, NotImplementedError) as error:
            if self.config.name != "library" or isinstance(error, torch.OutOfMemoryError):
                raise
            raise PistachioError(
                f"Optimiser '{self.config.library}' can't train these weights ({type(error).__name__}: {error}). Choose another in Optimizer Settings."
            ) from error
        if self.held is not None:
            self.held.give()

    @torch.no_grad()
    def copy_average(self, target: Tensor) -> None:
        """The optimiser's own average, flat; the weights in training stay as they are. Only where `averages`."""
        if not self._switches:
            for group in self.inner.param_groups:
                for p in group["params"]:
                    start = p.storage_offset() - self._stepped.parameters.storage_offset()
                    target[start : start + p.numel()] = self.inner.averaged(p, group)
            return
        trained = self._stepped.parameters.clone()
        self._to_average()
        target.copy_(self._stepped.parameters)
        self._to_trained()
        # Back through the same interpolation would be back but for rounding.
        self._stepped.parameters.copy_(trained)

    def state_dict(self) -> dict:
        # torch's own form: bitsandbytes overrides it with one that only its own loading understands.
        return Optimizer.state_dict(self.inner)

    def load_state_dict(self, saved: dict) -> None:
        """As saved, bit for bit. torch's own loading would turn 8-bit codes into floats."""
        params = [p for group in self.inner.param_groups for p in group["params"]]
        ours = [len(group["params"]) for group in self.inner.param_groups]
        if [len(group["params"]) for group in saved["param_groups"]] != ours:
            raise PistachioError("The saved run's optimiser held other weights. Train under a new run name.")
        for group, values in zip(self.inner.param_groups, saved["param_groups"]):
            fused = group.get("fused") or group.get("capturable")
            group.update({key: _on(value, params[0].device) for key, value in values.items() if key != "params"})
        self.inner.state.clear()
        for index, values in saved["state"].items():
            device = params[index].device
            # torch keeps the count of steps on the CPU unless its kernels are fused.
            self.inner.state[params[index]] = {
                key: _on(value, torch.device("cpu") if key == "step" and not fused else device) for key, value in values.items()
            }


def _tensors(value):
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _on(value, device: torch.device):
    """A copy on the device, lists and tables of tensors included."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=True)
    if isinstance(value, dict):
        return {key: _on(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on(item, device) for item in value)
    return value


def clip_gradient(gradient: Tensor, max_norm: float) -> Tensor:
    """Scale in place to at most `max_norm`; the norm before, as a tensor (no synchronisation)."""
    norm = torch.linalg.vector_norm(gradient)
    if max_norm > 0:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
