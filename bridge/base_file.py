"""The file name of the base model that a node was given, read from the prompt: a MODEL itself doesn't say.

Follows the model's wire back, through LoRA loaders and patches, to the loader that names a file. Knows no loader by name.
"""

from __future__ import annotations

from collections.abc import Mapping

MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
NAME_ENDING, NOT_BASES = "_name", ("lora", "vae", "clip", "control", "embedding")
MAX_NODES = 100


def base_file(prompt: Mapping | None, node_id: str | None, input_name: str = "model") -> str:
    """Without its folder; empty where no loader on the way names a file."""
    node, wanted = (prompt or {}).get(str(node_id)), input_name
    for _ in range(MAX_NODES):
        source = _source(node, wanted)
        node = (prompt or {}).get(source) if source is not None else None
        if node is None:
            return ""
        found = _named_file(node)
        if found:
            return found
        wanted = "model"
    return ""


def _source(node: Mapping | None, input_name: str) -> str | None:
    """The node on the other end of a wire; where the input isn't there, of the only wire there is."""
    inputs = (node or {}).get("inputs", {})
    wires = {name: value for name, value in inputs.items() if isinstance(value, list) and len(value) == 2}
    wire = wires.get(input_name) or next((value for name, value in wires.items() if name.startswith(input_name)), None)
    if wire is None and len(wires) == 1:
        wire = next(iter(wires.values()))
    return str(wire[0]) if wire else None


def _named_file(node: Mapping) -> str:
    for name, value in node.get("inputs", {}).items():
        if name.endswith(NAME_ENDING) and not name.startswith(NOT_BASES) and isinstance(value, str) and value.lower().endswith(MODEL_SUFFIXES):
            return value.replace("\\", "/").rsplit("/", 1)[-1]
    return ""
