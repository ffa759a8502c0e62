"""The toy world of the selection benchmark: drawn gnomes, a small flow transformer that learns to draw them, as a TrainableModel.

A gnome's looks are continuous and no caption says them; a scene is what its caption says, and chance.
Any number of fresh pictures of one gnome can be drawn, which is what makes a true loss measurable.
Nothing here knows the rules that are compared.

Shapes: B batch, 3 x 16 x 16 pictures in about [-1, 1], S caption slots.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE_PX, PATCH_PX, WIDTH, HEADS, BLOCKS = 16, 4, 64, 4, 3
NUM_PATCHES = (SIZE_PX // PATCH_PX) ** 2

# Values per caption slot; 0 of each is "not said", except for the name, which is always said.
NAME, COAT, HAT, PATTERN, GROUND, ACROSS, SIZE = range(7)
SLOT_VALUES = (3, 9, 9, 4, 7, 4, 3)
NOBODY, SOME_GNOME, TRIGGER = range(3)
LOOKS = (COAT, HAT, PATTERN)  # a LoRA's captions leave these out
SLOT_OFFSETS = torch.tensor([sum(SLOT_VALUES[:i]) for i in range(len(SLOT_VALUES))])

PRETRAIN_STEPS, PRETRAIN_BATCH, PRETRAIN_RATE = 2000, 64, 3e-3
BASE_VERSION = "gnomes-1"  # of the drawing and the base together; part of the kept file's name


def _generator(*parts: int) -> torch.Generator:
    seed = 0
    for part in parts:
        seed = (seed * 1_000_003 + part + 17) % (2**62)
    return torch.Generator().manual_seed(seed)


def _hue(h: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """[B] hues in [0, 1) to [B, 3, 1, 1] colours."""
    ramps = torch.stack([(h * 6 + shift) % 6 for shift in (5.0, 3.0, 1.0)], 1)
    dip = torch.minimum(ramps, 4 - ramps).clamp(0, 1)
    saturation, value = (torch.as_tensor(v, dtype=torch.float32).expand(len(h))[:, None] for v in (saturation, value))
    return (value * (1 - saturation * dip))[:, :, None, None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gnomes:
    """Looks of B gnomes."""

    numbers: Tensor  # [B, 12] uniform in [0, 1)
    pattern: Tensor  # [B] 0 plain, 1 bands, 2 stripes

    def repeat(self, count: int) -> "Gnomes":
        return Gnomes(numbers=self.numbers.expand(count, -1), pattern=self.pattern.expand(count))


def random_gnomes(count: int, source: torch.Generator) -> Gnomes:
    return Gnomes(numbers=torch.rand(count, 12, generator=source), pattern=torch.randint(0, 3, (count,), generator=source))


def draw(gnomes: Gnomes, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """One picture of each gnome in a scene of its own: [B, 3, 16, 16], and the captions [B, S] with everything said."""
    n = len(gnomes.numbers)
    coat, hat, belt, coat_value, hat_value, hat_height, hat_width, girth, beard, eye_gap, skin, density = gnomes.numbers.T
    ground, across, down, size, tilt, light, sky = torch.rand(7, n, generator=source)
    texture = F.interpolate(torch.randn(n, 3, 4, 4, generator=source), size=SIZE_PX, mode="bicubic", align_corners=True)
    grain = torch.randn(n, 3, SIZE_PX, SIZE_PX, generator=source)
    line = torch.arange(SIZE_PX) + 0.5
    y, x = line[:, None], line[None, :]

    def wide(v: Tensor) -> Tensor:
        return v[:, None, None]

    radius, angle = wide(2.5 + 1.7 * size), wide((tilt - 0.5) * 0.9)
    left, top = x - wide(5 + 6 * across), y - wide(7 + 3.5 * down)
    u = (left * angle.cos() + top * angle.sin()) / radius  # in body radii, upright
    v = (top * angle.cos() - left * angle.sin()) / radius
    sharp = 1.8 * radius

    def inside(distance: Tensor) -> Tensor:
        return torch.sigmoid(sharp * -distance)[:, None]

    def paint(picture: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
        return picture * (1 - mask) + colour * mask

    picture = _hue(ground, 0.5, 0.75) * (1 - 0.25 * wide(sky)[:, None] * (y / SIZE_PX)) + 0.17 * texture
    body = torch.sqrt((u / wide(0.75 + 0.4 * girth)) ** 2 + ((v - 0.55) / 0.85) ** 2) - 1
    waves = torch.where(wide(gnomes.pattern) == 1, v, u) * wide(3.5 + 4 * density)
    banded = torch.sigmoid(5 * torch.sin(waves))[:, None] * (wide(gnomes.pattern)[:, None] > 0)
    coat_colour = _hue(coat, 0.85, 0.35 + 0.6 * coat_value)
    cloth = coat_colour * (1 - banded) + _hue(belt, 0.7, 0.95) * banded
    picture = paint(picture, inside(body), cloth)
    face = torch.sqrt(u**2 + (v + 0.3) ** 2) - 0.52
    picture = paint(picture, inside(face), _hue(0.06 + 0.04 * skin, 0.55, 0.4 + 0.55 * skin))
    chin = torch.sqrt((u / 0.42) ** 2 + ((v - 0.05 - 0.3 * wide(beard)) / wide(0.2 + 0.45 * beard)) ** 2) - 1
    picture = paint(picture, inside(chin), torch.full((n, 3, 1, 1), 0.93))
    for side in (-1, 1):
        eye = torch.sqrt((u - side * wide(0.12 + 0.22 * eye_gap)) ** 2 + (v + 0.38) ** 2) - 0.13
        picture = paint(picture, inside(eye), torch.full((n, 3, 1, 1), 0.08))
    height = wide(0.7 + 0.9 * hat_height)
    rise = (-0.55 - v) / height  # 0 at the brim, 1 at the tip
    cone = torch.maximum(u.abs() - wide(0.5 + 0.5 * hat_width) * (1 - rise), torch.maximum(-rise, rise - 1) * height)
    picture = paint(picture, inside(cone), _hue(hat, 0.9, 0.4 + 0.6 * hat_value))
    picture = picture * (0.75 + 0.5 * light)[:, None, None, None] + 0.025 * grain

    def said(value: Tensor, slot: int) -> Tensor:
        return 1 + (value * (SLOT_VALUES[slot] - 1)).long().clamp(0, SLOT_VALUES[slot] - 2)

    captions = torch.stack([
        torch.full((n,), SOME_GNOME), said(coat, COAT), said(hat, HAT), 1 + gnomes.pattern,
        said(ground, GROUND), said(across, ACROSS), said(size, SIZE),
    ], 1)
    return (2 * picture - 1).clamp(-1.5, 1.5), captions


def subject_pictures(subject: int, count: int, stream: int) -> tuple[Tensor, Tensor]:
    """Pictures of gnome `subject` and their captions: the trigger and the scene. Streams never share a picture."""
    gnome = random_gnomes(1, _generator(7, subject))
    pictures, captions = draw(gnome.repeat(count), _generator(11, subject, stream))
    captions[:, NAME] = TRIGGER
    captions[:, LOOKS] = 0
    return pictures, captions


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(c)[:, None].chunk(6, -1)
        h = F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
        q, k, v = self.qkv(h).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + gate * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        h = F.layer_norm(x, (WIDTH,)) * (1 + scale_mlp) + shift_mlp
        return x + gate_mlp * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))


class GnomeTransformer(nn.Module):
    """Velocity (noise - picture) of a noised picture, its t and its caption."""

    def __init__(self):
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, PATCH_PX, PATCH_PX)
        self.words = nn.Embedding(sum(SLOT_VALUES), WIDTH)
        self.positions = nn.Parameter(torch.randn(1, NUM_PATCHES, WIDTH) * 0.1)
        self.times = nn.Sequential(nn.Linear(64, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.leave = nn.Linear(WIDTH, 3 * PATCH_PX * PATCH_PX)
        nn.init.normal_(self.words.weight, std=0.3)
        nn.init.zeros_(self.leave.weight)
        self.register_buffer("frequencies", 60 * torch.exp(-math.log(1000) * torch.arange(32) / 31), persistent=False)

    def forward(self, x: Tensor, t: Tensor, captions: Tensor) -> Tensor:
        side = SIZE_PX // PATCH_PX
        words = self.words(captions + SLOT_OFFSETS)
        h = torch.cat([words, self.enter(x).flatten(2).transpose(1, 2) + self.positions], 1)
        angle = t[:, None] * self.frequencies
        c = F.silu(self.times(torch.cat([angle.sin(), angle.cos()], 1)))
        for block in self.blocks:
            h = block(h, c)
        patches = self.leave(F.layer_norm(h[:, words.shape[1] :], (WIDTH,)))
        return patches.unflatten(1, (side, side)).unflatten(3, (3, PATCH_PX, PATCH_PX)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class GnomeModel:
    """The transformer as the engine's TrainableModel: rectified flow, no shift; a condition is a caption [1, S]."""

    family, key_prefix, is_flow, device = "gnomes", "diffusion_model.", True, torch.device("cpu")
    compute_dtype = torch.float32

    def __init__(self, network: GnomeTransformer):
        self.network = network.requires_grad_(False).eval()

    def sigma_at(self, t_B: Tensor) -> Tensor:
        return t_B

    def add_noise(self, latents: Tensor, noise: Tensor, sigma_B: Tensor) -> Tensor:
        sigma = sigma_B.view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def predict(self, x_t: Tensor, sigma_B: Tensor, conditions) -> Tensor:
        return x_t - sigma_B.view(-1, 1, 1, 1) * self.network(x_t, sigma_B, torch.cat(list(conditions)))

    def output_scale(self, sigma_B: Tensor) -> Tensor:
        return -sigma_B

    has_fixed_conditions = True

    def joined(self, conditions) -> list[Tensor]:
        return [torch.cat(list(conditions))]

    def condition_group(self, condition) -> str:
        return "caption"

    def blocks(self):
        return [(f"blocks.{i}", block) for i, block in enumerate(self.network.blocks)]

    def is_linear(self, module: nn.Module) -> bool:
        # The thin modulation and time layers carry no subject, as in the usual target lists.
        return isinstance(module, nn.Linear) and module.in_features >= WIDTH and module.out_features != 6 * WIDTH

    def is_conv(self, module: nn.Module) -> bool:
        return False

    @contextmanager
    def weight_for_backward(self, module: nn.Module, like: Tensor):
        yield module.weight.to(like.dtype)

    def training(self):
        return nullcontext()


def load_base(folder: Path) -> GnomeTransformer:
    """The base model, trained on random gnomes the first time and kept in `folder`; minutes on one thread."""
    path = folder / f"{BASE_VERSION}.pt"
    network = GnomeTransformer()
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network
    average = _pretrain()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(average, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    network.load_state_dict(average)
    return network


def _pretrain() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = GnomeTransformer()
    optimizer = torch.optim.AdamW(network.parameters(), PRETRAIN_RATE, betas=(0.9, 0.99), fused=True)
    average = {name: p.detach().clone() for name, p in network.state_dict().items()}
    start, total = time.perf_counter(), 0.0
    for step in range(1, PRETRAIN_STEPS + 1):
        source = _generator(3, step)
        pictures, captions = draw(random_gnomes(PRETRAIN_BATCH, source), source)
        unsaid = torch.rand(captions.shape, generator=source) < 0.3
        unsaid[:, NAME] = torch.rand(len(captions), generator=source) < 0.1  # becomes NOBODY
        captions = captions.masked_fill(unsaid, 0)
        t = torch.randn(PRETRAIN_BATCH, generator=source).sigmoid()
        noise = torch.randn(pictures.shape, generator=source)
        s = t.view(-1, 1, 1, 1)
        loss = (network((1 - s) * pictures + s * noise, t, captions) - (noise - pictures)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = PRETRAIN_RATE * min(1.0, step / 200) * 0.5 * (1.001 + math.cos(math.pi * step / PRETRAIN_STEPS))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 0.005)
        total += loss.item()
        if step % 250 == 0:
            print(f"base model: step {step} of {PRETRAIN_STEPS}, loss {total / 250:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    return average
