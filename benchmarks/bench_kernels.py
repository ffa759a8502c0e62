"""What the kernels take on each card and how far they are from float64, without a card.

    python dev.py bench kernels [--json FILE] [--targets sm_90,sm_120]

Registers and spills are the assembler's; errors are of the kernels' own assembly, run on the CPU over small shapes. The one
time that is measured is the compiler's: for what one run starts (kernel_runs.py), and for all. The kernels' own times are
gpu_suite's, on a card.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from bench_support import load_packages, write_json

EVERY_NETWORK_ON = "sm_90"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, help="a ComfyUI checkout, whose networks say which kernels a run starts; without it that isn't measured")
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


def compile_seconds(target: str, wanted) -> dict[str, float]:
    """For one card: what these programs take to compile the first time, one after the other, and to read back from the folder."""
    import tempfile

    from pistachio.training.kernels.programs import build

    with tempfile.TemporaryDirectory() as folder:
        times = []
        for _ in range(2):
            began, worked = time.perf_counter(), time.process_time()
            kept = [build(one, target, Path(folder)).from_cache for one in wanted]
            times.append((time.perf_counter() - began, time.process_time() - worked))
        assert all(kept)
        size_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    return {"programs": len(wanted), "compile_s": times[0][0], "compile_processor_s": times[0][1], "from_folder_s": times[1][0], "folder_bytes": size_bytes}


def recorded_runs(comfyui: Path | None) -> dict[tuple[str, str], dict]:
    """(network, format of its base) -> the programs that a step of it starts, with their entries. Empty without a host."""
    if comfyui is None:
        return {}
    from bench_support import booted_host
    from kernel_runs import FORMATS, NETWORKS, programs_of_run

    with booted_host(comfyui):
        return {(network, format): programs_of_run(network, format)[0] for network in NETWORKS for format in FORMATS}


def compiling(target: str, runs: dict) -> list[dict]:
    """Each run's programs for one card: of the first network everywhere, of the others on one of them."""
    from kernel_runs import NETWORKS, for_card
    from pistachio.training.kernels.resources import is_for

    rows = []
    for (network, format), started in runs.items():
        if network != NETWORKS[0] and target != EVERY_NETWORK_ON:
            continue
        wanted = [for_card(one, target) for one in started]
        if not all(is_for(one, target) for one in wanted):
            continue  # the card has no such product: the door leaves it to torch
        rows.append({"arch": target, "network": network, "base": format, "sources": dict(Counter(one.source for one in wanted)), **compile_seconds(target, wanted)})
    for row in rows:
        what = f"a run of {row['network']}, {row['base']}"
        print(f"{target:8} {what:32} {row['programs']:2} programs: {row['compile_s']:.2f} s to compile ({row['compile_processor_s']:.2f} s of a processor), {row['from_folder_s'] * 1e3:.0f} ms from the folder, {row['folder_bytes'] / 1e3:.0f} kB", flush=True)
    return rows


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
    runs = recorded_runs(options.comfyui)
    by_entry, rows, times, failed = errors(), [], [], False
    for target in wanted:
        if target not in known:
            rows.append({"arch": target, "compiled": False, "reason": f"NVRTC {nvrtc.version()} doesn't know it"})
            print(f"{target:8} unknown to this compiler")
            continue
        try:
            began, worked = time.perf_counter(), time.process_time()
            measured = measure(target)
            whole = {"programs": len({(row["source"], str(row["constants"])) for row in measured}), "compile_s": time.perf_counter() - began, "compile_processor_s": time.process_time() - worked}
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
        times += [*compiling(target, runs), {"arch": target, "network": "", "base": "", **whole}]
        print(f"{target:8} {'everything listed':32} {whole['programs']:2} programs: {whole['compile_s']:.2f} s to compile ({whole['compile_processor_s']:.2f} s of a processor)", flush=True)
    write_json(options.json, {"torch_version": torch.__version__, "nvrtc": ".".join(map(str, nvrtc.version())), "compiling": times, "kernels": rows})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
