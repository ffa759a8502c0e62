"""Telling one loaded model from another without reading all of it.

Names weights, not files: the same weights from another loader have the same fingerprint, and a LoRA on
them gives another one. While the host has a LoRA applied in place, the weights as loaded are read from where it keeps them.
"""

from __future__ import annotations

import hashlib

import torch

SAMPLED_VALUES = 16  # spread over each weight; two different models agree on none
# Checkpoints of SD1.5 lack these, and the host leaves in them what the memory held: another number each time it loads one.
NOT_IN_EVERY_FILE = (".text_projection.weight", ".logit_scale")


def fingerprint(patcher, *, prefix: str = "") -> str:
    """32 hex digits of the weights below `prefix` in a host's model patcher, and of the patches on top."""
    digest = hashlib.sha256(f"{type(patcher.model).__name__}\n".encode())
    stored = dict(patcher.model.named_parameters())
    for name, value in sorted(patcher.model.state_dict().items()):
        if name.startswith(prefix) and not name.endswith(NOT_IN_EVERY_FILE):
            digest.update(f"{name}\n".encode())
            if value.is_meta:  # the loader of GGUF files shows sizes alone; the weights themselves are on the layer
                value = stored.get(name, value)
            _add(digest, patcher.backup[name].weight if name in patcher.backup else value)
    for name, patches in sorted(patcher.patches.items(), key=lambda item: str(item[0])):
        digest.update(f"patch|{name}\n".encode())
        _add(digest, patches)
    return digest.hexdigest()[:32]


def _add(digest, value) -> None:
    """Numbers, texts and samples of tensors, in containers or in the host's adapter objects."""
    if torch.is_tensor(value):
        digest.update(f"{tuple(value.shape)}|{value.dtype}\n".encode())
        values = getattr(value, "_qdata", value)  # quantised: the codes
        if not values.is_meta:
            flat = values.detach().as_subclass(torch.Tensor).reshape(-1)
            stride = max(1, flat.numel() // SAMPLED_VALUES)
            digest.update(flat[::stride][:SAMPLED_VALUES].to("cpu", torch.float32).numpy().tobytes())
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(digest, item)
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(f"{value!r}\n".encode())
    else:  # an adapter: what it is, and its tensors
        digest.update(f"{type(value).__name__}\n".encode())
        _add(digest, getattr(value, "weights", None))
