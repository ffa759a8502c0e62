"""Trains the demo's VAE, first encoder and decoder together, then the decoder alone.

    python -m demo.pretrain.train_vae --data FOLDER --out vae.pt --minutes 25
    python -m demo.pretrain.train_vae --data FOLDER --out vae_fine.pt --start vae.pt --latents FOLDER --minutes 60

With `--anchor` the encoder goes on too, held to those latents so that a diffusion model trained on them stays right.

Edges, eyes and mouths weigh more in the loss. Noise on the latents keeps the decoder tolerant of
the diffusion model's errors. The learning rate follows the clock; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .encode_latents import load_chunks
from .optim import MuonAdam
from .vae import build_decoder, build_encoder


class Crops:
    """Random crops with their weights; eyes and mouths weigh `extra` more."""

    def __init__(self, folder: Path, name: str, seed: int, extra: float):
        self.pictures = np.load(folder / f"{name}.npy", mmap_mode="r")
        self.boxes = np.load(folder / f"{name}_boxes.npy")
        self.rng = np.random.default_rng(seed)
        self.extra = extra

    def weight(self, row: int) -> np.ndarray:
        weight = np.ones(self.pictures.shape[1:3], np.float32)
        for k in (0, 4):
            left, top, right, bottom = self.boxes[row, k : k + 4]
            weight[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] += self.extra
        return weight

    def batch(self, count: int, crop: int, rows=None):
        rows = self.rng.integers(0, len(self.pictures), count) if rows is None else rows
        limit = (self.pictures.shape[1] - crop) // 8
        pictures = np.empty((len(rows), crop, crop, 3), np.uint8)
        weights = np.empty((len(rows), crop, crop), np.float32)
        for i, row in enumerate(rows):
            y, x = 8 * self.rng.integers(0, limit + 1, 2)
            pictures[i] = self.pictures[row, y : y + crop, x : x + crop]
            weights[i] = self.weight(row)[y : y + crop, x : x + crop]
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255)
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(weights)[:, None]


def reconstruction_loss(output, target, weight, edge_weight: float):
    error = output - target
    edges = sum((error.diff(dim=d).abs() * weight.narrow(d, 0, weight.shape[d] - 1)).mean() for d in (2, 3))
    # flat colour is most of a drawing, and edges alone teach it slowly
    flat = sum(F.avg_pool2d(error, size).square().mean() for size in (4, 8))
    return (weight * (8 * error.square() + 0.3 * error.abs())).mean() + edge_weight * edges + 8 * flat


@torch.no_grad()
def psnr_db(encoder, decoder, folder: Path, count: int) -> tuple[float, float]:
    """On held-out pictures: of whole pictures (mean over pictures), and of the eyes and mouths alone."""
    held_out = Crops(folder, "held_out", 0, 1.0)
    whole, part = [], []
    for start in range(0, count, 32):
        images, weights = held_out.batch(0, 96, np.arange(start, min(start + 32, count)))
        error = (decoder(encoder(images)).clamp(0, 1) - images).square()
        whole.append(-10 * error.mean((1, 2, 3)).log10())
        inside = (weights > 1).float()
        part.append(-10 * ((error * inside).sum((1, 2, 3)) / (3 * inside.sum((1, 2, 3)))).log10())
    return torch.cat(whole).mean().item(), torch.cat(part).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--latents", type=Path, help="train the decoder alone, on these latents of whole pictures")
    parser.add_argument("--anchor", type=float, default=0.0, help="with --latents: train the encoder too, at this cost per squared change of a latent")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--muon-lr", type=float, default=0.01)
    parser.add_argument("--adam-lr", type=float, default=1e-3)
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--extra", type=float, default=1.5)
    parser.add_argument("--edges", type=float, default=0.4, help="weight of the edges' error")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    whole_pictures = args.latents is not None
    decoder_only = whole_pictures and not args.anchor
    encoder, decoder = (m.to(memory_format=torch.channels_last) for m in (build_encoder(), build_decoder()))
    if args.start:
        saved = torch.load(args.start, weights_only=True)
        encoder.load_state_dict(saved["encoder"])
        decoder.load_state_dict(saved["decoder"])
    trained = [decoder] if decoder_only else [encoder, decoder]
    encoder.requires_grad_(not decoder_only)
    named = [(n, p) for m in trained for n, p in m.named_parameters()]
    hidden = [p for n, p in named if p.ndim == 4 and p.shape[1] >= 16 and p.shape[0] >= 16]
    chosen = {id(p) for p in hidden}
    other = [p for _, p in named if id(p) not in chosen]
    optimiser = MuonAdam(hidden, other, muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    parameters = [p for _, p in named]
    ema = [p.detach().clone() for p in parameters]
    step, used_seconds, clock = 0, 0.0, time.time()
    resume = args.out.with_suffix(".resume")
    if resume.exists():
        state = torch.load(resume, weights_only=True)
        step, used_seconds = state["step"], state["seconds"]
        for p, e, value, average in zip(parameters, ema, state["parameters"], state["ema"]):
            p.data.copy_(value)
            e.copy_(average)
        optimiser.load_state_dict(state["optimiser"])
        for group, base_lr in zip(optimiser.param_groups, (args.muon_lr, args.adam_lr)):
            group["base_lr"] = base_lr
    data = Crops(args.data, "train", step, args.extra)
    latents = load_chunks(args.latents, "train") if whole_pictures else None
    budget = args.minutes * 60
    running, last_save = None, time.time()

    def elapsed() -> float:
        return used_seconds + time.time() - clock

    def save() -> None:
        held = [p.detach().clone() for p in parameters]
        for p, e in zip(parameters, ema):
            p.data.copy_(e)
        whole, part = psnr_db(encoder, decoder, args.data, 96)
        torch.save({"encoder": encoder.state_dict(), "decoder": decoder.state_dict()}, args.out)
        for p, h in zip(parameters, held):
            p.data.copy_(h)
        torch.save({"step": step, "seconds": elapsed(), "parameters": held, "ema": ema, "optimiser": optimiser.state_dict()}, resume)
        print(f"  held out {whole:.2f} dB, eyes and mouths {part:.2f} dB", flush=True)

    while (now := elapsed()) < budget:
        progress = now / budget
        optimiser.set_factor(min(1.0, (step + 1) / 50) * max(0.02, min(1.0, (1 - progress) / 0.7)))
        if whole_pictures:
            rows = data.rng.integers(0, len(latents), args.batch)
            images, weights = data.batch(0, data.pictures.shape[1], rows)
            given = latents[rows].float().contiguous(memory_format=torch.channels_last)
        else:
            images, weights = data.batch(args.batch, args.crop)
        latent = given if decoder_only else encoder(images)
        loss = reconstruction_loss(decoder(latent + args.noise * torch.randn_like(latent)), images, weights, args.edges)
        total = loss
        if args.anchor:
            total = loss + args.anchor * (latent - given).square().mean()
        elif not decoder_only:
            deviation, mean = torch.std_mean(latent, dim=(0, 2, 3))
            total = loss + 0.02 * (mean.square() + (deviation - 1).square()).mean()
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        decay = min(0.998, step / (step + 30))
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - decay)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            print(f"{elapsed():.0f} s step {step} loss {running:.4f} std {latent.std().item():.2f}", flush=True)
        if time.time() - last_save > 180:
            save()
            last_save = time.time()
            latents = load_chunks(args.latents, "train") if whole_pictures else None
    save()


if __name__ == "__main__":
    main()
