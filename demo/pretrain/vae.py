"""The demo's VAE: a narrow TAESD for training, and its expansion to the stock layout.

The stock layout is 64 channels wide with fixed blocks. A narrower network with fewer blocks is
the same function once its weights are zero-padded, since a block of zeros passes its (non-negative)
input through; it trains several times faster on a CPU. Latents are the diffusion model's own:
the SD3 latent format's scale and shift are undone by `vae_scale` and `vae_shift`.
"""

from __future__ import annotations

import torch
from torch import nn

LATENT_CHANNELS = 16
STOCK_WIDTH = 64
SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609

# (width, blocks) per resolution: encoder from full size to an eighth, decoder from an eighth to full size
ENCODER_STAGES = ((16, 1), (32, 3), (64, 3), (64, 3))
DECODER_STAGES = ((64, 3), (64, 3), (40, 3), (24, 1))
STOCK_ENCODER_BLOCKS = (1, 3, 3, 3)
STOCK_DECODER_BLOCKS = (3, 3, 3, 1)


def _conv(n_in, n_out, **options):
    return nn.Conv2d(n_in, n_out, 3, padding=1, **options)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Sequential(_conv(width, width), nn.ReLU(inplace=True), _conv(width, width), nn.ReLU(inplace=True), _conv(width, width))
        with torch.no_grad():
            self.conv[4].weight.mul_(0.1)
            self.conv[4].bias.zero_()

    def forward(self, x):
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def build_encoder() -> nn.Sequential:
    """Stages of (entry convolution, blocks); a first block's input must not be negative, as in the stock layout."""
    layers, previous = [], 3
    for index, (width, blocks) in enumerate(ENCODER_STAGES):
        layers.append(_conv(previous, width) if index == 0 else _conv(previous, width, stride=2, bias=False))
        layers += [Block(width) for _ in range(blocks)]
        previous = width
    return nn.Sequential(*layers, _conv(previous, LATENT_CHANNELS))


def build_decoder() -> nn.Sequential:
    layers = [Clamp(), _conv(LATENT_CHANNELS, DECODER_STAGES[0][0]), nn.ReLU()]
    for index, (width, blocks) in enumerate(DECODER_STAGES):
        if index:
            layers += [nn.Upsample(scale_factor=2), _conv(DECODER_STAGES[index - 1][0], width, bias=False)]
        layers += [Block(width) for _ in range(blocks)]
    return nn.Sequential(*layers, _conv(DECODER_STAGES[-1][0], 3))


def _widen(weight: torch.Tensor, n_out: int, n_in: int) -> torch.Tensor:
    out = torch.zeros(n_out, n_in, *weight.shape[2:], dtype=weight.dtype)
    out[: weight.shape[0], : weight.shape[1]] = weight
    return out


def expand_to_stock(state: dict[str, torch.Tensor], stages, stock_blocks, prefix: str, decoder: bool) -> dict[str, torch.Tensor]:
    """Narrow weights (keys of build_encoder or build_decoder) in the stock layout's keys and shapes."""
    out: dict[str, torch.Tensor] = {}

    def put(stock_index: str, key: str | None, n_out: int, n_in: int, bias: bool) -> None:
        weight = state[f"{key}.weight"] if key else torch.zeros(1, 1, 3, 3)
        out[f"{prefix}.{stock_index}.weight"] = _widen(weight, n_out, n_in)
        if bias:
            full = torch.zeros(n_out)
            if key:
                full[: len(state[f"{key}.bias"])] = state[f"{key}.bias"]
            out[f"{prefix}.{stock_index}.bias"] = full

    w, stock, narrow = STOCK_WIDTH, 0, 0
    if decoder:
        put("1", "1", w, LATENT_CHANNELS, True)
        stock = narrow = 3
    for index, (_, blocks) in enumerate(stages):
        if not decoder or index:
            step = 1 if decoder else 0
            stock, narrow = stock + step, narrow + step
            put(str(stock), str(narrow), w, 3 if not decoder and index == 0 else w, not decoder and index == 0)
            stock, narrow = stock + 1, narrow + 1
        for block in range(stock_blocks[index]):
            for part in (0, 2, 4):
                put(f"{stock}.conv.{part}", f"{narrow}.conv.{part}" if block < blocks else None, w, w, True)
            stock, narrow = stock + 1, narrow + (block < blocks)
    put(str(stock), str(narrow), 3 if decoder else LATENT_CHANNELS, w, True)
    return out


def stock_state(encoder: dict[str, torch.Tensor], decoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out = expand_to_stock(encoder, ENCODER_STAGES, STOCK_ENCODER_BLOCKS, "taesd_encoder", False)
    out |= expand_to_stock(decoder, DECODER_STAGES, STOCK_DECODER_BLOCKS, "taesd_decoder", True)
    return out | {"vae_scale": torch.tensor(SD3_SCALE), "vae_shift": torch.tensor(SD3_SHIFT)}
