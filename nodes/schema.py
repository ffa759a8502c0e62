"""Sockets, and the few differences between ComfyUI versions in what a node's schema may say.

Each difference is found once, from the host's own signatures.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

from comfy_api.latest import io

from ..training.errors import PistachioError

Dataset = io.Custom("PISTACHIO_DATASET")
Captioner = io.Custom("PISTACHIO_CAPTIONER")
CaptionOptions = io.Custom("PISTACHIO_CAPTION_OPTIONS")
Encoded = io.Custom("PISTACHIO_ENCODED")
AugmentationSocket = io.Custom("PISTACHIO_AUGMENTATION")
RunHandle = io.Custom("PISTACHIO_RUN")
Adapter = io.Custom("PISTACHIO_ADAPTER")
Optimizer = io.Custom("PISTACHIO_OPTIMIZER")
Objective = io.Custom("PISTACHIO_OBJECTIVE")
Evaluation = io.Custom("PISTACHIO_EVALUATION")
Logging = io.Custom("PISTACHIO_LOGGING")
Samples = io.Custom("PISTACHIO_SAMPLES")
Memory = io.Custom("PISTACHIO_MEMORY")
Sheet = io.Custom("PISTACHIO_SHEET")
FaceDetector = io.Custom("FACE_DETECTION_MODEL")  # ComfyUI's own, where it has one

SETTINGS = "Pistachio/settings"  # the category of every settings node

# The file menu of the stock LoRA loader is a list, and the only type that both hosts let into it is the wildcard.
LoraName = io.AnyType

_SCHEMA_FIELDS = {field.name for field in fields(io.Schema)}
# What a host without the field loses: a search word, the preview of a cached node.
_OPTIONAL_FIELDS = {"search_aliases", "has_intermediate_output"}
# Spread into an input: folded away where the host can fold.
ADVANCED: dict = {"advanced": True} if "advanced" in inspect.signature(io.Int.Input.__init__).parameters else {}


def schema(**values) -> io.Schema:
    dropped = _OPTIONAL_FIELDS - _SCHEMA_FIELDS
    return io.Schema(**{name: value for name, value in values.items() if name not in dropped})


def default(config, name: str):
    """The default of a field of a settings dataclass."""
    (field,) = [field for field in fields(config) if field.name == name]
    return field.default_factory() if field.default is MISSING else field.default


def problem(check, value) -> bool | str:
    """For `validate_inputs`: True, or the sentence that the host shows on the node. A linked value is not known yet."""
    if value is None:
        return True
    try:
        check(value)
    except PistachioError as error:
        return str(error)
    return True
