"""int8 and nf4 weights for JoyCaption's language model, through bitsandbytes.

Owns what is asked of bitsandbytes, which parts stay as they are, and the sentences for a machine that can't.
The vision tower and the projector are never quantised: captions suffer, and 4-bit code fails in the tower's pooling head.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ...training.errors import PistachioError

QUANTIZED = ("int8", "nf4")
# Names begin with "model." in transformers 5 and do not in 4.x; each version looks for the beginning or the end of a name.
NOT_QUANTIZED = ("vision_tower", "multi_modal_projector", "model.vision_tower", "model.multi_modal_projector", "lm_head", "language_model.lm_head")
_TOWER_AND_PROJECTOR = ("vision_tower", "multi_modal_projector")
_QUANTIZED_LAYERS = ("Linear8bitLt", "Linear4bit")


def quantization_config(precision: str, device: str | torch.device) -> Any:
    """transformers' settings for a precision of QUANTIZED; PistachioError where this machine can't."""
    assert precision in QUANTIZED
    try:
        import bitsandbytes
    except ImportError as error:
        raise PistachioError(
            f"Precision '{precision}' needs the package bitsandbytes ({error}): pip install bitsandbytes in ComfyUI's Python, "
            "or choose bf16 on Load JoyCaption."
        ) from error
    except (OSError, RuntimeError) as error:  # its library does not fit the machine's CUDA
        raise PistachioError(
            f"Precision '{precision}' needs bitsandbytes, which does not start here ({error}). Install the version for your CUDA, "
            "or choose bf16 on Load JoyCaption."
        ) from error
    kind = torch.device(device).type
    if kind not in getattr(bitsandbytes, "supported_torch_devices", {"cuda"}):  # releases without the list know CUDA alone
        raise PistachioError(
            f"Precision '{precision}' needs CUDA with this version of bitsandbytes, and captions are made on '{kind}'. "
            "Choose bf16 on Load JoyCaption, or install a newer bitsandbytes."
        )
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        # it says for every layer of every token that int8 products are taken in float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(NOT_QUANTIZED))
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=list(NOT_QUANTIZED),
    )


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that bitsandbytes holds."""
    return [name for name, module in model.named_modules() if type(module).__name__ in _QUANTIZED_LAYERS]


def check_quantized(model: nn.Module, precision: str) -> None:
    """Quantised where it must be, and nowhere else."""
    names = quantized_layers(model)
    wrong = [name for name in names if any(part in name for part in _TOWER_AND_PROJECTOR)]
    if wrong or not names:
        what = f"'{wrong[0]}' of the vision part was quantised too" if wrong else "no layer was quantised"
        raise PistachioError(f"Precision '{precision}' can't be used with this version of transformers: {what}. Choose bf16 on Load JoyCaption, or update transformers.")
