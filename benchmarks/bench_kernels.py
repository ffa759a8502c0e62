"""What the kernels take on each card and how far they are from float64, without a card.

    python dev.py bench kernels [--json FILE] [--targets sm_90,sm_120]

Registers and spills are the assembler's; errors are of the kernels' own assembly, run on the CPU over small shapes. No time
is measured: that is gpu_suite's, on a card.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

from bench_support import load_packages, write_json


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="not used: kernels know no host")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--targets", default="", help="comma-separated, e.g. sm_90,sm_120; all that the compiler knows")
    return parser.parse_args()


def errors() -> dict[str, float]:
    """Entry function -> largest relative error over its cases."""
    import torch
    from gpu_kernels import CASES, SMALL, max_error
    from pistachio.training.kernels.table import OPERATIONS

    found: dict[str, float] = {}
    for name, case in CASES.items():
        error, passed = max_error(case, torch.device("cpu"), SMALL)
        if not passed:
            raise SystemExit(f"{name}: error {error:.1e} is beyond its bound")
        entry = case.operation.rstrip("_")
        assert case.operation in OPERATIONS
        found[entry] = max(error, found.get(entry, 0.0))
    return found


def main() -> int:
    options = parse()
    load_packages()
    import torch
    from pistachio.training.kernels import nvrtc
    from pistachio.training.kernels.nvrtc import CompileFailed, CompilerMissing
    from pistachio.training.kernels.resources import TARGETS, known_targets, measure

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        known = known_targets()
    except CompilerMissing as missing:
        print(missing)
        write_json(options.json, {"skipped": True, "reason": str(missing)})
        return 0
    wanted = tuple(word for word in options.targets.split(",") if word) or TARGETS
    by_entry, rows, failed = errors(), [], False
    for target in wanted:
        if target not in known:
            rows.append({"arch": target, "compiled": False, "reason": f"NVRTC {nvrtc.version()} doesn't know it"})
            print(f"{target:8} unknown to this compiler")
            continue
        try:
            measured = measure(target)
        except CompileFailed as error:
            rows.append({"arch": target, "compiled": False, "reason": str(error)})
            print(f"{target:8} FAILED {error}")
            failed = True
            continue
        for row in measured:
            rows.append({
                "kernel": row["entry"], "arch": target, "compiled": True, "registers": row["registers"], "spill_bytes": row["spill_bytes"],
                "shared_bytes": row["shared_bytes"], "constants": row["constants"], "max_rel_err": by_entry[row["entry"]],
            })
            print(f"{target:8} {row['entry']:24} {row['registers']:4} registers {row['spill_bytes']:4} B spilled {row['shared_bytes']:6} B shared  error {by_entry[row['entry']]:.1e}")
    write_json(options.json, {"torch_version": torch.__version__, "nvrtc": ".".join(map(str, nvrtc.version())), "kernels": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
