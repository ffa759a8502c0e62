"""The demo's diffusion model in plain torch: the SD3 layout with 3 blocks of width 192.

Module names are the stock file's keys, so a state dict exports as it is, once the two text inputs
are zero-padded to their stock widths. Also the flow-matching sampler that previews it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .text import ROWS, padding_bias

BLOCKS = 3
WIDTH = 64 * BLOCKS
TEXT_WIDTH, CONTEXT_WIDTH, POOLED_WIDTH = 768, 4096, 2048
LATENT_CHANNELS, PATCH, GRID = 16, 2, 8
SHIFT = 3.0


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


class Attention(nn.Module):
    def __init__(self, pre_only):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        if not pre_only:
            self.proj = nn.Linear(WIDTH, WIDTH)
        self.ln_q, self.ln_k = RMSNorm(64), RMSNorm(64)

    def heads(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, BLOCKS, 64).unbind(2)
        return self.ln_q(q), self.ln_k(k), v


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _modulate(x, shift, scale):
    return torch.addcmul(shift[:, None], F.layer_norm(x, (WIDTH,), eps=1e-6), 1 + scale[:, None])


class Stream(nn.Module):
    def __init__(self, pre_only):
        super().__init__()
        self.pre_only = pre_only
        self.attn = Attention(pre_only)
        if not pre_only:
            self.mlp = Mlp()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, (2 if pre_only else 6) * WIDTH))

    def before(self, x, c):
        parts = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.heads(_modulate(x, parts[0], parts[1])), parts[2:]

    def after(self, x, attended, parts):
        gate, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate[:, None] * self.attn.proj(attended)
        return x + gate_mlp[:, None] * self.mlp(_modulate(x, shift_mlp, scale_mlp))


class JointBlock(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.context_block, self.x_block = Stream(last), Stream(False)

    def forward(self, context, x, c, mask):
        text, text_parts = self.context_block.before(context, c)
        image, image_parts = self.x_block.before(x, c)
        q, k, v = (torch.cat(pair, 1).transpose(1, 2) for pair in zip(text, image))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        rows = context.shape[1]
        if not self.context_block.pre_only:
            context = self.context_block.after(context, out[:, :rows], text_parts)
        return context, self.x_block.after(x, out[:, rows:], image_parts)


class Embedder(nn.Module):
    def __init__(self, n_in):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(n_in, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, x):
        return self.mlp(x)


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(LATENT_CHANNELS, WIDTH, PATCH, PATCH)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, PATCH * PATCH * LATENT_CHANNELS)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x, c):
        return self.linear(_modulate(x, *self.adaLN_modulation(c).chunk(2, dim=1)))


def _grid_positions() -> torch.Tensor:
    """Sines and cosines over a GRID x GRID map; a starting point, trained afterwards."""
    place = torch.linspace(-1, 1, GRID)
    angle = place[:, None] * math.pi * torch.arange(1, WIDTH // 8 + 1) * 0.25
    line = torch.cat([angle.sin(), angle.cos()], 1)
    y, x = line[:, None].expand(GRID, GRID, -1), line[None].expand(GRID, GRID, -1)
    table = torch.cat([x, y, x * y, torch.zeros_like(x)], -1)
    return table.reshape(1, GRID * GRID, WIDTH) * 0.5


def timestep_features(t: torch.Tensor) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angle = t[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], -1)


class TinyMMDiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(_grid_positions())
        self.x_embedder = PatchEmbed()
        self.t_embedder, self.y_embedder = Embedder(256), Embedder(TEXT_WIDTH)
        self.context_embedder = nn.Linear(TEXT_WIDTH, WIDTH)
        self.joint_blocks = nn.ModuleList(JointBlock(i == BLOCKS - 1) for i in range(BLOCKS))
        self.final_layer = FinalLayer()
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.ndim == 2 and "adaLN" not in name:
                    nn.init.xavier_uniform_(p)
                elif "adaLN" in name or name.startswith("final_layer.linear"):
                    p.zero_()
            self.final_layer.linear.weight.zero_()

    def forward(self, x, sigma, context, pooled):
        """Velocity (noise - latent) of `x` at `sigma` in [0, 1]; context has ROWS rows, the last standing for all padding."""
        side = x.shape[-1] // PATCH
        margin = (GRID - side) // 2
        positions = self.pos_embed.reshape(GRID, GRID, WIDTH)[margin : margin + side, margin : margin + side]
        h = self.x_embedder(x) + positions.reshape(1, -1, WIDTH)
        c = self.t_embedder(timestep_features(sigma * 1000)) + self.y_embedder(pooled)
        mask = torch.zeros(1, 1, 1, ROWS + h.shape[1])
        mask[..., ROWS - 1] = padding_bias()
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, h = block(context, h, c, mask)
        h = self.final_layer(h, c).reshape(len(x), side, side, PATCH, PATCH, LATENT_CHANNELS)
        return torch.einsum("nhwpqc->nchpwq", h).reshape(x.shape)


def stock_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The stock file's tensors: text inputs zero-padded, half precision."""
    out = {key: value.half().contiguous() for key, value in state.items()}
    for key, width in (("context_embedder.weight", CONTEXT_WIDTH), ("y_embedder.mlp.0.weight", POOLED_WIDTH)):
        out[key] = F.pad(out[key], (0, width - out[key].shape[1]))
    return out


@torch.no_grad()
def sample(model, condition, empty, *, seeds, steps=20, cfg=3.0, side=12) -> torch.Tensor:
    """Euler steps over the shifted flow schedule; conditions are (context, pooled) pairs."""
    context, pooled = (torch.cat([c, e.expand_as(c)]) for c, e in zip(condition, empty))
    x = torch.stack([torch.randn(LATENT_CHANNELS, side, side, generator=torch.Generator().manual_seed(s)) for s in seeds])
    u = torch.linspace(1, 0, steps + 1)
    sigmas = SHIFT * u / (1 + (SHIFT - 1) * u)
    for now, after in zip(sigmas, sigmas[1:]):
        v, v_empty = model(torch.cat([x, x]), now.expand(2 * len(x)), context, pooled).chunk(2)
        x = x + (after - now) * (v_empty + cfg * (v - v_empty))
    return x
