"""The demo's CLIP-L text encoder, generated from a seed instead of shipped.

Ten layers are empty (holes in a sparse file). The eleventh, whose output conditions the model,
adds to every token the token before it, so that "red" reaches "shirt". The twelfth averages
the prompt into the pooled vector. Embeddings are random bytes: words are distinct, not understood.
Knows the file format and the CLIP-L layout; knows nothing about training.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

VOCABULARY, WIDTH, POSITIONS, LAYERS, HEADS, MLP_WIDTH = 49408, 768, 77, 12, 12, 3072
SEED = 7
CODE_WIDTH = 64                 # the first dimensions hold the position, the others the token
LAST_POSITION = 34              # later positions share one code, so that padding rows are identical
SHARPNESS = 3.0
PREVIOUS_SHARE, POOL_SHARE = 0.8, 6.0
FORWARD_LAYER, POOL_LAYER = LAYERS - 2, LAYERS - 1


def token_embeddings(rows=slice(None)) -> np.ndarray:
    """Rows of the token table, float16, uniform with unit variance."""
    count = VOCABULARY * (WIDTH - CODE_WIDTH)
    raw = np.random.PCG64(SEED).random_raw(count // 8).view(np.uint8).reshape(VOCABULARY, WIDTH - CODE_WIDTH)[rows]
    levels = ((np.arange(256) - 127.5) / np.sqrt((256**2 - 1) / 12)).astype(np.float16)
    table = np.zeros((len(raw), WIDTH), np.float16)
    table[:, CODE_WIDTH:] = levels[raw]
    return table


def position_codes() -> np.ndarray:
    """Cosines and sines whose inner product is zero between any two different positions."""
    position = np.minimum(np.arange(POSITIONS), LAST_POSITION)[:, None]
    angle = position * np.pi * (np.arange(CODE_WIDTH // 2) + 0.5) / (CODE_WIDTH // 2)
    table = np.zeros((POSITIONS, WIDTH), np.float16)
    table[:, :CODE_WIDTH] = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    return table


def _query_of_previous() -> np.ndarray:
    """Turns a position's code into that of the position before it, once per head."""
    step = np.pi * (np.arange(CODE_WIDTH // 2) + 0.5) / (CODE_WIDTH // 2)
    cos, sin = np.diag(np.cos(step)), np.diag(np.sin(step))
    turn = np.block([[cos, sin], [-sin, cos]]) * SHARPNESS
    weight = np.zeros((WIDTH, WIDTH), np.float16)
    weight[:, :CODE_WIDTH] = np.tile(turn, (HEADS, 1))
    return weight


def _key() -> np.ndarray:
    weight = np.zeros((WIDTH, WIDTH), np.float16)
    weight[:, :CODE_WIDTH] = np.tile(np.eye(CODE_WIDTH) * SHARPNESS, (HEADS, 1))
    return weight


def moved_dimensions() -> np.ndarray:
    """Where the previous token's dimensions land: half-way round, apart from the token's own."""
    token = np.arange(CODE_WIDTH, WIDTH)
    return np.roll(token, len(token) // 2)


def _move_previous() -> np.ndarray:
    weight = np.zeros((WIDTH, WIDTH), np.float16)
    weight[np.arange(CODE_WIDTH, WIDTH), moved_dimensions()] = PREVIOUS_SHARE
    return weight


def _tensors() -> dict[str, tuple[tuple[int, ...], np.ndarray | None]]:
    """Every tensor's shape and value; None is a hole of zeros."""
    ones, eye = np.ones(WIDTH, np.float16), np.eye(WIDTH, dtype=np.float16)
    attention = {
        FORWARD_LAYER: {"q_proj": _query_of_previous(), "k_proj": _key(), "v_proj": eye, "out_proj": _move_previous()},
        POOL_LAYER: {"v_proj": eye, "out_proj": eye * np.float16(POOL_SHARE)},
    }
    out: dict[str, tuple[tuple[int, ...], np.ndarray | None]] = {
        "text_model.embeddings.token_embedding.weight": ((VOCABULARY, WIDTH), token_embeddings()),
        "text_model.embeddings.position_embedding.weight": ((POSITIONS, WIDTH), position_codes()),
    }
    for layer in range(LAYERS):
        prefix = f"text_model.encoder.layers.{layer}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            out[f"{prefix}self_attn.{part}.weight"] = ((WIDTH, WIDTH), attention.get(layer, {}).get(part))
            out[f"{prefix}self_attn.{part}.bias"] = ((WIDTH,), None)
        for part, rows, columns in (("fc1", MLP_WIDTH, WIDTH), ("fc2", WIDTH, MLP_WIDTH)):
            out[f"{prefix}mlp.{part}.weight"] = ((rows, columns), None)
            out[f"{prefix}mlp.{part}.bias"] = ((rows,), None)
        for part in ("layer_norm1", "layer_norm2"):
            out[f"{prefix}{part}.weight"] = ((WIDTH,), ones)
            out[f"{prefix}{part}.bias"] = ((WIDTH,), None)
    out["text_model.final_layer_norm.weight"] = ((WIDTH,), ones)
    out["text_model.final_layer_norm.bias"] = ((WIDTH,), None)
    out["text_projection.weight"] = ((WIDTH, WIDTH), None)      # unused for SD3, but missed aloud by the host
    return out


def write_clip_l(path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the encoder as a safetensors file that takes about 80 MB on a disk with sparse files."""
    tensors = _tensors()
    header: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for key, (shape, _) in tensors.items():
        size_bytes = 2 * int(np.prod(shape))
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        start = 8 + len(encoded)
        file.truncate(start + offset)
        for key, (_, value) in tensors.items():
            if value is not None:
                file.seek(start + header[key]["data_offsets"][0])
                file.write(np.ascontiguousarray(value).data)
    partial.replace(path)
