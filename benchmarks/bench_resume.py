"""Kills runs at random moments, while saving too, lets them go on, and compares everything they leave with a run that nothing stopped.

`python dev.py bench resume` runs it: real processes, ended by SIGKILL. Compared are the losses and evaluations, every checkpoint and
sample, the state with its average and moments, and the report with its choice, all bit for bit. The model is a small flow network on the CPU.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: sums in one order

from bench_support import load_packages, write_json

KILLS_A_RUN = 4


def measure(num_kills: int, seed: int) -> dict:
    load_packages()
    from support.flow_runs import contents, differences
    from support.killed import Killer

    moments = random.Random(seed)
    rows, started = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pistachio-resume-") as base, Killer("flow") as killer:
        life = killer.live(Path(base) / "whole", save_interval_seconds=0)
        expected = contents(Path(base) / "whole")
        while killer.num_kills < num_kills:
            folder = Path(base) / f"run-{len(rows)}"
            places = []
            for _ in range(moments.randint(1, KILLS_A_RUN)):
                if killer.num_kills == num_kills:
                    break
                place, arguments = _moment(moments, life)
                if killer.live(folder, **arguments)["status"] == "killed":
                    places.append(place)
                else:
                    break  # it came to its end before that moment
            killer.live(folder)
            found = differences(contents(folder), expected)
            rows.append({"killed": places, "identical": not found, "differences": found})
            print(f"run {len(rows)}: killed {', '.join(places) or 'never'}: {'the same' if not found else found}", flush=True)
        kills = killer.num_kills
    return {
        "kills": kills, "identical": all(row["identical"] for row in rows), "runs": rows, "seed": seed,
        "seconds": round(time.monotonic() - started, 1),
    }


def _moment(moments: random.Random, life: dict) -> tuple[str, dict]:
    """Half of them at any moment, half within a write that is left half done."""
    if moments.random() < 0.5:
        num_rows, seconds = moments.randint(0, life["points"]["row"] - 8), moments.uniform(0.0, 0.02)
        return f"{1e3 * seconds:.0f} ms after row {num_rows}", {"kill_after_rows": num_rows, "kill_after_seconds": seconds}
    kind = moments.choice(("save", "save", "row"))
    number = moments.randint(1, life["points"][kind])
    return f"in {kind} {number}", {"kill_at": (kind, number)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="not used: the runs need no host")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    result = measure(options.kills, options.seed)
    print(f"{result['kills']} kills in {len(result['runs'])} runs: {'all ended the same' if result['identical'] else 'NOT the same'} ({result['seconds']} s)")
    write_json(options.json, result)
    return 0 if result["identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
