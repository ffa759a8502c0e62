"""How much of the achievable result each rule for choosing a checkpoint loses: the regret experiment, with this engine.

`python dev.py bench selection --json FILE`; set-up, predictions and findings are in NOTES.md. Each run (a subject at
a learning rate) is measured once and kept in build/selection, so a stopped benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the networks are too small for two

import numpy as np
from bench_support import ROOT, load_packages, write_json

load_packages()

import selection_rules as rules
import selection_world as world
import torch
from pistachio.training import timesteps
from pistachio.training.batches import TrainItem
from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.evaluation import Draw, EvalItem, evaluate, evaluation_steps, plan_draws, t_values
from pistachio.training.seeds import generator, seed_from
from pistachio.training.trainer import Trainer

SUBJECTS, LEARNING_RATES = 12, (2e-4, 6e-4, 2e-3)
NUM_STEPS, BATCH, RANK = 600, 2, 8
NUM_TRAIN, NUM_HELD_OUT, NUM_FRESH = 16, 24, 384
TRAIN_STREAM, HELD_OUT_STREAM, FRESH_STREAM = range(3)
QUANTILES = [i / 10 for i in range(1, 10)]
PROBE_TIMESTEPS = 4
DISTRIBUTION = "logit-normal"
FORWARD_BATCH = 48
GOALS = {"regret_pct": 8.0, "share_of_rival": 0.5, "p": 0.05}
RIVALS = ("diffusion-pipe-quantiles", "last")


def eval_items(subject: int, count: int, stream: int) -> list[EvalItem]:
    pictures, captions = world.subject_pictures(subject, count, stream)
    return [
        EvalItem(content_hash=f"{stream}-{subject}-{i:04d}", latents=pictures[i : i + 1], condition=captions[i : i + 1], group="caption")
        for i in range(count)
    ]


def draws_at(items: list[EvalItem], quantiles_u: list[float], tag: str) -> list[Draw]:
    """The given quantiles of the timestep distribution on every picture, each with a noise of its own."""
    grid = timesteps.sample(DISTRIBUTION, torch.tensor(quantiles_u, dtype=torch.float64)).tolist()
    return [
        Draw(content_hash=item.content_hash, index=j, t=t, seed=seed_from(tag, item.content_hash, j))
        for item in items for j, t in enumerate(grid)
    ]


def fresh_draws(items: list[EvalItem], count: int, tag: str) -> list[Draw]:
    u = torch.rand(len(items), count, generator=generator(tag)).tolist()
    return [draw for item, row in zip(items, u) for draw in (
        Draw(content_hash=item.content_hash, index=j, t=float(timesteps.sample(DISTRIBUTION, value)), seed=seed_from(tag, item.content_hash, j))
        for j, value in enumerate(row)
    )]


def truth_draws(items: list[EvalItem], subject: int) -> list[Draw]:
    """One draw a picture, stratified over the whole set; the same at every checkpoint."""
    order = torch.randperm(len(items), generator=generator("truth", subject)).tolist()
    draws = []
    for item, place in zip(items, order):
        draws += draws_at([item], [(place + 0.5) / len(items)], f"truth-{subject}")
    return draws


def errors_array(model, items, draws) -> np.ndarray:
    """[N, J] in the order of `items`."""
    errors = evaluate(model, items, draws, batch_size=FORWARD_BATCH)
    return np.array([errors[item.content_hash] for item in items])


def measure(base: world.GnomeTransformer, subject: int, learning_rate: float, schedule: str) -> dict[str, np.ndarray]:
    """Train one LoRA with the engine and measure each checkpoint in every way that a rule may look at."""
    model = world.GnomeModel(base)
    train_items = [
        TrainItem(content_hash=i.content_hash, latents=i.latents, condition=i.condition, group=i.group, prior_condition=i.condition, prior_group=i.group)
        for i in eval_items(subject, NUM_TRAIN, TRAIN_STREAM)
    ]
    config = TrainConfig(
        num_steps=NUM_STEPS, batch_size=BATCH, seed=subject, adapter=AdapterConfig(rank=RANK, alpha=RANK),
        optimizer=OptimizerConfig(learning_rate=learning_rate, schedule=schedule), objective=ObjectiveConfig(prior_fraction=0.0),
    )
    evaluation = EvaluationConfig()
    held_out = eval_items(subject, NUM_HELD_OUT, HELD_OUT_STREAM)
    fresh = eval_items(subject, NUM_FRESH, FRESH_STREAM)
    probe = eval_items(subject, NUM_TRAIN, TRAIN_STREAM)
    fixed = [
        draw for start in range(0, NUM_HELD_OUT, rules.SET_SIZE)
        for draw in plan_draws(held_out[start : start + rules.SET_SIZE], num_timesteps=evaluation.timesteps_per_image, distribution=DISTRIBUTION)
    ]
    quantile, truth = draws_at(held_out, QUANTILES, "quantile"), truth_draws(fresh, subject)
    probed = plan_draws(probe, num_timesteps=PROBE_TIMESTEPS, distribution=DISTRIBUTION, for_choice=False)
    steps = evaluation_steps(NUM_STEPS, evaluation.num_evaluations)
    trainer = Trainer(model, train_items, config)
    found: dict[str, list] = {name: [] for name in ("held_out_raw", "held_out_ema", "quantiles", "fresh", "probe", "truth_raw", "truth_ema")}
    losses = []
    with trainer.network:
        for step in range(NUM_STEPS + 1):
            if step:
                losses.append(trainer.advance().loss)
            if step not in steps:
                continue
            found["held_out_raw"].append(errors_array(model, held_out, fixed))
            found["truth_raw"].append(errors_array(model, fresh, truth)[:, 0])
            found["quantiles"].append(errors_array(model, held_out, quantile))
            found["fresh"].append(errors_array(model, held_out, fresh_draws(held_out, evaluation.timesteps_per_image, f"{subject}-{learning_rate}-{step}")))
            found["probe"].append(errors_array(model, probe, probed))
            with trainer.network.weights(trainer.average):
                found["held_out_ema"].append(errors_array(model, held_out, fixed))
                found["truth_ema"].append(errors_array(model, fresh, truth)[:, 0])
    t_grid = next(iter(t_values(fixed).values()))
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()} | {
        "steps": np.array(steps), "train_loss": np.array(losses), "t_values": np.array(t_grid),
        "hashes": np.array([item.content_hash for item in held_out]),
    }


def load_run(path: Path, subject: int, learning_rate: float) -> rules.Measured:
    kept = np.load(path)
    return rules.Measured(
        subject=subject, learning_rate=learning_rate, steps=kept["steps"], train_loss=kept["train_loss"], hashes=tuple(kept["hashes"].tolist()),
        t_values=kept["t_values"], held_out={rules.RAW: kept["held_out_raw"], rules.EMA: kept["held_out_ema"]}, quantiles=kept["quantiles"],
        fresh=kept["fresh"], probe=kept["probe"], truth={rules.RAW: kept["truth_raw"], rules.EMA: kept["truth_ema"]},
    )


def by_subject(runs: list[rules.Measured], values: list[float]) -> np.ndarray:
    """Mean over a subject's learning rates: runs of one subject are no independent samples."""
    subjects = sorted({run.subject for run in runs})
    return np.array([np.mean([v for run, v in zip(runs, values) if run.subject == s]) for s in subjects])


def compare(runs: list[rules.Measured]) -> dict:
    from scipy.stats import ttest_rel

    table = {rule.name: [rules.regrets(rule, run) for run in runs] for rule in rules.RULES}
    rates = sorted({run.learning_rate for run in runs})
    rows = []
    for rule in rules.RULES:
        common, own = (by_subject(runs, [found[i] for found in table[rule.name]]) for i in (0, 1))
        rows.append({
            "rule": rule.name, "regret_pct": round(float(common.mean()), 2), "se": _standard_error(common),
            "forwards_per_checkpoint": rule.forwards, "weights": rule.weights, "pictures": rule.set_size,
            "regret_own_weights_pct": round(float(own.mean()), 2), "se_own_weights": _standard_error(own),
            "regret_by_learning_rate": {
                f"{rate:g}": round(float(np.mean([f[0] for f, run in zip(table[rule.name], runs) if run.learning_rate == rate])), 2) for rate in rates
            },
            "median_step": float(np.median([found[2] for found in table[rule.name]])),
        })
    ours = by_subject(runs, [found[0] for found in table["ours"]])
    tests = []
    for rival in [row["rule"] for row in rows if row["rule"] != "ours"]:
        theirs = by_subject(runs, [found[0] for found in table[rival]])
        test = ttest_rel(ours, theirs) if len(ours) > 1 else None
        tests.append({
            "rival": rival, "difference_pct": round(float((ours - theirs).mean()), 2), "ratio": round(float(ours.mean() / theirs.mean()), 3),
            "t": round(float(test.statistic), 2) if test else None, "p": float(f"{test.pvalue:.2g}") if test else None, "df": len(ours) - 1,
        })
    return {"rows": rows, "tests": tests, "truth": _truth(runs), "verdicts": rules.verdict_departures(runs)}


def _standard_error(values: np.ndarray) -> float | None:
    return round(float(values.std(ddof=1) / math.sqrt(len(values))), 2) if len(values) > 1 else None


def _truth(runs: list[rules.Measured]) -> dict:
    """How much there was to gain, where the best lay, and how sure that is."""
    gains, best_steps, errors = [], {}, []
    for run in runs:
        mean = run.truth[rules.EMA].mean(1)
        best = rules.argmin(mean)
        gains.append(100 * (1 - mean[best] / mean[0]))
        best_steps.setdefault(f"{run.learning_rate:g}", []).append(int(run.steps[best]))
        difference = run.truth[rules.EMA][-1] - run.truth[rules.EMA][best]
        errors.append(100 * difference.std(ddof=1) / math.sqrt(len(difference)) / (mean[0] - mean[best]))
    return {
        "mean_gain_pct_of_base_loss": round(float(np.mean(gains)), 2), "best_steps_ema": best_steps,
        "se_of_a_regret_pct": round(float(np.mean(errors)), 2),
    }


def shortfalls(result: dict) -> list[str]:
    ours = next(row for row in result["rows"] if row["rule"] == "ours")
    found = []
    if ours["regret_pct"] > GOALS["regret_pct"]:
        found.append(f"our rule loses {ours['regret_pct']} %, more than {GOALS['regret_pct']} %")
    for test in result["tests"]:
        if test["rival"] in RIVALS:
            if test["ratio"] > GOALS["share_of_rival"]:
                found.append(f"our rule loses {test['ratio']} of what {test['rival']} does, more than {GOALS['share_of_rival']}")
            if test["p"] is None or test["p"] > GOALS["p"] or test["t"] > 0:
                found.append(f"against {test['rival']} t = {test['t']}, p = {test['p']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="not needed: no host takes part")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--subjects", type=int, default=SUBJECTS)
    parser.add_argument("--first-subject", type=int, default=0, help="above 0 for trying something out on subjects of their own")
    parser.add_argument("--learning-rates", default=",".join(f"{rate:g}" for rate in LEARNING_RATES))
    parser.add_argument("--schedule", default="constant", choices=("constant", "cosine"))
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "selection", help="keeps the base model and each measured run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    base = world.load_base(args.folder)
    runs = []
    # Learning rates inside a subject, so that a stopped benchmark holds whole subjects.
    for subject in range(args.first_subject, args.first_subject + args.subjects):
        for rate in map(float, args.learning_rates.split(",")):
            path = args.folder / world.BASE_VERSION / f"{args.schedule}-{rate:g}-{subject:04d}.npz"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                begun = time.perf_counter()
                np.savez(path.with_suffix(".partial.npz"), **measure(base, subject, rate, args.schedule))
                path.with_suffix(".partial.npz").replace(path)
                print(f"subject {subject}, learning rate {rate:g}: {time.perf_counter() - begun:.0f} s", flush=True)
            runs.append(load_run(path, subject, rate))
    result = compare(runs)
    for row in sorted(result["rows"], key=lambda row: row["regret_pct"]):
        print(f"{row['rule']:32} {row['regret_pct']:6.1f} +- {row['se'] if row['se'] is not None else math.nan:4.1f} %   own weights {row['regret_own_weights_pct']:6.1f}   "
              f"{row['forwards_per_checkpoint']:3d} forwards   step {row['median_step']:.0f}   {row['regret_by_learning_rate']}")
    for test in result["tests"]:
        if test["rival"] in RIVALS:
            print(f"ours against {test['rival']}: {test['ratio']} of its regret, t({test['df']}) = {test['t']}, p = {test['p']}")
    missed = shortfalls(result)
    print("Goals: " + ("all met." if not missed else "; ".join(missed) + "."))
    write_json(args.json, result | {
        "benchmark": "selection", "subjects": args.subjects, "learning_rates": [float(r) for r in args.learning_rates.split(",")],
        "schedule": args.schedule, "num_steps": NUM_STEPS, "num_train": NUM_TRAIN, "pictures_held_out": rules.SET_SIZE,
        "held_out_sets_per_run": NUM_HELD_OUT // rules.SET_SIZE, "num_fresh": NUM_FRESH, "goals": GOALS, "shortfalls": missed,
        "seconds": round(time.perf_counter() - start), "torch_version": torch.__version__, "python_version": platform.python_version(),
    })
    return 0


if __name__ == "__main__":
    sys.exit(main())
