"""A MODEL whose blocks' linear layers are stored in 8 or 4 bits, made beside the given one, which stays as it is.

int8-convrot becomes the host's own quantised layer where the host has that format: it is then loaded, computed and saved as
a file in that format is. Everything else becomes a `PackedLinear`.
"""

from __future__ import annotations

import copy
import logging
import re
import uuid
from typing import Callable

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor

from ..training.config.adapter import lines
from ..training.config.check import check
from ..training.errors import PistachioError
from ..training.quantization.formats import FORMATS, PackedWeight, dequantize, quantize, why_not
from ..training.quantization.report import LayerError, QuantizationReport
from .families import blocks_of
from .packed_linear import PackedLinear, PackedPatcher, bitsandbytes_functional, pack_nf4

log = logging.getLogger("pistachio")

ERROR_TOKENS = 32  # random inputs of a layer that its error is measured on
ERROR_SEED = 0
HOST_INT8 = "int8_tensorwise"  # the host's name of the format that int8-convrot is a case of

Progress = Callable[[int, int], None]


@torch.inference_mode()  # as loaders do: the host can't move quantised weights that were made outside of it
def quantize_base(
    patcher, format: str, *, blocks: str = "all", keep: str = "", progress: Progress | None = None, check_interrupted: Callable[[], None] | None = None,
):
    """(another patcher, QuantizationReport). `blocks`: "all" or numbers such as "0-18, 20"; `keep`: regular expressions of paths, one a line."""
    check(format in FORMATS, f"Format '{format}' is unknown. Choose one of {', '.join(FORMATS)} on Quantize Base.")
    if format == "nf4":
        bitsandbytes_functional()
    network = patcher.model.diffusion_model
    unload_clones(patcher)
    chosen, kept = _choose(network, format, _block_paths(network, blocks), _patterns(keep))
    if not chosen:
        reasons = "; ".join(sorted({why for _, why in kept})) or "it has no linear layers in blocks"
        raise PistachioError(f"No layer of this model can be stored as {format}: {reasons}. Change 'blocks' or 'keep' on Quantize Base, or use the model as it is.")
    model = _copied(patcher.model, {id(module.weight) for _, module in chosen})
    before = size_bytes(patcher.model)
    dtype = patcher.model.manual_cast_dtype or patcher.model.get_dtype()
    errors, layer_before, layer_after, native = [], 0, 0, False
    for index, (path, module) in enumerate(chosen):
        if check_interrupted is not None:
            check_interrupted()
        layer, error = _stored(path, module, format, dtype, patcher.load_device, patcher.offload_device)
        native = native or not isinstance(layer, PackedLinear)
        parent, _, name = path.rpartition(".")
        setattr(model.diffusion_model.get_submodule(parent) if parent else model.diffusion_model, name, layer)
        errors.append(error)
        layer_before += size_bytes(module)
        layer_after += size_bytes(layer)
        if progress is not None:
            progress(index + 1, len(chosen))
    made = _patcher_of(patcher, model, native)
    notes = ("The layers are ComfyUI's own int8 layers: Save Model writes them as they are.",) if native else (
        "Save Model refuses this model: ComfyUI can't load the format from a file.",
    )
    report = QuantizationReport(
        format=format, layers=tuple(errors), kept=tuple(kept), size_bytes_before=before, size_bytes_after=size_bytes(model),
        layer_bytes_before=layer_before, layer_bytes_after=layer_after, notes=notes,
    )
    log.info("Quantize Base: %s", report.text().splitlines()[0])
    return made, report


def size_bytes(module: torch.nn.Module) -> int:
    """Of what is stored: parameters and buffers, each storage once."""
    storages = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for part in stored_tensors(tensor):
            storages[part.data_ptr() or id(part)] = part.nbytes
    return sum(storages.values())


def stored_tensors(tensor: Tensor) -> list[Tensor]:
    """A tensor's own, or the plain ones inside one of the host's quantised tensors."""
    if not isinstance(tensor, comfy.quant_ops.QuantizedTensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


# ---- which layers --------------------------------------------------------


def _choose(network: torch.nn.Module, format: str, blocks: tuple[str, ...], keep: list[re.Pattern]) -> tuple[list, list]:
    """([(path, module)], [(path of a kept layer, why)])."""
    chosen, kept = [], []
    for path, module in network.named_modules():
        if not is_linear_layer(module):
            continue
        if not path.startswith(blocks):
            kept.append((path, "outside the chosen blocks"))
        elif any(pattern.search(path) for pattern in keep):
            kept.append((path, "named in 'keep'"))
        else:
            reason = _why_kept(module, format)
            (kept.append((path, reason)) if reason else chosen.append((path, module)))
    for pattern in keep:
        check(
            any(pattern.search(path) for path, _ in kept),
            f"'{pattern.pattern}' in keep finds no linear layer of this model. Correct it on Quantize Base.",
        )
    return chosen, kept


def is_linear_layer(module: torch.nn.Module) -> bool:
    return isinstance(module, (torch.nn.Linear, PackedLinear)) or (type(module).__name__ == "Linear" and hasattr(module, "in_features"))


def _why_kept(module: torch.nn.Module, format: str) -> str | None:
    if isinstance(module, PackedLinear):
        return "stored in fewer bits already"
    if type(module.weight) is not torch.nn.Parameter and not isinstance(module.weight, comfy.quant_ops.QuantizedTensor):
        return f"its loader keeps weights as {type(module.weight).__name__}"
    if getattr(module, "pre_quant_scale", None) is not None:
        return "it scales its inputs"
    return why_not((module.out_features, module.in_features), format)


def packed_bytes(network: torch.nn.Module, format: str) -> dict[torch.nn.Module, int]:
    """Each layer that Quantize Base would store in `format` by its defaults, and what it takes then. Nothing is quantised."""
    chosen, _ = _choose(network, format, _block_paths(network, "all"), [])
    found = {}
    for _, module in chosen:
        bias = 0 if module.bias is None else module.bias.nbytes
        found[module] = quantize(torch.empty(module.out_features, module.in_features, device="meta"), format).size_bytes + bias
    return found


def _block_paths(network: torch.nn.Module, text: str) -> tuple[str, ...]:
    """Path prefixes of the blocks that `text` names."""
    paths = [f"{path}." for path, _ in blocks_of(network)]
    check(bool(paths), "This model's blocks are not known, so Quantize Base can't tell them from its embeddings. Use the model as it is.")
    if text.strip().lower() in ("", "all"):
        return tuple(paths)
    chosen = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        check(found is not None, f"'{part.strip()}' in blocks is no number and no range. Write for example 0-18, 20 on Quantize Base.")
        first, last = int(found[1]), int(found[2] or found[1])
        check(
            first <= last < len(paths),
            f"'{part.strip()}' in blocks is outside this model's {len(paths)} blocks, 0 to {len(paths) - 1}. Correct it on Quantize Base.",
        )
        chosen += paths[first : last + 1]
    return tuple(chosen)


def _patterns(text: str) -> list[re.Pattern]:
    found = []
    for line in lines(text):
        try:
            found.append(re.compile(line))
        except re.error as error:
            raise PistachioError(f"'{line}' in keep is no regular expression ({error}). Correct it on Quantize Base.") from error
    return found


# ---- one layer -----------------------------------------------------------


def _stored(
    path: str, module: torch.nn.Module, format: str, dtype: torch.dtype, device: torch.device, offload: torch.device
) -> tuple[torch.nn.Module, LayerError]:
    true_OI = _true_weight(module, device)
    if not true_OI.isfinite().all():
        raise PistachioError(f"Layer '{path}' has weights that are not finite, so it can't be stored in fewer bits. Load an undamaged file, or name the layer in 'keep' on Quantize Base.")
    packed = pack_nf4(true_OI) if format == "nf4" else quantize(true_OI, format)
    bias = module.bias
    bias = None if bias is None else torch.empty_like(bias, device=device).copy_(bias)
    layer = _host_int8(packed, bias, dtype) if format == "int8-convrot" and host_has_int8_convrot() else PackedLinear(packed, bias)
    source = torch.Generator().manual_seed(ERROR_SEED)
    x = torch.randn(ERROR_TOKENS, module.in_features, generator=source).to(device)
    expected = x @ true_OI.T
    found = layer(x) - (0 if bias is None else bias.float())
    error = LayerError(
        path=path, weight_error=_relative(dequantize(packed) - true_OI, true_OI), output_error=_relative(found.float() - expected, expected)
    )
    return layer.to(offload), error


def _relative(difference: Tensor, of: Tensor) -> float:
    return (difference.norm() / of.norm().clamp(min=1e-30)).item()


def _true_weight(module: torch.nn.Module, device: torch.device) -> Tensor:
    """What the loaded layer multiplies by, in float32: an 8-bit file's codes with their scale."""
    weight = module.weight.to(device)
    if isinstance(weight, comfy.quant_ops.QuantizedTensor):
        return weight.dequantize().float()
    scale = getattr(module, "scale_weight", None)
    return weight.float() if scale is None else weight.float() * scale.to(device, torch.float32)


def host_has_int8_convrot() -> bool:
    return HOST_INT8 in comfy.quant_ops.QUANT_ALGOS and hasattr(comfy.quant_ops, "TensorWiseINT8Layout")


def _host_int8(packed: PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> torch.nn.Module:
    out_features, in_features = packed.shape
    linear = comfy.ops.mixed_precision_ops({}, dtype).Linear(in_features, out_features, bias=False)
    layout_name = comfy.quant_ops.QUANT_ALGOS[HOST_INT8]["comfy_tensor_layout"]
    parameters = comfy.quant_ops.get_layout_class(layout_name).Params(
        scale=packed.scale[:, None].contiguous(), orig_dtype=dtype, orig_shape=packed.shape, convrot=True, convrot_groupsize=packed.group
    )
    linear.quant_format, linear.layout_type = HOST_INT8, layout_name
    linear.weight = torch.nn.Parameter(comfy.quant_ops.QuantizedTensor(packed.codes, layout_name, parameters), requires_grad=False)
    linear.bias = None if bias is None else torch.nn.Parameter(bias.to(dtype), requires_grad=False)
    return linear


# ---- the model around it -------------------------------------------------


def unload_clones(patcher) -> None:
    """The given model's weights as loaded, off the device: without the LoRAs that the host may have laid into them."""
    loaded = comfy.model_management.current_loaded_models
    for entry in list(loaded):
        if entry.model is not None and entry.model.is_clone(patcher):
            entry.model_unload()
            loaded.remove(entry)


def _copied(model: torch.nn.Module, leave: set[int]) -> torch.nn.Module:
    """A deep copy, but for the weights to be replaced, and for what the host's memory management keeps on the objects."""
    # Shared: the host's configuration object answers every attribute, copy's own among them, and nothing changes it after loading.
    memo: dict[int, object] = {id(model.model_config): model.model_config}
    if getattr(model, "current_patcher", None) is not None:
        memo[id(model.current_patcher)] = None
    for name in ("dynamic_vbars", "dynamic_pins", "dynamic_patchers"):
        if name in vars(model):
            memo[id(vars(model)[name])] = type(vars(model)[name])()
    for tensor in (*model.parameters(), *model.buffers()):
        memo[id(tensor)] = _placeholder() if id(tensor) in leave else _clone(tensor)
    for module in model.modules():
        for name, value in vars(module).items():
            if _is_bookkeeping(name) and not isinstance(value, (bool, int, float, str, type(None))):
                memo[id(value)] = None
    made = copy.deepcopy(model, memo)
    for module in made.modules():
        for name in [name for name in vars(module) if _is_bookkeeping(name)]:
            delattr(module, name)
    made.model_loaded_weight_memory = made.lowvram_patch_counter = made.model_offload_buffer_memory = 0
    made.model_lowvram, made.current_weight_patches_uuid = False, None
    return made


def _is_bookkeeping(name: str) -> bool:
    """Names that the host's patchers set on a layer while it is loaded."""
    return name == "_v" or name.startswith(("_v_", "_prefetch", "_pin")) or name in (
        "prev_comfy_cast_weights", "comfy_patched_weights", "weight_lowvram_function", "bias_lowvram_function",
    )


def _placeholder() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(0), requires_grad=False)


def _clone(tensor: Tensor) -> Tensor:
    made = tensor.detach().clone()
    return torch.nn.Parameter(made, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else made


def _patcher_of(patcher, model: torch.nn.Module, native: bool):
    """A clone of the patcher, with its patches and options, over the other model."""
    empty = {"backup": {}, "object_patches_backup": {}, "pinned": set(), "hook_backup": {}}
    if hasattr(patcher, "get_clone_model_override"):
        made = patcher.clone(disable_dynamic=not native, model_override=(model, ({}, {}, {}, set())))
        made.cached_patcher_init = None  # it would load the file again, as it was
    else:
        made = patcher.clone()
        made.model = model
    for name, value in empty.items():
        setattr(made, name, value)
    made.parent, made.size = None, 0
    if hasattr(made, "clone_base_uuid"):
        made.clone_base_uuid = uuid.uuid4()
    model.device = made.offload_device
    if not native:
        made.__class__ = PackedPatcher
        model.state_dict_for_saving = _refuse_saving
    return made


def _refuse_saving(*args, **kwargs):
    raise PistachioError(
        "This model's weights are stored in a format that ComfyUI can't load from a file, so Save Model would write one that nothing opens. "
        "Save the model that Quantize Base was given."
    )
