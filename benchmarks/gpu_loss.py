"""Do 8-bit products learn as 16-bit ones do? 300 steps of two blocks at the full width of Wan-14B, three paired seeds.

A seed fixes pictures, noise, timesteps and the adapters' start, so that runs of one seed differ by the products alone. Both
the loss of the last hundred steps and the loss on held-out pictures at the end are compared, as ratios to bf16's.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import torch

from bench_arms import LEARNING_RATE, Workload
from gpu_arms import Own, Setup
from gpu_models import build_patcher, captions, latents
from gpu_speed import RANK, network_for

SETUPS = {
    "bf16": Setup(), "int8-convrot": Setup(format="int8-convrot", kernels="cuda"), "fp8-row": Setup(format="fp8-row", kernels="cuda"),
}
REFERENCE = "bf16"
SEEDS = (1, 2, 3)
STEPS, REHEARSED_STEPS = 300, 4
TRAINED, HELD_OUT = 6, 2
RATE = 3 * LEARNING_RATE
TIMESTEPS = 8  # of each held-out picture
MARGIN = 0.02  # losses within two percent are equal
# Student's t for two degrees of freedom and more: 95 % of one side, for an interval that holds 90 %.
T_95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
MEASURES = ("trained_loss", "held_out_loss")


def names() -> list[str]:
    return [f"{format}, seed {seed}" for seed in SEEDS for format in SETUPS]


def _network(*, rehearse: bool):
    whole = network_for("wan14b", rehearse=rehearse)
    return whole if rehearse else replace(whole, latent_shape=(1, 16, 1, 32, 32), network=whole.network | {"num_layers": 2})


class _Run(Own):
    def __init__(self, workload: Workload, setup: Setup, *, seed: int, steps: int):
        super().__init__(workload, setup)
        self.seed, self.steps = seed, steps

    def config(self, *, targets: str = "all-linear"):
        from pistachio.training.config import OptimizerConfig
        from pistachio.training.config import replace as replaced

        return replaced(super().config(targets=targets), seed=self.seed, num_steps=self.steps, optimizer=OptimizerConfig(learning_rate=RATE))


def measure(name: str, device: torch.device, *, rehearse: bool) -> dict:
    from pistachio.training.evaluation import EvalItem, evaluate, plan_draws

    format, seed = name.split(", seed ")
    steps, network = REHEARSED_STEPS if rehearse else STEPS, _network(rehearse=rehearse)
    count = TRAINED + HELD_OUT
    workload = Workload(
        model=build_patcher(network, device=device, dtype=torch.bfloat16), latents=latents(network, count), captions=captions(network, count), batch=1,
        rank=RANK, precision="bf16",
    )
    run = _Run(workload, SETUPS[format], seed=int(seed), steps=steps)
    run.items, held = run.items[:TRAINED], run.items[TRAINED:]
    items = [EvalItem(content_hash=i.content_hash, latents=i.latents, condition=i.condition, group=i.group) for i in held]
    with run.trainer_ready() as trainer:
        draws = plan_draws(items, num_timesteps=TIMESTEPS, distribution=trainer.distribution)

        def held_out() -> float:
            found = evaluate(run.model, items, draws, batch_size=1)
            return statistics.mean(error for errors in found.values() for error in errors)

        before = held_out()
        losses = [trainer.advance().loss for _ in range(steps)]
        after = held_out()
    last = losses[-max(1, steps // 3):]
    row = {
        "run": name, "format": format, "seed": int(seed), "steps": steps, "trained_loss": statistics.mean(last), "held_out_before": before,
        "held_out_loss": after, "losses": [statistics.mean(losses[at : at + 10]) for at in range(0, steps, 10)], **run.told, "notes": run.notes,
    }
    return {"run": name, "rehearsed": all(map(math.isfinite, (before, after, *losses)))} if rehearse else row


def verdict(rows: list[dict]) -> dict:
    """By format and measure: the mean of log(loss / bf16's loss) over paired seeds, its interval, and what follows from it."""
    by_run = {(row["format"], row["seed"]): row for row in rows if "trained_loss" in row}
    found = {}
    for format in SETUPS:
        if format == REFERENCE:
            continue
        seeds = sorted(seed for kind, seed in by_run if kind == format and (REFERENCE, seed) in by_run)
        for measure_name in MEASURES:
            ratios = [math.log(by_run[format, seed][measure_name] / by_run[REFERENCE, seed][measure_name]) for seed in seeds]
            found[f"{format}, {measure_name}"] = {"seeds": seeds, **compared(ratios)}
    return found


def compared(ratios: list[float]) -> dict:
    """Two one-sided t-tests at 5 %: equal where the interval that holds 90 % lies within the margin."""
    if len(ratios) < 2:
        return {"verdict": "not measured"}
    mean, error = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    reach = T_95[len(ratios) - 1] * error
    low, high, margin = mean - reach, mean + reach, math.log1p(MARGIN)
    said = "equal" if -margin <= low and high <= margin else "worse" if low > 0 and mean > margin else "better" if high < 0 and mean < -margin else "undecided"
    return {
        "log_ratios": ratios, "mean": mean, "standard_error": error, "t": mean / error if error else None, "interval_90": [low, high], "margin": MARGIN,
        "verdict": said,
    }
