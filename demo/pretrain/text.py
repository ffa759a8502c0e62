"""Prompts to conditions in plain torch, equal to what the host computes with the generated CLIP-L.

Padding rows past the last position code are identical, so training keeps one of them and gives it
the attention of all (`padding_bias`). Needs a CLIP tokenizer folder, such as the host's sd1_tokenizer.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F

from ..text_encoder import (
    CODE_WIDTH, LAST_POSITION, POOL_SHARE, POSITIONS, PREVIOUS_SHARE, WIDTH, moved_dimensions, position_codes, token_embeddings,
)

START, END = 49406, 49407
ROWS = LAST_POSITION + 2        # the last row stands for every row from there to the end


def padding_bias() -> float:
    return math.log(POSITIONS - ROWS + 1)


class Tokens:
    """Word-wise cache before the tokenizer: captions are made of few words."""

    def __init__(self, folder: Path):
        from transformers import CLIPTokenizer

        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.known: dict[str, list[int]] = {}

    def __call__(self, captions: list[str]) -> torch.Tensor:
        out = torch.full((len(captions), ROWS), END)
        for row, caption in enumerate(captions):
            ids = [START]
            for piece in caption.replace(",", " ,").split():
                if piece not in self.known:
                    self.known[piece] = self.tokenizer(piece)["input_ids"][1:-1]
                ids += self.known[piece]
            ids.append(END)
            if len(ids) > LAST_POSITION:
                raise ValueError(f"the caption takes {len(ids)} tokens, more than {LAST_POSITION}: {caption!r}")
            out[row, : len(ids)] = torch.tensor(ids)
        return out


class TextEncoder:
    def __init__(self):
        self.table = torch.from_numpy(token_embeddings())
        self.codes = torch.from_numpy(position_codes())[:ROWS].float()
        self.moved = torch.from_numpy(moved_dimensions())

    def __call__(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, ROWS) token ids to context (batch, ROWS, 768) and pooled (batch, 768)."""
        x = self.table[ids].float() + self.codes
        source = torch.arange(ROWS) - 1
        source[0], source[-1] = 0, LAST_POSITION - 1
        previous = F.layer_norm(x, (WIDTH,))[:, source]
        context = x.clone()
        context[..., CODE_WIDTH:] += PREVIOUS_SHARE * previous[..., self.moved]
        end = (ids == END).int().argmax(1)
        inside = (torch.arange(ROWS) <= end[:, None]).float()[..., None]
        mean = (F.layer_norm(context, (WIDTH,)) * inside).sum(1) / inside.sum(1)
        pooled = F.layer_norm(context[torch.arange(len(ids)), end] + POOL_SHARE * mean, (WIDTH,))
        return context, pooled
