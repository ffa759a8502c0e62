"""Telling one loaded model from another without reading all of it."""

from __future__ import annotations

import hashlib

import torch

SAMPLED_TENSORS = 64
SAMPLED_VALUES = 256


def fingerprint(module: torch.nn.Module, patches: dict | None = None) -> str:
    """16 hex digits of the names and shapes of all weights, the first values of some, and the patches on top."""
    digest = hashlib.sha256()
    named = sorted(module.state_dict().items())
    stride = max(1, len(named) // SAMPLED_TENSORS)
    for index, (name, tensor) in enumerate(named):
        if not torch.is_tensor(tensor):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        values = getattr(tensor, "_qdata", tensor)  # quantised: the codes
        if index % stride == 0 and not values.is_meta:
            sample = values.detach().flatten()[:SAMPLED_VALUES].float().cpu()
            digest.update(sample.numpy().tobytes())
    for name, entries in sorted((patches or {}).items(), key=lambda item: str(item[0])):
        digest.update(f"{name}{[(entry[0], len(entry)) for entry in entries]}".encode())
    return digest.hexdigest()[:16]
