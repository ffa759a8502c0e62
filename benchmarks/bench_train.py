"""Times a training step of ComfyUI's built-in Train LoRA node, of ours, and of the bare network, interleaved in one run.

`python dev.py bench train` runs it; what is compared, and what was predicted and found, is in NOTES.md.
A row's figures are medians of processor time on one thread: on an idle machine that is the wall time, which stands beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the comparison is of one thread

from bench_arms import BuiltIn, Floor, Ours
from memory_counter import peak_bytes
from bench_support import booted_host, environment, tiny_workload, write_json

FAMILIES = ("sd15", "wan21")
RANK = 8  # the node's default
BATCHES = (1, 4)
TARGETS = ("all-linear", "all-linear+conv")
BUILTIN = ("builtin default", "builtin no checkpointing")
FLOORS = ("floor", "floor latents only", "floor padding once")
OURS_CHECKPOINTED = "ours all-linear checkpointed"
# The node's two modes; our two presets, and the first of them again with its blocks checkpointed.
ARMS = {
    "builtin default": lambda workload: BuiltIn(workload),
    "builtin no checkpointing": lambda workload: BuiltIn(workload, gradient_checkpointing=False),
    "floor": lambda workload: Floor(workload),
    "floor latents only": lambda workload: Floor(workload, latents_only=True),
    "floor padding once": lambda workload: Floor(workload, shares_padding=True),
    "ours all-linear": lambda workload: Ours(workload, targets="all-linear"),
    "ours all-linear+conv": lambda workload: Ours(workload, targets="all-linear+conv"),
    OURS_CHECKPOINTED: lambda workload: Ours(workload, targets="all-linear", keep="blocks"),
}
PEAK_STEPS = 3  # from the second on AdamW's state exists; the third shows that nothing grows
STEPS = 5  # in a turn, the first of which warms up
BUILTIN_STEPS = {1: 4, 4: 2}  # batch 4 costs the node sixteen forwards
MORE_ROUNDS = {"wan21": 4}  # its steps are a tenth as long, so one disturbance spoils more of a turn
GOALS = {"speedup": {1: 2.0, 4: 5.0}, "over_floor": 1.3, "peak_share": 1 / 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    family: str
    batch: int
    size: int  # latents are size x size


def make(host, setting: Setting, name: str):
    return ARMS[name](tiny_workload(host, setting.family, batch=setting.batch, size=setting.size, rank=RANK))


def measure_times(host, setting: Setting, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Round robin, so that whatever else the machine does falls on every arm alike."""
    arms = {name: make(host, setting, name) for name in ARMS}
    times = {name: [] for name in arms}
    for _ in range(rounds * MORE_ROUNDS.get(setting.family, 1)):
        for name, arm in arms.items():
            times[name] += arm.run(BUILTIN_STEPS[setting.batch] if name in BUILTIN else STEPS).steps()
    return times


def measure_peak_mb(host, setting: Setting, name: str) -> float:
    arm = make(host, setting, name)
    return round(peak_bytes(lambda: arm.run(PEAK_STEPS)) / 1e6, 2)


def summary(times: list[tuple[float, float]]) -> dict:
    wall, processor = zip(*times)
    return {
        "ms": round(1e3 * statistics.median(processor), 2), "min_ms": round(1e3 * min(processor), 2),
        "wall_ms": round(1e3 * statistics.median(wall), 2), "num_steps": len(times),
    }


def rows_of(setting: Setting, arms: dict[str, dict]) -> list[dict]:
    fastest = min(BUILTIN, key=lambda name: arms[name]["ms"])
    leanest = min(BUILTIN, key=lambda name: arms[name]["peak_mb"])
    rows = []
    for targets in TARGETS:
        ours, builtin, floor = arms[f"ours {targets}"], arms[fastest], arms["floor"]
        rows.append({
            "family": setting.family, "batch": setting.batch, "targets": targets,
            "ours_ms": ours["ms"], "builtin_ms": builtin["ms"], "floor_ms": floor["ms"],
            "ratio": round(builtin["ms"] / ours["ms"], 2),
            "ours_peak_mb": ours["peak_mb"], "builtin_peak_mb": builtin["peak_mb"],
            "over_floor": round(ours["ms"] / floor["ms"], 2), "peak_share": round(ours["peak_mb"] / builtin["peak_mb"], 2),
            "builtin_mode": fastest, "ratio_wall": round(builtin["wall_ms"] / ours["wall_ms"], 2),
            "builtin_leanest_mode": leanest, "builtin_leanest_peak_mb": arms[leanest]["peak_mb"],
            "ours_checkpointed_peak_mb": arms[OURS_CHECKPOINTED]["peak_mb"],
        })
    return rows


def shortfalls(row: dict) -> list[str]:
    """The goals are set for all linear layers; convolutions are more work than the goals speak of."""
    if row["targets"] != "all-linear":
        return []
    found = []
    if row["ratio"] < GOALS["speedup"][row["batch"]]:
        found.append(f"{row['ratio']}x is under {GOALS['speedup'][row['batch']]}x")
    if row["over_floor"] > GOALS["over_floor"]:
        found.append(f"{row['over_floor']} of the floor is over {GOALS['over_floor']}")
    if row["peak_share"] > GOALS["peak_share"]:
        found.append(f"{row['peak_share']} of the node's peak is over a third")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--size", type=int, default=8, help="latents are SIZE x SIZE (8: a 64 x 64 picture)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each arm; four times as many for the quick families")
    options = parser.parse_args()

    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*CPU autocast.*|.*CPU Autocast.*")
    settings = [
        Setting(family=family, batch=int(batch), size=options.size)
        for family in options.families.split(",") for batch in options.batches.split(",")
    ]
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    start = time.perf_counter()
    result = {"rows": [], "arms": []}
    with booted_host(options.comfyui) as host:
        result["environment"] = environment(host)
        measured = {setting: {name: summary(times) for name, times in measure_times(host, setting, options.rounds).items()} for setting in settings}
        for setting, arms in measured.items():  # after all the timing, which the profiler might disturb
            for name in arms:
                arms[name]["peak_mb"] = measure_peak_mb(host, setting, name)
                print(f"{setting.family:6} batch {setting.batch}  {name:29} {arms[name]['ms']:8.1f} ms "
                      f"(wall {arms[name]['wall_ms']:.1f}, least {arms[name]['min_ms']:.1f})  peak {arms[name]['peak_mb']:.1f} MB", flush=True)
            result["arms"].append({"family": setting.family, "batch": setting.batch, "measured": arms})
            result["rows"] += rows_of(setting, arms)
    result["protocol"] = {
        "latent_size": options.size, "rank": RANK, "precision": "fp32", "rounds": options.rounds,
        "time": "median processor time of a step, one thread, arms interleaved",
        "peak": "allocated beyond the base model, at PyTorch's CPU allocator",
        "load_average_before": load, "load_average_after": os.getloadavg() if load else None,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(f"\n{'family':7}{'batch':>6}  {'targets':16}{'ours ms':>9}{'node ms':>9}{'ratio':>7}{'/floor':>8}{'ours MB':>9}{'node MB':>9}")
    missed = 0
    for row in result["rows"]:
        words = shortfalls(row)
        missed += bool(words)
        print(f"{row['family']:7}{row['batch']:>6}  {row['targets']:16}{row['ours_ms']:>9.1f}{row['builtin_ms']:>9.1f}{row['ratio']:>6.2f}x"
              f"{row['over_floor']:>8.2f}{row['ours_peak_mb']:>9.1f}{row['builtin_peak_mb']:>9.1f}  {'; '.join(words)}")
    processors = os.cpu_count() or 1
    if load and max(load[0], result["protocol"]["load_average_after"][0]) > processors:
        print(f"The machine was busy (load {load[0]:.1f} on {processors} processors): caches are shared, so expect figures above an idle machine's.")
    print("Every goal is met." if not missed else f"{missed} rows miss a goal.")
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
