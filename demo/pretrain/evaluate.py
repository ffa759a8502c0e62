"""Measures the shipped (or a given) model: caption control, identity of the base, and a sheet to look at.

    python -m demo.pretrain.evaluate --tokenizer FOLDER [--dit dit.pt] [--vae vae_fine.pt] [--sheet sheet.png]

The same sampler settings as the demo's graph: euler, 20 steps, cfg 3, shift 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ..attributes import identity_share, read_attributes
from ..captions import TARGET, caption, named_identities
from ..install import WEIGHTS
from ..portraits import ATTRIBUTES, SCENE_VALUES
from ..prompts import EvaluationPrompt, evaluation_prompts
from .dit import TinyMMDiT, sample
from .text import TextEncoder, Tokens
from .vae import build_decoder


class Studio:
    """Prompts to pictures in plain torch."""

    def __init__(self, tokenizer: Path, dit: Path | None = None, vae: Path | None = None):
        self.tokens, self.text = Tokens(tokenizer), TextEncoder()
        self.model = TinyMMDiT().eval()
        state = torch.load(dit, weights_only=True) if dit else load_file(WEIGHTS / "dit.safetensors")
        self.model.load_state_dict({key: value.float() for key, value in state.items()})
        self.decoder = build_decoder().eval().to(memory_format=torch.channels_last)
        if vae:
            decoder = torch.load(vae, weights_only=True)["decoder"]
        else:
            decoder = {key.removeprefix("decoder."): v for key, v in load_file(WEIGHTS / "vae.safetensors").items() if key.startswith("decoder.")}
        self.decoder.load_state_dict({key: value.float() for key, value in decoder.items()})

    @torch.no_grad()
    def draw(self, prompts: list[str], seeds: list[int]) -> np.ndarray:
        """uint8 pictures (count, 96, 96, 3)."""
        latents = sample(self.model, self.text(self.tokens(prompts)), self.text(self.tokens([""])), seeds=seeds)
        return self.decode(latents)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        pictures = self.decoder(latents.contiguous(memory_format=torch.channels_last)).clamp(0, 1)
        return (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def sheet(rows: list[np.ndarray], path: Path, zoom: int = 2) -> None:
    picture = Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in rows], 0))
    picture.resize((picture.width * zoom, picture.height * zoom), Image.LANCZOS).save(path)


def control(prompts: list[EvaluationPrompt], pictures: np.ndarray) -> dict[str, float]:
    """Share of pictures in which each said attribute and scene part is found."""
    found = read_attributes(list(pictures))
    wanted = [{**{k: getattr(p.other_person, k) for k in ATTRIBUTES}, **{k: getattr(p.scene, k) for k in SCENE_VALUES}} for p in prompts]
    return {key: round(float(np.mean([f[key] == w[key] for f, w in zip(found, wanted)])), 3) for key in wanted[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--dit", type=Path)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    studio = Studio(args.tokenizer, args.dit, args.vae)
    prompts = evaluation_prompts(args.count)
    seeds = [p.seed for p in prompts]
    others = studio.draw([p.other_prompt for p in prompts], seeds)
    print("control", control(prompts, others))
    people = list(named_identities().items())[: args.count]
    named = studio.draw([caption(p.scene, name=name) for p, (name, _) in zip(prompts, people)], seeds[: len(people)])
    print("named people", round(float(np.mean([identity_share([picture], who) for picture, (_, who) in zip(named, people)])), 3))
    base = studio.draw([p.with_trigger for p in prompts], seeds)
    print("base with trigger", round(identity_share(list(base), TARGET), 3))
    plain = studio.draw([p.without_trigger for p in prompts], seeds)
    print("base without trigger", round(identity_share(list(plain), TARGET), 3))
    if args.sheet:
        sheet([others[:12], others[12:24], named[:12], base[:12], plain[:12]], args.sheet)


if __name__ == "__main__":
    main()
