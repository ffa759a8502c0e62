"""A small flow model for the engine's tests without a host, and pictures for it.

Its blocks add in place, as Flux's do; its layers are convolutions of 1 x 1 and 3 x 3 and linear layers with and without a bias.
"""

from contextlib import contextmanager, nullcontext

import torch
from pistachio.training.batches import TrainItem
from pistachio.training.evaluation import EvalItem


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width, bias=False)

    def forward(self, x):
        x += self.down(torch.nn.functional.silu(self.up(self.norm(x))))  # in place, as Flux does
        return x


class Network(torch.nn.Module):
    def __init__(self, channels=3, width=8):
        super().__init__()
        self.enter = torch.nn.Conv2d(channels + 2, width, 1)
        self.blocks = torch.nn.ModuleList(Block(width) for _ in range(2))
        self.leave = torch.nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x):
        h = self.enter(x).movedim(1, -1)
        for block in self.blocks:
            h = block(h)
        return self.leave(h.movedim(-1, 1))


class Flow:
    """Rectified flow; a condition is a number painted as a plane."""

    family, key_prefix, is_flow, device = "flow", "diffusion_model.", True, torch.device("cpu")

    def __init__(self, dtype=torch.float32):
        torch.manual_seed(0)
        self.network = Network().to(dtype).requires_grad_(False)
        self.dtype = dtype

    def sigma_at(self, t_B):
        return t_B.to(self.dtype)

    def add_noise(self, latents, noise, sigma_B):
        s = sigma_B.view(-1, 1, 1, 1)
        return s * noise + (1 - s) * latents

    def predict(self, x_t, sigma_B, conditions):
        plane = torch.ones_like(x_t[:, :1])
        said = torch.as_tensor(conditions, dtype=x_t.dtype).view(-1, 1, 1, 1) * plane
        s = sigma_B.view(-1, 1, 1, 1)
        return x_t - s * self.network(torch.cat([x_t, s * plane, said], 1))

    def output_scale(self, sigma_B):
        return -sigma_B

    has_fixed_conditions = True

    def joined(self, conditions):
        return torch.tensor(conditions, dtype=self.dtype)

    def condition_group(self, condition):
        return "one"

    def blocks(self):
        return [(f"blocks.{i}", block) for i, block in enumerate(self.network.blocks)]

    def is_linear(self, module):
        return isinstance(module, torch.nn.Linear)

    def is_conv(self, module):
        return isinstance(module, torch.nn.Conv2d)

    @contextmanager
    def weight_for_backward(self, module, like):
        yield module.weight

    def training(self):
        return nullcontext()

    def weights_on_host(self):
        return nullcontext()


def pictures(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randn(1, 3, 4, 4, generator=generator)
    return [pattern + 0.3 * torch.randn(1, 3, 4, 4, generator=generator) for _ in range(count)]


def train_items(count=6):
    return [
        TrainItem(content_hash=f"{i:02d}", latents=x, condition=1.0, group="one", prior_condition=-1.0, prior_group="one")
        for i, x in enumerate(pictures(count + 4)[:count])
    ]


def eval_items(count=4, num_train=6):
    return [
        EvalItem(content_hash=f"held-{i}", latents=x, condition=1.0, group="one")
        for i, x in enumerate(pictures(count + num_train)[num_train:])
    ]


class OutOfPlace(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, x):
        h = self.inner.enter(x).movedim(1, -1)
        for block in self.inner.blocks:
            h = h + block.down(torch.nn.functional.silu(block.up(block.norm(h))))
        return self.inner.leave(h.movedim(-1, 1))
