"""Writes safetensors files with holes: blocks of zeros take no space on disk.

Knows nothing of models. Needed because some sizes are fixed by ComfyUI (a vocabulary of 49,408 by 768).
"""

import json
import struct
from pathlib import Path

import torch

BLOCK_BYTES = 4096  # of the usual file systems: a smaller hole saves nothing

DTYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8",
}


def write_sparse(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    header, offset = {}, 0
    for name, tensor in state_dict.items():
        size_bytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        file.truncate(start + offset)
        for name, tensor in state_dict.items():
            data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            position = start + header[name]["data_offsets"][0]
            for first, last in _filled_ranges(data):
                file.seek(position + first)
                file.write(data[first:last].numpy().tobytes())


def _filled_ranges(data: torch.Tensor) -> list[tuple[int, int]]:
    """Byte ranges, whole blocks of the tensor, that hold anything but zeros."""
    num_blocks = -(-data.numel() // BLOCK_BYTES)
    whole = data[: data.numel() // BLOCK_BYTES * BLOCK_BYTES].view(-1, BLOCK_BYTES)
    filled = whole.any(dim=1).tolist() + [True] * (num_blocks - len(whole))
    ranges: list[tuple[int, int]] = []
    for index, is_filled in enumerate(filled):
        if not is_filled:
            continue
        first, last = index * BLOCK_BYTES, min((index + 1) * BLOCK_BYTES, data.numel())
        if ranges and ranges[-1][1] == first:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))
    return ranges
