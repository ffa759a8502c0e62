"""Held-out loss: which draws are made, and how a model is measured on them.

Owns the plan of (timestep, noise) per held-out picture, the measurement, the self-test and the
schedule. It does not know checkpoints, weight averages or statistics: the caller installs the
weights, `selection` reads the numbers. Protocol: docs of the pack, "Choosing the checkpoint".

Shapes: B batch; latents are [1, C, H, W] or [1, C, T, H, W] per picture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PistachioError
from .messages import message
from .model import Condition, TrainableModel
from .seeds import seed_from
from .timesteps import Distribution, sample

log = logging.getLogger("pistachio")

# A change of anything that moves the numbers (draws, seeds, loss) needs a new version: it is part of every seed.
PROTOCOL_VERSION = "pistachio-eval-1"
LOSS_SPACE = "network output, unweighted MSE"

# Above this many pictures each takes only a rotated part of the timesteps: more pictures beat more draws.
ROTATE_ABOVE_IMAGES = 16
# With this many pictures or fewer, under MIN_TIMESTEPS_FEW_IMAGES timesteps the choice gets visibly worse.
FEW_IMAGES = 8
MIN_TIMESTEPS_FEW_IMAGES = 4
MIN_TIMESTEPS = 2

# Share of the training time that evaluation may take, and the longest share of a run between two evaluations.
EVALUATION_BUDGET = 0.10
LONGEST_INTERVAL = 1 / 8

# Largest relative difference in a mean loss that rounding explains, by compute precision.
RELATIVE_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}

Errors = dict[str, tuple[float, ...]]  # content hash -> one error per draw, in the order of t


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalItem:
    content_hash: str
    latents: Tensor  # [1, C, (T,) H, W] in the network's space
    condition: Condition
    group: str  # pictures of equal shape and group share a forward pass

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latents.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    content_hash: str
    index: int  # j, position in the grid of timesteps
    t: float  # in (0, 1), 1 is pure noise
    seed: int  # of the noise


def allowed_timesteps(num_timesteps: int, num_images: int) -> int:
    """The nearest number of timesteps a picture that the protocol accepts for this many held-out pictures."""
    floor = MIN_TIMESTEPS_FEW_IMAGES if num_images <= FEW_IMAGES else MIN_TIMESTEPS
    return max(num_timesteps, floor)


def plan_draws(
    items: Sequence[EvalItem], *, num_timesteps: int, distribution: Distribution | str, for_choice: bool = True
) -> tuple[Draw, ...]:
    """Stratified timesteps t_j = F^-1((j + 0.5) / T), each with its own noise seed, sorted by picture and t.

    Depends on the set of pictures alone, never on their order. The model's shift is applied later,
    by `sigma_at`, as it is in training. `for_choice`: the draws decide on a checkpoint, so their least number holds.
    """
    hashes = sorted(item.content_hash for item in items)
    if len(set(hashes)) != len(hashes):
        raise PistachioError("A picture is held out twice. Remove the duplicate pictures from the folder.")
    by_hash = {item.content_hash: item for item in items}
    grid_size = allowed_timesteps(num_timesteps, len(hashes)) if for_choice else num_timesteps
    if grid_size != num_timesteps:
        log.warning(
            "%d timesteps a picture are too few for %d held-out pictures: using %d.", num_timesteps, len(hashes), grid_size
        )
    places = (torch.arange(grid_size, dtype=torch.float64) + 0.5) / grid_size
    draws = []
    for rank, content_hash in enumerate(hashes):
        shape = by_hash[content_hash].shape
        grid = sample(distribution, places, shape).tolist()
        for j in _timestep_indices(rank, len(hashes), grid_size):
            draws.append(Draw(content_hash=content_hash, index=j, t=grid[j], seed=noise_seed(content_hash, shape, j)))
    return tuple(draws)


def _timestep_indices(rank: int, num_images: int, grid_size: int) -> list[int]:
    if num_images <= ROTATE_ABOVE_IMAGES:
        return list(range(grid_size))
    count = min(grid_size, max(2, min(4, ROTATE_ABOVE_IMAGES * 8 // num_images)))
    offset = rank % math.ceil(grid_size / count)
    return sorted({(offset + i * grid_size // count) % grid_size for i in range(count)})


def noise_seed(content_hash: str, latent_shape: Sequence[int], j: int, k: int = 0) -> int:
    """Seed of the k-th noise of a picture at its j-th timestep."""
    return seed_from(PROTOCOL_VERSION, content_hash, "x".join(map(str, latent_shape)), j, k)


def noise_for(seed: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 on the CPU, from a generator of its own: the same on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)


def evaluate(
    model: TrainableModel,
    items: Sequence[EvalItem],
    draws: Sequence[Draw],
    *,
    batch_size: int,
    check_interrupted: Callable[[], None] = lambda: None,
) -> Errors:
    """Unweighted MSE in the network's output space, for each draw: mean |x0_hat - x0|^2 / c_out^2.

    Batches have one fixed shape per group of pictures (the last is padded), so that a backend that
    picks its kernel by shape gives the same numbers at each checkpoint. Leaves the global random state alone.
    """
    by_hash = {item.content_hash: item for item in items}
    missing = sorted({draw.content_hash for draw in draws} - set(by_hash))
    if missing:
        raise PistachioError(f"Held-out picture {missing[0][:8]} is no longer in the data. Train under a new run name.")
    found: dict[tuple[str, int], float] = {}
    with torch.no_grad(), undisturbed(model):
        for batch, padding in _batches(by_hash, draws, batch_size):
            check_interrupted()
            errors = _batch_errors(model, by_hash, batch + [batch[0]] * padding)
            found.update({(draw.content_hash, draw.index): error for draw, error in zip(batch, errors)})
    ordered = sorted(draws, key=lambda draw: (draw.content_hash, draw.index))
    return {
        content_hash: tuple(found[d.content_hash, d.index] for d in ordered if d.content_hash == content_hash)
        for content_hash in dict.fromkeys(draw.content_hash for draw in ordered)
    }


def t_values(draws: Sequence[Draw]) -> Errors:
    """The timestep of each error that `evaluate` returns, in the same places."""
    ordered = sorted(draws, key=lambda draw: (draw.content_hash, draw.index))
    return {
        content_hash: tuple(d.t for d in ordered if d.content_hash == content_hash)
        for content_hash in dict.fromkeys(draw.content_hash for draw in ordered)
    }


def _batches(by_hash: dict[str, EvalItem], draws: Sequence[Draw], batch_size: int) -> Iterator[tuple[list[Draw], int]]:
    groups: dict[tuple, list[Draw]] = {}
    for draw in sorted(draws, key=lambda draw: (draw.content_hash, draw.index)):
        item = by_hash[draw.content_hash]
        groups.setdefault((item.shape, item.group), []).append(draw)
    for key in sorted(groups):
        members = groups[key]
        # The smallest equal size that needs no more forwards: padding is then less than one draw a batch.
        size = math.ceil(len(members) / math.ceil(len(members) / max(1, batch_size)))
        for start in range(0, len(members), size):
            batch = members[start : start + size]
            yield batch, size - len(batch)


def _batch_errors(model: TrainableModel, by_hash: dict[str, EvalItem], draws: list[Draw]) -> list[float]:
    pictures = [by_hash[draw.content_hash] for draw in draws]
    latents = torch.cat([item.latents for item in pictures]).to(model.device, torch.float32)
    noise = torch.cat([noise_for(d.seed, item.shape) for d, item in zip(draws, pictures)]).to(model.device)
    t_B = torch.tensor([draw.t for draw in draws], dtype=torch.float32, device=model.device)
    sigma_B = model.sigma_at(t_B)
    x_t = model.add_noise(latents, noise, sigma_B)
    denoised = model.predict(x_t, sigma_B, [item.condition for item in pictures]).float()
    squared_B = (denoised - latents).square().flatten(1).mean(1)
    return (squared_B.double() / model.output_scale(sigma_B).flatten().double().square()).tolist()


@contextmanager
def undisturbed(model: TrainableModel) -> Iterator[None]:
    """Dropout off, and the random state as it was afterwards."""
    with _dropout_off(model.network), _isolated_rng(model.device):
        yield


@contextmanager
def _dropout_off(network: torch.nn.Module) -> Iterator[None]:
    switched = [module for module in network.modules() if module.training]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


@contextmanager
def _isolated_rng(device: torch.device) -> Iterator[None]:
    """A model that draws random numbers of its own draws the same ones each time, and the caller's stream goes on unmoved."""
    accelerated = device.type not in ("cpu", "meta")
    backend = device.type if accelerated else "cuda"  # fork_rng wants a name even for no devices
    indices = [device.index if device.index is not None else 0] if accelerated else []
    with torch.random.fork_rng(devices=indices, device_type=backend):
        torch.default_generator.manual_seed(0)
        if accelerated:
            torch.get_device_module(device).manual_seed(0)
        yield


def mean_error(errors: Errors) -> float:
    """Flat mean over the draws."""
    flat = [error for values in errors.values() for error in values]
    return math.fsum(flat) / len(flat)


def _largest_difference(first: Errors, second: Errors) -> float:
    """Largest relative difference in a picture's mean error; infinite when the pictures or draws differ, or a value is not finite."""
    if {h: len(v) for h, v in first.items()} != {h: len(v) for h, v in second.items()}:
        return math.inf
    worst = 0.0
    for content_hash in first:
        a, b = (mean_error({content_hash: errors[content_hash]}) for errors in (first, second))
        if not (math.isfinite(a) and math.isfinite(b)):
            return math.inf
        worst = max(worst, abs(a - b) / max(abs(a), 1e-12))
    return worst


def self_test(base_errors: Errors, adapter_errors: Errors, *, precision: str = "fp32") -> None:
    """The adapter at its start must change nothing; else every later number would be of another model."""
    if not all(math.isfinite(e) for values in base_errors.values() for e in values):
        raise PistachioError(
            "The base model's own loss is not a finite number, so it can't be trained. "
            "Check that the VAE and the text encoder belong to this model, or choose precision 'fp32' on Train LoRA."
        )
    difference = _largest_difference(base_errors, adapter_errors)
    if not difference <= RELATIVE_TOLERANCE[precision]:
        raise PistachioError(
            f"The untrained LoRA changes the model's held-out loss by {100 * difference:.3g} % where it must change nothing. "
            "Choose target preset 'attention' in Adapter Settings, or load the model in another format, and report this model."
        )


def resume_note(before: Errors, after: Errors, *, precision: str = "fp32") -> str | None:
    """A sentence for the user when a checkpoint, evaluated again after a resume, no longer gives its numbers."""
    difference = _largest_difference(before, after)
    if difference <= RELATIVE_TOLERANCE[precision]:
        return None
    if not math.isfinite(difference):
        return message(
            "note.resume_other",
            "The last checkpoint, evaluated again, differs in its pictures or draws: the numbers before and after this resume cannot be compared.",
        )
    return message(
        "note.resume_differs",
        "The last checkpoint, evaluated again, differs by {change} %: the numbers before and after this resume cannot be compared.",
        change=f"{100 * difference:.2g}",
    )


def evaluation_steps(num_steps: int, num_evaluations: int) -> tuple[int, ...]:
    """Steps to evaluate and save at, evenly spread: 0 first, the last step always."""
    count = max(1, min(num_evaluations, num_steps))
    return (0, *sorted({round(i * num_steps / count) for i in range(1, count + 1)}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    steps: tuple[int, ...]
    num_timesteps: int
    num_probes: int  # how many of the evaluations also measure training pictures
    note: str = ""  # a sentence for the user when the plan was cut


def plan_schedule(
    num_steps: int,
    *,
    num_evaluations: int,
    num_timesteps: int,
    num_images: int,
    seconds_per_step: float,
    seconds_per_evaluation: float,
    probe_share: float = 0.0,
) -> Schedule:
    """Fit the evaluations into 10 % of the training time, from times measured at the start.

    Thinned in this order: train probes (`probe_share`: a probe's cost as a share of an evaluation's),
    evaluations down to eight, timesteps by halves, and then no further: a choice needs eight evaluations.
    """
    budget = EVALUATION_BUDGET * num_steps * seconds_per_step
    fewest = min(num_evaluations, math.ceil(1 / LONGEST_INTERVAL))
    probes = num_evaluations // 2
    if seconds_per_evaluation * (num_evaluations + probes * probe_share) <= budget:
        return Schedule(
            steps=evaluation_steps(num_steps, num_evaluations), num_timesteps=num_timesteps, num_probes=probes
        )
    timesteps, seconds = num_timesteps, seconds_per_evaluation
    while int(budget / seconds) < fewest and allowed_timesteps(timesteps // 2, num_images) < timesteps:
        halved = allowed_timesteps(timesteps // 2, num_images)
        timesteps, seconds = halved, seconds * halved / timesteps
    count = min(num_evaluations, max(fewest, int(budget / seconds)))
    spare = budget - count * seconds
    probes = min(count // 2, max(0, int(spare / (seconds * probe_share)))) if probe_share else count // 2
    note = message(
        "note.budget", "Evaluation is kept near {share} % of the training time: {evaluations} evaluations with {timesteps} timesteps a picture.",
        share=f"{100 * EVALUATION_BUDGET:.0f}", evaluations=count, timesteps=timesteps,
    )
    return Schedule(steps=evaluation_steps(num_steps, count), num_timesteps=timesteps, num_probes=probes, note=note)
