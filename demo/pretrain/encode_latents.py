"""Encodes the drawn pictures once, in chunks that the diffusion training picks up as they arrive.

    python -m demo.pretrain.encode_latents --data FOLDER --vae vae.pt --out LATENTS_FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from .vae import build_encoder

CHUNK = 4096


def load_chunks(folder: Path, name: str) -> torch.Tensor:
    """All chunks written so far, in the pictures' order."""
    paths = sorted(folder.glob(f"{name}_*.pt"))
    if not paths:
        raise FileNotFoundError(f"no latents named {name}_*.pt in {folder}; run demo.pretrain.encode_latents first")
    return torch.cat([torch.load(path, weights_only=True) for path in paths])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=32000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    encoder = build_encoder().to(memory_format=torch.channels_last)
    encoder.load_state_dict(torch.load(args.vae, weights_only=True)["encoder"])
    for name, limit in (("held_out", 256), ("train", args.rows)):
        pictures = np.load(args.data / f"{name}.npy", mmap_mode="r")[:limit]
        for start in range(0, len(pictures), CHUNK):
            path = args.out / f"{name}_{start:06d}.pt"
            if path.exists():
                continue
            parts = []
            for first in range(start, min(start + CHUNK, len(pictures)), 32):
                images = torch.from_numpy(np.array(pictures[first : min(first + 32, start + CHUNK)])).permute(0, 3, 1, 2).float() / 255
                parts.append(encoder(images.contiguous(memory_format=torch.channels_last)).half().contiguous())
            torch.save(torch.cat(parts), path.with_suffix(".partial"))
            path.with_suffix(".partial").replace(path)
            print("encoded", path.name, flush=True)


if __name__ == "__main__":
    main()
