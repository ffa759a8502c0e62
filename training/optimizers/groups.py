"""Which weights share a learning rate and a weight decay, as the tensors that an optimiser is given."""

from __future__ import annotations

from torch import Tensor

from ..adapted import AdaptedNetwork
from ..config import OptimizerConfig
from ..config.check import check

B = "lora_B"
TEXT_ENCODERS = "text_encoders."  # where their layers stand when they are trained with the model


def vector_groups(network: AdaptedNetwork, config: OptimizerConfig) -> list[dict]:
    """For methods that treat each weight alone: the flat buffer, or contiguous parts of it where not all weights are treated alike."""
    kinds = _kinds(network, config)
    if len(kinds) == 1:
        (treatment,) = kinds
        return [{"params": [network.parameters], **_settings(treatment)}]
    return [
        {"params": [_flat_part(network, tensor) for tensor in tensors], **_settings(treatment)} for treatment, tensors in kinds.items()
    ]


def matrix_groups(network: AdaptedNetwork, config: OptimizerConfig) -> list[dict]:
    """For methods that look at rows and columns: the adapters' tensors in their own shapes."""
    return [{"params": tensors, **_settings(treatment)} for treatment, tensors in _kinds(network, config).items()]


def _kinds(network: AdaptedNetwork, config: OptimizerConfig) -> dict[tuple[float, float], list[Tensor]]:
    """(share of the learning rate, weight decay) -> tensors."""
    named = [(path, name, tensor) for path, adapter in network.adapters.items() for name, tensor in adapter.tensors.items()]
    check(
        config.lora_plus_ratio == 1 or any(name == B for _, name, _ in named),
        f"lora_plus_ratio is {config.lora_plus_ratio}, and this adapter type has no B matrices. Set it to 1 in Optimizer Settings, or choose 'lora' "
        "in Adapter Settings.",
    )
    kinds: dict[tuple[float, float], list[Tensor]] = {}
    for path, name, tensor in named:
        decays = tensor.ndim > 1 or config.decay_magnitudes
        own_ratio = config.text_encoder_lr_ratio if path.startswith(TEXT_ENCODERS) else 1.0
        treatment = (own_ratio * (config.lora_plus_ratio if name == B else 1.0), config.weight_decay if decays else 0.0)
        kinds.setdefault(treatment, []).append(tensor)
    return kinds


def _settings(treatment: tuple[float, float]) -> dict:
    lr_ratio, weight_decay = treatment
    return {"lr_ratio": lr_ratio, "weight_decay": weight_decay}


def _flat_part(network: AdaptedNetwork, tensor: Tensor) -> Tensor:
    start = tensor.storage_offset() - network.parameters.storage_offset()
    part = network.parameters[start : start + tensor.numel()]
    part.grad = network.gradients[start : start + tensor.numel()]
    return part
