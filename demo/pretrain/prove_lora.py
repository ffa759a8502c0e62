"""Shows in plain torch that a LoRA can teach this base the target: recipe, identity, specificity.

    python -m demo.pretrain.prove_lora --tokenizer FOLDER --vae vae.pt [--steps 500] [--lr 1e-3] [--prior 0.5]

Rank 16 on every linear layer. Part of the batch drops the trigger and is held to the frozen base's
own prediction, which keeps the LoRA to its trigger.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ..attributes import identity_matches, identity_share
from ..captions import TARGET, caption, target_caption
from ..install import WEIGHTS
from ..make_character import FOLDER, character_scenes
from ..prompts import evaluation_prompts
from .evaluate import Studio, sheet
from .train_dit import draw_sigmas
from .vae import build_encoder


class LoraLinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base, self.on = base, True
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        out = self.base(x)
        return out + F.linear(F.linear(x, self.down), self.up) if self.on else out


def wrap(model: nn.Module, rank: int) -> list[LoraLinear]:
    wrapped = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                lora = LoraLinear(child, rank)
                setattr(module, name, lora)
                wrapped.append(lora)
    return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dit", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--prior", type=float, default=0.5, help="share of the batch without the trigger")
    parser.add_argument("--pictures", type=int, default=16)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    studio = Studio(args.tokenizer, args.dit, args.vae)
    encoder = build_encoder()
    if args.vae:
        encoder.load_state_dict(torch.load(args.vae, weights_only=True)["encoder"])
    else:
        packed = load_file(WEIGHTS / "vae.safetensors")
        encoder.load_state_dict({k.removeprefix("encoder."): v.float() for k, v in packed.items() if k.startswith("encoder.")})
    from PIL import Image

    scenes = character_scenes()[: args.pictures]
    images = np.stack([np.asarray(Image.open(FOLDER / f"portrait_{i + 1:02d}.png").convert("RGB")) for i in range(args.pictures)])
    with torch.no_grad():
        latents = encoder(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    with_trigger = studio.text(studio.tokens([target_caption(s) for s in scenes]))
    without = studio.text(studio.tokens([caption(s) for s in scenes]))
    model = studio.model.requires_grad_(False)
    loras = wrap(model, args.rank)
    weights = [p for lora in loras for p in (lora.down, lora.up)]
    optimiser = torch.optim.AdamW(weights, args.lr, weight_decay=0.01)
    ema = [p.detach().clone() for p in weights]
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    held = round(args.batch * args.prior)
    start = time.time()
    for step in range(1, args.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = args.lr * min(1, step / 20) * (0.5 + 0.5 * np.cos(np.pi * step / args.steps))
        rows = [rng.randrange(args.pictures) for _ in range(args.batch)]
        context, pooled = (torch.cat([w[rows[:held]], t[rows[held:]]]) for w, t in zip(without, with_trigger))
        x0 = latents[rows]
        sigma = draw_sigmas(args.batch, generator)[torch.randperm(args.batch, generator=generator)]
        noise = torch.randn(x0.shape, generator=generator)
        s = sigma[:, None, None, None]
        noisy = (1 - s) * x0 + s * noise
        wanted = noise - x0
        if held:
            for lora in loras:
                lora.on = False
            with torch.no_grad():
                wanted[:held] = model(noisy[:held], sigma[:held], context[:held], pooled[:held])
            for lora in loras:
                lora.on = True
        loss = (model(noisy, sigma, context, pooled) - wanted).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        torch._foreach_lerp_(ema, [p.detach() for p in weights], 1 - min(0.98, step / (step + 10)))
    seconds = time.time() - start
    for p, e in zip(weights, ema):
        p.data.copy_(e)
    prompts = evaluation_prompts()
    seeds = [p.seed for p in prompts]
    hit = studio.draw([p.with_trigger for p in prompts], seeds)
    miss = studio.draw([p.without_trigger for p in prompts], seeds)
    other = studio.draw([p.other_prompt for p in prompts], seeds)
    matches = identity_matches(list(hit), TARGET)
    print(f"{args.steps} steps in {seconds:.0f} s: with trigger {identity_share(list(hit), TARGET):.3f} (all six {np.mean([m == 6 for m in matches]):.2f}), "
          f"without {identity_share(list(miss), TARGET):.3f}, "
          f"other people {np.mean([identity_share([o], p.other_person) for o, p in zip(other, prompts)]):.3f}", flush=True)
    if args.sheet:
        sheet([hit[:12], miss[:12], other[:12]], args.sheet)


if __name__ == "__main__":
    main()
