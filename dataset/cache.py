"""Encoded latents and captions on disk, one safetensors file each, named by what they were made from.

Owns the file format and its damage handling: a file that a kill or a full disk left behind is
`CacheMiss`, never wrong data. float32 values that fit into 16 bits without loss are kept in 16 bits.
Knows nothing about encoders or pictures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..training.errors import PistachioError
from .files import atomic_write_bytes, remove_stale_temporaries

log = logging.getLogger(__name__)

LATENT_FORMAT = "pistachio-latent-1"
CONDITION_FORMAT = "pistachio-condition-1"
MASK_FORMAT = "pistachio-mask-1"

# lossless: 16 bits where that loses nothing, else 32. bf16 rounds by up to 0.4 %, fp8 by up to 6 % of a value.
LATENT_STORAGE = ("lossless", "bf16", "fp8")
FP8_LARGEST = 448.0  # of float8_e4m3fn
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


class CacheMiss(PistachioError):
    """The file is not there, or is damaged: encode again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cache:
    folder: Path

    def path_for(self, *key: object) -> Path:
        """The file for these key parts; any change of a part is another file."""
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()
        return self.folder / self.kind / digest[:2] / f"{digest}.safetensors"

    def remove_stale(self) -> int:
        """Remove what killed processes left half-written; returns how many files."""
        return remove_stale_temporaries(self.folder / self.kind) if (self.folder / self.kind).is_dir() else 0


class LatentCache(_Cache):
    __slots__ = ()
    kind = "latents"


class ConditionCache(_Cache):
    __slots__ = ()
    kind = "conditions"


class MaskCache(_Cache):
    __slots__ = ()
    kind = "masks"


def save_latent(path: Path, latent: Tensor, storage: str = "lossless") -> None:
    """`storage`: one of LATENT_STORAGE; the two lossy ones give float32 back."""
    tensors = {"latent": latent}
    if storage == "bf16":
        tensors = {"latent": latent.to(torch.bfloat16).float()}
    elif storage == "fp8":
        # a scale a channel: channels differ by a factor of five, and small values lose bits first
        largest = latent.float().abs().amax(dim=[d for d in range(latent.ndim) if d != 1], keepdim=True)
        scale = (largest / FP8_LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        tensors = {"latent": (latent.float() / scale).to(torch.float8_e4m3fn), "scale": scale}
    _write(path, tensors, {"format": LATENT_FORMAT})


def load_latent(path: Path) -> Tensor:
    """The latent on the CPU as it was saved; CacheMiss if missing or damaged."""
    tensors, _ = _read(path, LATENT_FORMAT)
    if "latent" not in tensors:
        raise _damaged(path, "no latent in it")
    latent = tensors["latent"]
    return latent.float() * tensors["scale"] if "scale" in tensors else latent


def save_mask(path: Path, mask: Tensor) -> None:
    _write(path, {"mask": mask}, {"format": MASK_FORMAT})


def load_mask(path: Path) -> Tensor:
    """The weights [1, 1, (1,) h, w] as they were saved; CacheMiss if missing or damaged."""
    tensors, _ = _read(path, MASK_FORMAT)
    if "mask" not in tensors:
        raise _damaged(path, "no mask in it")
    return tensors["mask"]


def latent_shape(path: Path) -> tuple[int, ...]:
    """Shape of a whole latent file from its header alone; CacheMiss if it is missing or cut short."""
    header = _header(path, LATENT_FORMAT)
    if "latent" not in header:
        raise _damaged(path, "no latent in it")
    return tuple(header["latent"]["shape"])


def check_condition(path: Path) -> None:
    """CacheMiss if the file is missing or cut short; reads its header alone."""
    if "tree" not in _header(path, CONDITION_FORMAT)["__metadata__"]:
        raise _damaged(path, "no structure in it")


def check_mask(path: Path) -> None:
    """As `check_condition`."""
    if "mask" not in _header(path, MASK_FORMAT):
        raise _damaged(path, "no mask in it")


def save_condition(path: Path, conditioning: list) -> None:
    """Save a host's conditioning: nested lists, tuples and dicts of tensors, numbers, strings and None."""
    tensors: dict[str, Tensor] = {}
    tree = _flatten(conditioning, tensors, "conditioning")
    _write(path, tensors, {"format": CONDITION_FORMAT, "tree": json.dumps(tree)})


def load_condition(path: Path) -> list:
    """What was saved, with its lists, tuples and dtypes; CacheMiss if missing or damaged."""
    tensors, metadata = _read(path, CONDITION_FORMAT)
    try:
        return _unflatten(json.loads(metadata["tree"]), tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # clone: views that share storage are refused by safetensors
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    narrow = {name: _narrowed(tensor) for name, tensor in plain.items() if tensor.dtype is torch.float32}
    narrow = {name: tensor for name, tensor in narrow.items() if tensor is not None}
    if narrow:
        metadata = metadata | {"float32": json.dumps(sorted(narrow))}
    atomic_write_bytes(path, save(plain | narrow, metadata=metadata))


def _narrowed(tensor: Tensor) -> Tensor | None:
    """The same numbers in 16 bits: what a half-precision encoder gave was only widened by the host."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow = tensor.to(dtype)
        if torch.equal(narrow.to(torch.float32), tensor):
            return narrow
    return None


def _read(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            for name in json.loads(metadata.get("float32", "[]")):
                tensors[name] = tensors[name].float()
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise _damaged(path, error) from error
    if metadata.get("format") != expected_format:
        raise _damaged(path, f"its format is {metadata.get('format')}, not {expected_format}")
    return tensors, metadata


def _header(path: Path, expected_format: str) -> dict:
    """The safetensors header of a file that has its full length: 10,000 of them take under a second."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
            size_bytes = file.seek(0, 2)
        metadata = header.get("__metadata__", {})
        expected_bytes = 8 + length + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise _damaged(path, error) from error
    if size_bytes != expected_bytes:
        raise _damaged(path, f"it has {size_bytes} of {expected_bytes} bytes")
    if metadata.get("format") != expected_format:
        raise _damaged(path, f"its format is {metadata.get('format')}, not {expected_format}")
    return header


def _missing(path: Path) -> CacheMiss:
    return CacheMiss(f"The cache file '{path}' is missing. Queue again: Encode Dataset writes it anew.")


def _damaged(path: Path, reason: object) -> CacheMiss:
    return CacheMiss(f"The cache file '{path}' is damaged ({reason}). Queue again: Encode Dataset writes it anew.")


def _flatten(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """JSON for `value`; every container is a one-key object, so that nothing in the data can be mistaken for a tag."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(item, tensors, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        return {"dict": [[_flatten(k, tensors, where), _flatten(v, tensors, f"{where}[{k!r}]")] for k, v in value.items()]}
    raise PistachioError(
        f"The text encoder gave a {type(value).__name__} at {where}, which can't be stored on disk. Use a CLIP from a stock loader."
    )


def _unflatten(node: dict, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind in ("list", "tuple"):
        items = [_unflatten(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {_unflatten(k, tensors): _unflatten(v, tensors) for k, v in content}
    raise ValueError(f"unknown node '{kind}'")


def total_finite(value: Any) -> bool:
    """True if no tensor anywhere in the structure holds NaN or infinity."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value.float()).all())
    if isinstance(value, dict):
        return all(total_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(total_finite(item) for item in value)
    return True
