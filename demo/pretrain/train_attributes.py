"""Trains the attribute reader on drawings, on the VAE's reconstructions, and on blurred and noisy ones.

    python -m demo.pretrain.train_attributes --data FOLDER --vae vae.pt --minutes 6
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ..attributes import HEADS, WEIGHTS, AttributeReader
from .vae import build_decoder, build_encoder


def load_pictures(data: Path, name: str, rows) -> torch.Tensor:
    pictures = np.load(data / f"{name}.npy", mmap_mode="r")
    return torch.from_numpy(np.array(pictures[rows])).permute(0, 3, 1, 2).float().div_(255).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def reconstruct(vae, pictures: torch.Tensor, noise: float) -> torch.Tensor:
    latent = vae[0](pictures)
    return vae[1](latent + noise * torch.randn_like(latent)).clamp(0, 1)


def worn(pictures: torch.Tensor) -> torch.Tensor:
    """Blur, noise and a change of light and colour, each by chance."""
    if torch.rand(()) < 0.5:
        factor = 0.5 + 0.5 * torch.rand(()).item()
        small = F.interpolate(pictures, scale_factor=factor, mode="bilinear", antialias=True)
        pictures = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear")
    count = len(pictures)
    gain, lift = 1 + 0.06 * torch.randn(count, 3, 1, 1), 0.02 * torch.randn(count, 3, 1, 1)
    shift = torch.randint(-2, 3, (2,)).tolist()
    pictures = torch.roll(pictures, shift, (2, 3)) if torch.rand(()) < 0.5 else pictures
    return pictures * gain + lift + 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(pictures)


@torch.no_grad()
def accuracy(reader, pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    reader.eval()
    logits = reader(pictures)
    return {key: (value.argmax(1) == labels[:, i]).float().mean().item() for i, (key, value) in enumerate(logits.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--pool", type=int, default=1536, help="reconstructions to mix in")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    saved = torch.load(args.vae, weights_only=True)
    vae = [build_encoder(), build_decoder()]
    for module, key in zip(vae, ("encoder", "decoder")):
        module.load_state_dict(saved[key])
        module.to(memory_format=torch.channels_last)
    labels = torch.from_numpy(np.load(args.data / "train_labels.npy")).long()
    # a pool of reconstructions, made once: decoding costs more than a training step
    pool_rows = torch.arange(0, min(len(labels), args.pool))
    pool = torch.cat([reconstruct(vae, load_pictures(args.data, "train", rows.numpy()), noise)
                      for rows, noise in zip(pool_rows.split(64), [0.0, 0.15, 0.3, 0.45] * 100)])
    print("pool ready", flush=True)
    reader = AttributeReader().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.02)
    start, step, budget = time.time(), 0, args.minutes * 60
    generator = np.random.default_rng(0)
    while (elapsed := time.time() - start) < budget:
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * max(0.01, 1 - elapsed / budget)
        rows = np.sort(generator.integers(0, len(labels), 48))
        picked = torch.from_numpy(generator.integers(0, len(pool), 16))
        pictures = worn(torch.cat([load_pictures(args.data, "train", rows), pool[picked]]))
        wanted = torch.cat([labels[rows], labels[pool_rows[picked]]])
        logits = reader(pictures)
        loss = sum(F.cross_entropy(value, wanted[:, i], label_smoothing=0.02) for i, value in enumerate(logits.values()))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        step += 1
        if step % 100 == 0:
            print(f"{elapsed:.0f} s step {step} loss {loss.item():.3f}", flush=True)
    held_rows = np.arange(512)
    held = load_pictures(args.data, "held_out", held_rows)
    held_labels = torch.from_numpy(np.load(args.data / "held_out_labels.npy")).long()[:512]
    again = torch.cat([reconstruct(vae, part, 0.0) for part in held.split(64)])
    for title, pictures in (("drawings", held), ("reconstructions", again)):
        print(title, {key: round(value, 3) for key, value in accuracy(reader, pictures, held_labels).items()})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: (value.half() if value.is_floating_point() else value).contiguous() for key, value in reader.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
