"""The rules that the selection benchmark compares, and their regret.

A rule sees what a trainer would see of one run (its training losses, errors of its held-out pictures) and names a
checkpoint and whether its raw or its averaged weights are kept. Only `regrets` looks at the truth.
Needs the pack loaded as `pistachio` (bench_support.load_packages).

Shapes: C evaluations of which the first is step 0, N held-out pictures, J draws a picture, M fresh pictures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Callable, Sequence

import numpy as np

RAW, EMA = "raw", "ema"
SET_SIZE = 4  # pictures held out: the protocol's minimum for twenty pictures
LOSS_SMOOTHING = 0.98


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Everything measured of one run."""

    subject: int
    learning_rate: float
    steps: np.ndarray  # [C]
    train_loss: np.ndarray  # one a step
    hashes: tuple[str, ...]  # of the N held-out pictures
    t_values: np.ndarray  # [J] of `held_out`
    held_out: dict[str, np.ndarray]  # weights -> [C, N, J] on the protocol's draws
    quantiles: np.ndarray  # [C, N, 9] raw weights, one fixed noise at each tenth of the timestep distribution
    fresh: np.ndarray  # [C, N, J] raw weights, other timesteps and noises at every checkpoint
    probe: np.ndarray  # [C, 16, 4] raw weights, fixed draws on the training pictures
    truth: dict[str, np.ndarray]  # weights -> [C, M]

    def set_indices(self, size: int = SET_SIZE) -> list[np.ndarray]:
        """The held-out pictures in disjoint sets."""
        return [np.arange(i, i + size) for i in range(0, len(self.hashes) - size + 1, size)]


def argmin(curve_C: np.ndarray) -> int:
    return 1 + int(np.argmin(curve_C[1:]))


def _records(run: Measured, weights: str, members: np.ndarray):
    from pistachio.training.selection import EvaluationRecord

    errors = run.held_out[weights]
    t = tuple(map(float, run.t_values))
    return [
        EvaluationRecord(
            step=int(step), seconds=0.0, errors={run.hashes[i]: tuple(map(float, errors[c, i])) for i in members},
            t_values={run.hashes[i]: t for i in members},
        )
        for c, step in enumerate(run.steps)
    ]


def protocol(run: Measured, weights: str, members: np.ndarray, *, early_stop: bool = True) -> int:
    """The engine's own stop rule and choice, as a run would meet them."""
    from pistachio.training.config import EvaluationConfig
    from pistachio.training.selection import select, should_stop

    records = _records(run, weights, members)
    config = EvaluationConfig(early_stop=early_stop)
    seen = next((c for c in range(1, len(records)) if should_stop(records[: c + 1], config)), len(records) - 1)
    chosen = select(records[: seen + 1]).chosen_step
    return int(np.flatnonzero(run.steps == chosen)[0])


def _smoothed_training_loss(run: Measured) -> np.ndarray:
    """[C] the running mean of the training loss at each evaluation; the first is unknown."""
    smooth, values = float(run.train_loss[0]), []
    for loss in run.train_loss:
        smooth = LOSS_SMOOTHING * smooth + (1 - LOSS_SMOOTHING) * float(loss)
        values.append(smooth)
    return np.array([math.inf, *(values[step - 1] for step in run.steps[1:])])


def _one_standard_error(curves_CN: np.ndarray) -> int:
    best = argmin(curves_CN.mean(1))
    difference = curves_CN - curves_CN[best]
    near = difference.mean(1) <= difference.std(1, ddof=1) / math.sqrt(curves_CN.shape[1])
    return next(c for c in range(1, len(near)) if near[c] or c == best)


def _moving_average(curve_C: np.ndarray) -> np.ndarray:
    smooth = [curve_C[max(1, c - 1) : c + 2].mean() for c in range(1, len(curve_C))]
    return np.array([curve_C[0], *smooth])


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    name: str
    weights: str
    forwards: int  # a checkpoint, for SET_SIZE pictures
    choose: Callable[[Measured, np.ndarray], Sequence[int] | int]  # several: each equally likely
    set_size: int = SET_SIZE


def _mean(errors: np.ndarray, members: np.ndarray) -> np.ndarray:
    return errors[:, members].mean((1, 2))


RULES = (
    Rule(name="ours", weights=EMA, forwards=32, choose=lambda run, s: protocol(run, EMA, s)),
    Rule(name="ours-raw-weights", weights=RAW, forwards=32, choose=lambda run, s: protocol(run, RAW, s)),
    Rule(name="ours-no-early-stop", weights=EMA, forwards=32, choose=lambda run, s: protocol(run, EMA, s, early_stop=False)),
    Rule(name="ours-2-pictures", weights=EMA, forwards=16, set_size=2, choose=lambda run, s: protocol(run, EMA, s)),
    Rule(name="ours-8-pictures", weights=EMA, forwards=64, set_size=8, choose=lambda run, s: protocol(run, EMA, s)),
    Rule(name="ema-plain-minimum", weights=EMA, forwards=32, choose=lambda run, s: argmin(_mean(run.held_out[EMA], s))),
    Rule(name="ema-smoothed-3", weights=EMA, forwards=32, choose=lambda run, s: argmin(_moving_average(_mean(run.held_out[EMA], s)))),
    Rule(name="ema-one-standard-error", weights=EMA, forwards=32, choose=lambda run, s: _one_standard_error(run.held_out[EMA][:, s].mean(2))),
    Rule(name="last-ema", weights=EMA, forwards=0, choose=lambda run, s: len(run.steps) - 1),
    Rule(name="diffusion-pipe-quantiles", weights=RAW, forwards=36, choose=lambda run, s: argmin(_mean(run.quantiles, s))),
    Rule(name="one-mid-timestep", weights=RAW, forwards=4, choose=lambda run, s: argmin(run.quantiles[:, s, 4].mean(1))),
    Rule(name="random-noise", weights=RAW, forwards=32, choose=lambda run, s: argmin(_mean(run.fresh, s))),
    Rule(name="fixed-noise-training-pictures", weights=RAW, forwards=64, choose=lambda run, s: argmin(run.probe.mean((1, 2)))),
    Rule(name="training-loss", weights=RAW, forwards=0, choose=lambda run, s: argmin(_smoothed_training_loss(run))),
    Rule(name="last", weights=RAW, forwards=0, choose=lambda run, s: len(run.steps) - 1),
    Rule(name="random-checkpoint", weights=RAW, forwards=0, choose=lambda run, s: range(1, len(run.steps))),
)


def regrets(rule: Rule, run: Measured) -> tuple[float, float, float]:
    """Percent of the achievable gain that `rule` loses on this run, mean over the held-out sets; the median step it kept.

    First against the best checkpoint of either kind of weights (what a user could have had), then against the best of the
    rule's own kind.
    """
    truth = {weights: errors.mean(1) for weights, errors in run.truth.items()}
    before = truth[RAW][0]
    best_own = truth[rule.weights][1:].min()
    best = min(truth[RAW][1:].min(), truth[EMA][1:].min())
    common, own, steps = [], [], []
    for members in run.set_indices(rule.set_size):
        chosen = np.atleast_1d(np.asarray(rule.choose(run, members), dtype=int))
        value = truth[rule.weights][chosen].mean()
        common.append(100 * (value - best) / (before - best))
        own.append(100 * (value - best_own) / (before - best_own))
        steps.extend(run.steps[chosen])
    return float(np.mean(common)), float(np.mean(own)), float(np.median(steps))


def verdict_departures(runs: Sequence[Measured]) -> list[dict]:
    """Where the engine's verdict departs from the protocol's table read to the letter, on every beginning of every run, and who was right.

    To the letter, the tail is the last three evaluations wherever the best lies, and 'within 5 % of the best' needs no patience.
    Right for 'still improving' means that the true loss falls later by more than 2 % of the gain so far.
    """
    from pistachio.training.selection import build_curve, critical_t, select

    counts: dict[tuple[str, str], list[int]] = {}
    for run in runs:
        truth = run.truth[EMA].mean(1)
        for members in run.set_indices():
            records = _records(run, EMA, members)
            for seen in range(4, len(records)):  # at least one evaluation is still to come
                curve = build_curve(records[:seen])
                if curve.delta_C[curve.best] >= 0:
                    continue
                ours, letter = select(records[:seen]).state, _verdict_to_the_letter(curve, critical_t(curve.n_images))
                if ours != letter:
                    so_far = truth[1:seen].min()
                    improved = truth[seen:].min() < so_far - 0.02 * (truth[0] - so_far)
                    found = counts.setdefault((letter, ours), [0, 0])
                    found[0] += 1
                    found[1] += bool(improved)
    return [
        {"to_the_letter": letter, "ours": ours, "count": count, "truly_improved_later": improved}
        for (letter, ours), (count, improved) in sorted(counts.items())
    ]


def _verdict_to_the_letter(curve, q: float) -> str:
    best, last = curve.best, len(curve.steps) - 1
    gain = -float(curve.delta_C[best])
    tail_N = curve.errors_CN[-3:].mean(axis=0)
    tail = float((tail_N - curve.errors_CN[0]).mean())
    if tail > 0 and tail > gain / 2:
        return "diverged"
    if gain <= q * curve.se(0, best):
        return "unclear"
    if tail + gain > q * curve.standard_error(tail_N, curve.errors_CN[best]) and tail + gain > 0.1 * gain:
        return "overfit"
    falling = np.polyfit(curve.steps[-3:], curve.delta_C[-3:], 1)[0] < 0
    near_best = float(curve.delta_C[last]) + gain <= 0.05 * gain
    return "still improving" if falling and (best >= last - 1 or near_best) else "plateau"
