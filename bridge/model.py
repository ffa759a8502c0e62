"""ComfyUI's MODEL as the engine's `TrainableModel`.

It trains the very object that the user generates with: its modules are changed inside
`training()` only, and each change is undone there in a `finally`.
"""

from __future__ import annotations

import logging
import math
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Callable, Iterator, Sequence

import torch
import comfy.model_management
import comfy.ops
import comfy.quant_ops
from torch import Tensor

from ..training.errors import PistachioError
from ..training.quantization.formats import PackedWeight
from .attention import pytorch_attention
from .conditions import HostCondition, JoinedConditions, join
from .differentiable import attribute, differentiable, replaced_forwards_run
from .families import blocks_of, note_of, why_refused
from .noise import HostNoise
from .padding import CAPTION, attention_with, filled_up
from .streaming import EVERYTHING_BYTES, HostStreaming
from .packed_linear import PackedLinear
from .row_kernels import note_left_out, row_kernels
from .weight_in_use import weight_in_use

log = logging.getLogger("pistachio")

# Real weights are near 0.02; raw 8-bit codes whose scale was not applied are near 20 (int8) or 70 (fp8).
MISREAD_MEAN = 2.0
MISREAD_SAMPLE = 4096  # values of each matrix that are looked at


class HostModel(HostStreaming, HostNoise):
    key_prefix = "diffusion_model."
    attention = staticmethod(pytorch_attention)  # for the host's override; a run may settle on another one
    shares_padding = True  # see `padding`

    def __init__(self, patcher, *, precision: str = "auto"):
        """`patcher`: the MODEL socket's value. Raises PistachioError for a model that can't be trained."""
        self.patcher = patcher.clone()
        comfy.model_management.load_models_gpu([self.patcher])
        super().__init__(self.patcher, device=self.patcher.load_device)
        self.notes = tuple(filter(None, [note_of(self.base_model)]))  # for the run's report
        self.latent_channels = self.base_model.latent_format.latent_channels
        self.compute_dtype = self._compute_dtype(precision)
        refuse_untrainable(self.base_model)

    def _compute_dtype(self, precision: str) -> torch.dtype:
        if precision == "fp32":
            return torch.float32
        if precision == "bf16":
            return torch.bfloat16
        # fp16 would need loss scaling, so it is never chosen.
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    # ---- the objective -------------------------------------------------

    def predict(self, x_t: Tensor, sigma_B: Tensor, conditions: Sequence[HostCondition] | JoinedConditions) -> Tensor:
        joined = conditions if isinstance(conditions, JoinedConditions) else self.joined(conditions)
        arguments, attention, padding = joined.arguments, self.attention, joined.padding
        if padding is not None and padding.num_rows == self._num_tokens(x_t):
            arguments = arguments | {CAPTION: filled_up(arguments[CAPTION], padding.num_rows_whole)}
        elif padding is not None:
            attention = attention_with(attention, padding)
        return self._apply(x_t, sigma_B, arguments, attention)

    def _num_tokens(self, x_t: Tensor) -> int:
        return math.prod(-(-size // patch) for size, patch in zip(x_t.shape[2:], self.network.patch_size))

    has_fixed_conditions = True

    def joined(self, conditions: Sequence[HostCondition]) -> JoinedConditions:
        return join(list(conditions), self.device, dtype=self.compute_dtype, shares_padding=self.shares_padding)

    def _apply(self, x_t: Tensor, sigma_B: Tensor, arguments: dict, attention: Callable | None = None) -> Tensor:
        """`arguments`: of the host's `apply_model`, for the whole batch."""
        options = {
            "optimized_attention_override": attention or self.attention,
            "sigmas": sigma_B,
            "cond_or_uncond": [0] * x_t.shape[0],
        }
        return self.base_model._apply_model(x_t, sigma_B, transformer_options=options, **arguments)

    def condition_group(self, condition: HostCondition) -> str:
        return condition.group

    # ---- the network's layers ------------------------------------------

    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        return blocks_of(self.network)

    def is_linear(self, module: torch.nn.Module) -> bool:
        # The host's quantised Linear is a plain Module with the same fields.
        return isinstance(module, (torch.nn.Linear, PackedLinear)) or (type(module).__name__ == "Linear" and hasattr(module, "in_features"))

    def is_conv(self, module: torch.nn.Module) -> bool:
        return isinstance(module, torch.nn.Conv2d)

    def packed_weight(self, module: torch.nn.Module, like: Tensor) -> PackedWeight | None:
        if isinstance(module, PackedLinear):
            return module.multiplied(like)
        weight = module.weight
        # The newer host's own int8, which its forward multiplies by as it likes; here it is for the backward.
        parameters = getattr(weight, "_params", None) if isinstance(weight, comfy.quant_ops.QuantizedTensor) else None
        if not getattr(parameters, "convrot", False) or getattr(parameters, "transposed", False) or getattr(module, "weight_function", None):
            return None
        if weight.device != like.device or parameters.scale.numel() != weight.shape[0]:
            return None
        return PackedWeight(
            format="int8-convrot", codes=weight._qdata, scale=parameters.scale.flatten().float(), shape=tuple(weight.shape), group=parameters.convrot_groupsize
        )

    def packed_bias(self, module: torch.nn.Module, like: Tensor) -> Tensor | None:
        bias = module.bias
        if bias is None:
            return None
        bias = bias.to(like.device, like.dtype)
        for function in getattr(module, "bias_function", None) or ():
            bias = function(bias)
        return bias

    def weight_for_backward(self, module: torch.nn.Module, like: Tensor) -> AbstractContextManager[Tensor]:
        if isinstance(module, PackedLinear):
            return nullcontext(module.dense_weight(like))
        weight = module.weight
        if type(weight) not in (torch.nn.Parameter, Tensor) and not isinstance(weight, comfy.quant_ops.QuantizedTensor):
            return nullcontext(weight_in_use(module, like))
        plain = type(weight) in (torch.nn.Parameter, Tensor) and not getattr(module, "weight_function", None)
        if plain and weight.dtype == like.dtype and weight.device == like.device and not hasattr(module, "scale_weight"):
            return nullcontext(weight)
        return self._cast_weight(module, like)

    @contextmanager
    def _cast_weight(self, module: torch.nn.Module, like: Tensor) -> Iterator[Tensor]:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            module, dtype=like.dtype, device=like.device, bias_dtype=like.dtype, offloadable=True
        )
        try:
            usable = weight.dequantize().to(like.dtype) if hasattr(weight, "dequantize") and type(weight) is not Tensor else weight
            scale = getattr(module, "scale_weight", None)  # scaled fp8: the codes need their scale
            yield usable if scale is None else usable * scale.to(device=like.device, dtype=like.dtype)
        finally:
            comfy.ops.uncast_bias_weight(module, weight, bias, stream)

    def row_kernels(self) -> AbstractContextManager[None]:
        return row_kernels(self)

    def row_kernels_left_out(self, reason: str) -> None:
        note_left_out(self.device, reason)

    # ---- switching for training ----------------------------------------

    @contextmanager
    def training(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(differentiable(self.network, self.blocks()))
            stack.callback(lambda: self._switches.close())
            self._switches = self._switched_to_training()
            yield

    def _switched_to_training(self) -> ExitStack:
        with ExitStack() as stack:
            if hasattr(comfy.model_management, "in_training"):
                # Without it the host's rotary embedding runs through operations that have no backward.
                stack.enter_context(attribute(comfy.model_management, "in_training", True))
            if self.compute_dtype != self.network_dtype:
                stack.enter_context(attribute(self.base_model, "manual_cast_dtype", self.compute_dtype))
                for module in self.network.modules():
                    if hasattr(module, "comfy_cast_weights"):
                        stack.enter_context(attribute(module, "comfy_cast_weights", True))
            stack.enter_context(_ordinary_parameters(self.network))
            return stack.pop_all()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside `training()`, between two steps: the host may load, move and sample its models as it does for a graph.

        The network is as the host knows it, but for the adapters' forwards; afterwards it is on its device again.
        """
        with self.host_at_work(), replaced_forwards_run():
            self.lend_weights()
            try:
                yield
            finally:
                self.unload_others()
                self.place_weights()

    @property
    def patchers(self) -> list:
        """What must be on the device during a step."""
        return [self.patcher]

    def unload_others(self) -> None:
        """Text encoders and VAE leave the device: a step needs its memory for activations."""
        loaded = comfy.model_management.current_loaded_models
        keep = [each for each in loaded if each.model is not None and any(each.model.is_clone(patcher) for patcher in self.patchers)]
        comfy.model_management.free_memory(EVERYTHING_BYTES, self.device, keep_loaded=keep)

    @property
    def network_dtype(self) -> torch.dtype:
        return self.base_model.manual_cast_dtype or self.base_model.get_dtype()


def refuse_untrainable(base_model) -> None:
    reason = why_refused(base_model)
    if reason:
        raise PistachioError(
            f"{type(base_model.model_config).__name__} can't be trained: {reason}. Load a text-to-image or text-to-video model."
        )
    channels = base_model.latent_format.latent_channels
    shape = (1, channels, 1, 8, 8) if base_model.latent_format.latent_dimensions == 3 else (1, channels, 8, 8)
    if base_model.concat_keys or base_model.concat_cond(noise=torch.zeros(shape), device=torch.device("cpu")) is not None:
        raise PistachioError(
            "This model also needs a picture as input (image-to-video, inpaint or edit), which training can't give it. "
            "Load the text-to-image or text-to-video version of it."
        )
    for path, module in base_model.diffusion_model.named_modules():
        if getattr(module, "pre_quant_scale", None) is not None:
            raise PistachioError(
                f"This quantised file can't be trained: '{path}' scales its inputs before it multiplies, and a LoRA loader would lay the LoRA over the "
                "scaled inputs. Load another quantisation of the model, or the bf16 file."
            )
        weight = getattr(module, "weight", None)
        if isinstance(module, PackedLinear) or type(weight) is not torch.nn.Parameter or weight.ndim != 2 or weight.is_meta or hasattr(module, "scale_weight"):
            continue
        size = weight.flatten()[:MISREAD_SAMPLE].float().abs().mean().item()
        if size > MISREAD_MEAN:
            raise PistachioError(
                f"This quantised file is misread by this version of ComfyUI: '{path}' holds raw 8-bit codes (mean size {size:.0f}) "
                "without their scale, so it also generates noise. Update ComfyUI, or load the bf16 or fp16 file."
            )


@contextmanager
def _ordinary_parameters(network: torch.nn.Module) -> Iterator[None]:
    """Loaders make inference tensors, which autograd may not keep, and some that ask for gradients.

    Each is replaced by an ordinary frozen one over the same memory, and put back afterwards.
    """
    replaced = []
    try:
        for module in network.modules():
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is None or type(tensor) not in (torch.nn.Parameter, Tensor):
                        continue
                    if not (tensor.is_inference() or tensor.requires_grad) or tensor.is_meta:
                        continue
                    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                    alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
                    if store is module._parameters:
                        alias = torch.nn.Parameter(alias, requires_grad=False)
                    replaced.append((store, name, tensor))
                    store[name] = alias
        yield
    finally:
        for store, name, tensor in replaced:
            store[name] = tensor
