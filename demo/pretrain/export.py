"""Packs trained checkpoints into the shipped weights: half precision, not yet expanded.

    python -m demo.pretrain.export --vae vae_fine.pt --dit dit.pt
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..install import WEIGHTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--dit", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.vae:
        saved = torch.load(args.vae, weights_only=True)
        flat = {f"{half}.{key}": value.half().contiguous() for half in ("encoder", "decoder") for key, value in saved[half].items()}
        save_file(flat, args.out / "vae.safetensors")
    if args.dit:
        saved = torch.load(args.dit, weights_only=True)
        save_file({key: value.half().contiguous() for key, value in saved.items()}, args.out / "dit.safetensors")


if __name__ == "__main__":
    main()
