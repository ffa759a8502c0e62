"""Predicted against counted memory of a training step: tiny models on the CPU, and full-size ones that have no memory at all.

`python dev.py bench memory` runs it; what is counted, and what was predicted and found, is in NOTES.md. Figures of
full-size models are predictions: only `gpu_suite` measures those.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: oneDNN's layouts depend on it

from bench_arms import Ours, Workload
from bench_support import CAPTIONS, booted_host, environment, load_tiny, write_json
from memory_counter import peak_bytes

ALL_LEVELS = ("sd15", "sdxl", "sd3", "flux", "wan21")  # tiny families counted at every keep level; the others at the two ends
ENDS = ("everything", "blocks")
BATCH = 2
RANK = 8
STEPS = 3  # from the second on the optimiser's state is there; the third shows that nothing grows
FULL_RANK = 32
TOLERANCE = 0.05
UNIT_GOALS = {"everything": 12.0, "blocks": 3.0}
# The default, which trains the time embedding too, so that the modulation's gradient needs two outputs more; and the layers of
# the blocks alone, as diffusion-pipe and musubi-tuner choose them.
UNIT_TARGETS = ("all-linear", "attention+mlp")
DEPTHS = (2, 3)  # of a Wan at full width: their difference is one block


def tiny_workload(host, family: str) -> Workload:
    import torch
    from support import tiny_objects

    tiny = tiny_objects.load(family) if family in tiny_objects.OBJECT_FAMILIES else load_tiny(host, family)
    return Workload(
        model=tiny.model, batch=BATCH, rank=RANK, captions=[tiny.condition(text) for text in CAPTIONS],
        latents=[torch.randn(tiny.latent_shape, generator=torch.Generator().manual_seed(100 + i)) for i in range(len(CAPTIONS))],
    )


def planner_for(patcher, items, config, *, device, limit_bytes=None, memory=None):
    from pistachio.bridge.planning import Planner
    from pistachio.training.config.memory import MemoryConfig

    return Planner(patcher, items, config, memory or MemoryConfig(), device=device, has_held_out=False, limit=limit_bytes)


def predicted(planner, keep: str):
    from pistachio.training.memory.estimate import predict
    from pistachio.training.memory.plan import MemoryPlan

    config = planner.config
    return predict(MemoryPlan(batch_size=config.batch_size, accumulation=1, keep=keep), planner.facts)


def measure_tiny(host, family: str, keeps) -> list[dict]:
    """Both figures are beyond the base's own weights, which stand beside them."""
    import torch
    from pistachio.bridge.planning import UNTRACEABLE

    workload = tiny_workload(host, family)
    ours = Ours(workload)
    rows = []
    try:
        planner = planner_for(workload.model, ours.items, ours.config(), device=torch.device("cpu"))
        reason = None
    except UNTRACEABLE as error:
        reason = f"not traceable: {str(error).splitlines()[0]}"
    for keep in keeps:
        plan = None
        if reason is None:
            try:
                plan = predicted(planner, keep)
            except UNTRACEABLE as error:
                reason = f"not traceable: {str(error).splitlines()[0]}"
        arm = Ours(workload, keep=keep)
        measured = peak_bytes(lambda: arm.run(STEPS))
        base = plan.predicted["base"] if plan else None
        row = {
            "family": family, "plan": keep, "predicted_mb": None if plan is None else round((plan.phases["step"] - base) / 1e6, 3),
            "measured_mb": round(measured / 1e6, 3), "base_mb": None if plan is None else round(base / 1e6, 3),
        }
        row["error"] = None if plan is None else round(row["predicted_mb"] / row["measured_mb"] - 1, 4)
        rows.append(row | ({"reason": reason} if reason else {}))
    return rows


def full_size(name: str, **changes):
    """(patcher, items, config) of a published size, on `meta`; `changes`: of the network's arguments."""
    import comfy.model_patcher
    import torch
    from gpu_models import captions, full_networks, model_config
    from pistachio.bridge.conditions import prepare
    from pistachio.training.batches import TrainItem
    from pistachio.training.config import AdapterConfig, ObjectiveConfig, TrainConfig

    network = full_networks()[name]
    network = replace(network, network=network.network | changes)
    base = model_config(network, torch.bfloat16).get_model({}, "", device=torch.device("meta"))
    patcher = comfy.model_patcher.ModelPatcher(base.eval(), load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    latents = torch.empty(network.latent_shape, device="meta")
    condition = prepare(base, captions(network, 1)[0], torch.zeros(network.latent_shape))
    item = TrainItem(content_hash="0", latents=latents, condition=condition, group=condition.group, prior_condition=condition, prior_group=condition.group)
    config = TrainConfig(
        precision="bf16", adapter=AdapterConfig(rank=FULL_RANK, alpha=float(FULL_RANK)), objective=ObjectiveConfig(prior_fraction=0.0),
    )
    return patcher, [item], config


def predict_full(name: str, cards) -> list[dict]:
    """Each keep level, and what is chosen for each card."""
    import torch
    from pistachio.training.errors import PistachioError
    from pistachio.training.memory.cards import CARDS
    from pistachio.training.memory.plan import GB, words_of
    from pistachio.training.memory.search import KEEP_ORDER

    patcher, items, config = full_size(name)
    planner = planner_for(patcher, items, config, device=torch.device("cuda"), limit_bytes=round(1e6 * GB))
    rows = [_full_row(name, keep, predicted(planner, keep)) for keep in KEEP_ORDER]
    for card in cards:
        planner.limit_bytes = round(CARDS[card].memory.limit_gb * GB)
        try:
            plan = planner.choose().plan
            rows.append(_full_row(name, f"{card}: {words_of(plan)}", plan))
        except PistachioError as error:
            rows.append({"family": name, "plan": f"{card}: refused", "predicted_mb": None, "measured_mb": None, "reason": str(error)})
    return rows


def _full_row(name: str, words: str, plan) -> dict:
    return {
        "family": name, "plan": words, "predicted_mb": round(plan.peak_bytes / 1e6), "measured_mb": None, "base_mb": round(plan.predicted["base"] / 1e6),
        "parts_mb": {part: round(size / 1e6) for part, size in plan.predicted.items()}, "phases_mb": {phase: round(size / 1e6) for phase, size in plan.phases.items()},
    }


def block_units(keeps, targets: str) -> list[dict]:
    """What one block of Wan 14B keeps for its backward at 1024 x 1024, in units of tokens x width x 2 bytes."""
    import torch
    from pistachio.bridge.shadow import ShadowModel
    from pistachio.training.memory.trace import trace_step

    saved = {keep: [] for keep in keeps}
    for depth in DEPTHS:
        patcher, items, config = full_size("wan14b", num_layers=depth)
        config = replace(config, adapter=replace(config.adapter, targets=targets))
        shadow = ShadowModel(patcher, device=torch.device("cuda"), precision="bf16")
        tokens = items[0].shape[-2] * items[0].shape[-1] // 4
        unit = tokens * shadow.network.dim * 2
        for keep in keeps:
            with shadow.training():
                saved[keep].append(trace_step(shadow, items, config, keep=keep).saved_bytes)
    return [
        {"family": "wan14b", "targets": targets, "keep": keep, "units_a_block": round((deep - shallow) / unit, 2), "goal": UNIT_GOALS.get(keep)}
        for keep, (shallow, deep) in saved.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--families", default="", help="comma-separated tiny families; all by default")
    parser.add_argument("--full", default="sdxl,flux,wan14b", help="full-size networks to predict; 'none' for none")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    start = time.perf_counter()
    result = {"rows": [], "units": []}
    with booted_host(options.comfyui) as host:
        from pistachio.training.memory.cards import CARDS
        from pistachio.training.memory.search import KEEP_ORDER
        from support.tiny_objects import OBJECT_FAMILIES, why_missing

        result["environment"] = environment(host)
        chosen = options.families.split(",") if options.families else [*ALL_LEVELS, *(name for name in OBJECT_FAMILIES if not why_missing(name))]
        print(f"{'family':16} {'plan':12} {'predicted':>10} {'counted':>10}  MB beyond the base")
        for family in chosen:
            for row in measure_tiny(host, family, KEEP_ORDER if family in ALL_LEVELS else ENDS):
                result["rows"].append(row)
                said = row.get("reason") or f"{100 * row['error']:+.1f} %"
                print(f"{family:16} {row['plan']:12} {row['predicted_mb'] or 0:10.2f} {row['measured_mb']:10.2f}  {said}", flush=True)
        for name in [] if options.full == "none" else options.full.split(","):
            for row in predict_full(name, CARDS):
                result["rows"].append(row)
                print(f"{name:8} {(row['predicted_mb'] or 0) / 1e3:8.1f} GB predicted  {row['plan']}  {row.get('reason', '')}", flush=True)
        if options.full != "none":
            result["units"] = [row for targets in UNIT_TARGETS for row in block_units(KEEP_ORDER, targets)]
            for row in result["units"]:
                print(f"a Wan 14B block, {row['targets']:13} {row['keep']:11} {row['units_a_block']:6.2f} units of tokens x width x 2 bytes" + (f" (goal {row['goal']:g})" if row["goal"] else ""))
    counted = [row for row in result["rows"] if row.get("error") is not None]
    untraced = sorted({row["family"] for row in result["rows"] if row["measured_mb"] is not None and row["predicted_mb"] is None})
    missed = [f"{row['family']} {row['plan']} {row['error']:+.1%}" for row in counted if abs(row["error"]) > TOLERANCE]
    missed += [f"a block in '{row['keep']}' ({row['targets']}) keeps {row['units_a_block']} units, over {row['goal']:g}" for row in result["units"] if row["goal"] and row["units_a_block"] > row["goal"]]
    result["summary"] = {
        "within_5_percent": sum(abs(row["error"]) <= TOLERANCE for row in counted), "counted": len(counted),
        "largest_error": max((abs(row["error"]) for row in counted), default=None), "not_traceable": untraced, "missed": missed,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(f"{result['summary']['within_5_percent']} of {len(counted)} predictions are within 5 %; not traceable: {', '.join(untraced) or 'none'}. "
          + ("Every goal is met." if not missed else "MISSED: " + "; ".join(missed)))
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
