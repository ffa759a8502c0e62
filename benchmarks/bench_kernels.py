"""What the kernels take on each card and how far they are from float64, without a card.

    python dev.py bench kernels [--json FILE] [--targets sm_90,sm_120]

Registers and spills are the assembler's; errors are of the kernels' own assembly, run on the CPU over small shapes. The one
time that is measured is the compiler's, for all of a card's kernels: theirs are gpu_suite's, on a card.
"""

from __future__ import annotations

import argparse
import sys
import time
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
    """Entry function -> largest relative error over the examples that start it, by the interpreter of the kernels' assembly."""
    import torch
    from pistachio.training.kernels.examples import EXAMPLES
    from pistachio.training.kernels.selftest import check
    from pistachio.training.kernels.table import OPERATIONS
    from support.ptx import Interpreter

    found: dict[str, float] = {}

    class Listening:
        """The interpreter, and which entry functions an example starts."""

        def __init__(self):
            self.inner, self.entries = Interpreter(), set()

        def launch(self, program, entry, *arguments, **options):
            self.entries.add(entry)
            return self.inner.launch(program, entry, *arguments, **options)

    for example in EXAMPLES:
        if OPERATIONS[example.operation].cuda is None:
            continue
        launcher = Listening()
        error, passed = check(example, "cuda", launcher, torch.device("cpu"))
        if not passed:
            raise SystemExit(f"{example.name}: error {error:.1e} is beyond its bound")
        for entry in launcher.entries:
            found[entry] = max(error, found.get(entry, 0.0))
    return found


def compile_seconds(target: str) -> dict[str, float]:
    """For one card: what a training step's kernels take to compile the first time, and to read back from the folder."""
    import tempfile

    from pistachio.training.kernels.programs import build
    from pistachio.training.kernels.resources import is_for, programs

    wanted = [one for one in programs(wide=False) if is_for(one, target)]  # one of each source, as a run needs them
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for _ in range(2):
            began, worked = time.perf_counter(), time.process_time()
            kept = [build(one, target, Path(folder)).from_cache for one in wanted]
            times.append((time.perf_counter() - began, time.process_time() - worked))
        assert all(kept)
        size_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"programs": len(wanted), "compile_s": times[0][0], "compile_processor_s": times[0][1], "from_folder_s": times[1][0], "folder_bytes": size_bytes}


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
    by_entry, rows, compiling, failed = errors(), [], [], False
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
                "shared_bytes": row["shared_bytes"] + row["given_bytes"], "constants": row["constants"], "max_rel_err": by_entry[row["entry"]],
            })
            print(f"{target:8} {row['entry']:24} {row['registers']:4} registers {row['spill_bytes']:4} B spilled {row['shared_bytes'] + row['given_bytes']:6} B shared  error {by_entry[row['entry']]:.1e}")
        compiling.append({"arch": target, **compile_seconds(target)})
        told = compiling[-1]
        print(f"{target:8} {told['programs']} programs: {told['compile_s']:.2f} s to compile ({told['compile_processor_s']:.2f} s of a processor), {told['from_folder_s'] * 1e3:.0f} ms from the folder, {told['folder_bytes'] / 1e3:.0f} kB")
    write_json(options.json, {"torch_version": torch.__version__, "nvrtc": ".".join(map(str, nvrtc.version())), "compiling": compiling, "kernels": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
