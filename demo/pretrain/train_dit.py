"""Trains the demo's diffusion model on latents of the drawn portraits.

    python -m demo.pretrain.train_dit --data FOLDER --latents FOLDER --tokenizer FOLDER --out dit.pt --minutes 70

Flow matching with captions that describe people wholly, in part or not at all, and captions that
name the named people. The learning rate follows the clock; a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch

from ..captions import CLASS_WORD, NAMES, attribute_phrases, scene_phrases
from ..portraits import ATTRIBUTES, SCENE_VALUES, Identity, Scene
from .dit import TinyMMDiT
from .encode_latents import load_chunks
from .optim import MuonAdam
from .text import TextEncoder, Tokens


def people_and_scenes(labels: np.ndarray) -> list[tuple[Identity, Scene, str | None]]:
    out = []
    for row in labels.tolist():
        identity = Identity(**{k: v[i] for (k, v), i in zip(ATTRIBUTES.items(), row)})
        scene = Scene(**{k: v[i] for (k, v), i in zip(SCENE_VALUES.items(), row[6:])})
        out.append((identity, scene, NAMES[row[10]] if row[10] >= 0 else None))
    return out


def training_caption(identity: Identity, scene: Scene, name: str | None, rng: random.Random) -> str:
    if rng.random() < 0.1:
        return ""
    described = list(attribute_phrases(identity).values())
    kind = rng.random()
    if name and kind < 0.85:
        subject, described = f"{name} {CLASS_WORD}", []
    else:
        subject = CLASS_WORD
        if kind > 0.8 and not name:
            described = []
        elif kind > 0.6:
            described = [phrase for phrase in described if rng.random() < 0.5]
    said = [phrase for phrase in scene_phrases(scene) if rng.random() > 0.04]
    return ", ".join((subject, *described, *said))


def draw_sigmas(count: int, generator: torch.Generator) -> torch.Tensor:
    """Spread evenly, then shifted a little towards noise, where a small picture is decided."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return 2 * u / (1 + u)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--muon-lr", type=float, default=0.015)
    parser.add_argument("--adam-lr", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    latents = load_chunks(args.latents, "train")
    labels = people_and_scenes(np.load(args.data / "train_labels.npy"))
    held_latents = load_chunks(args.latents, "held_out").float()
    held_labels = people_and_scenes(np.load(args.data / "held_out_labels.npy"))[: len(held_latents)]
    tokens, text = Tokens(args.tokenizer), TextEncoder()
    model = TinyMMDiT()
    named = list(model.named_parameters())
    hidden = [p for n, p in named if p.ndim == 2 and "joint_blocks" in n and "adaLN" not in n]
    chosen = {id(p) for p in hidden}
    other = [p for _, p in named if id(p) not in chosen]
    optimiser = MuonAdam(hidden, other, muon_lr=args.muon_lr, adam_lr=args.adam_lr, weight_decay=0.02)
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
    rng, generator = random.Random(step), torch.Generator().manual_seed(step)
    order: list[int] = []
    budget, running, last_save = args.minutes * 60, None, time.time()

    def elapsed() -> float:
        return used_seconds + time.time() - clock

    def loss_of(rows_latents, captions, noise_generator):
        context, pooled = text(tokens(captions))
        sigma = draw_sigmas(len(captions), noise_generator)
        noise = torch.randn(rows_latents.shape, generator=noise_generator)
        s = sigma[:, None, None, None]
        velocity = model((1 - s) * rows_latents + s * noise, sigma, context, pooled)
        return (velocity - (noise - rows_latents)).square().mean()

    def save() -> None:
        held = [p.detach().clone() for p in parameters]
        for p, e in zip(parameters, ema):
            p.data.copy_(e)
        quiet, same = random.Random(1), torch.Generator().manual_seed(1)
        with torch.no_grad():
            held_loss = loss_of(held_latents, [training_caption(*row, quiet) for row in held_labels], same).item()
        torch.save(model.state_dict(), args.out)
        for p, h in zip(parameters, held):
            p.data.copy_(h)
        torch.save({"step": step, "seconds": elapsed(), "parameters": held, "ema": ema, "optimiser": optimiser.state_dict()}, resume)
        print(f"  held out {held_loss:.4f}", flush=True)

    while (now := elapsed()) < budget:
        progress = now / budget
        optimiser.set_factor(min(1.0, (step + 1) / 100) * (1.0 if progress < 0.4 else max(0.02, (1 - progress) / 0.6)))
        if len(order) < args.batch:
            order = rng.sample(range(len(latents)), len(latents))
        rows, order = order[: args.batch], order[args.batch :]
        loss = loss_of(latents[rows].float(), [training_caption(*labels[row], rng) for row in rows], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        torch._foreach_lerp_(ema, [p.detach() for p in parameters], 1 - min(0.999, step / (step + 50)))
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{elapsed():.0f} s step {step} loss {running:.4f}", flush=True)
        if time.time() - last_save > 180:
            save()
            last_save = time.time()
            latents = load_chunks(args.latents, "train")
    save()


if __name__ == "__main__":
    main()
