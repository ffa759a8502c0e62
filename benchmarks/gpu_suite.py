"""What only a graphics card can show: whether the kernels pay, training is right on CUDA for every family, and how fast it is.

    python dev.py bench gpu_suite [--json FILE] [--only questions,kernels,correctness,speed,flux,...] [--require-gpu] [--rehearse]

It needs no server. Without a card it measures nothing and says so. A rehearsal runs every line of it on the CPU over small
networks and writes which parts ran, never a time or a size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bench_support import booted_host, environment, load_packages, write_json

NO_DEVICE = "NO CUDA DEVICE: nothing was measured"
SECTIONS = ("questions", "kernels", "correctness", "speed")
EXIT_FAILED, EXIT_NO_GPU = 1, 3


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--only", default="", help="comma-separated: questions, kernels, correctness, speed, and names of families, networks or operations")
    parser.add_argument("--require-gpu", action="store_true", help=f"without a card, exit with {EXIT_NO_GPU}")
    parser.add_argument("--rehearse", action="store_true", help="run every part small on the CPU; measures nothing")
    parser.add_argument("--arm", help=argparse.SUPPRESS)  # NETWORK|ARM, in a process of its own
    return parser.parse_args()


def chosen(only: str) -> tuple[set[str], set[str]]:
    """Sections and names; an empty choice of either means all of it."""
    words = {word.strip() for word in only.split(",") if word.strip()}
    return (words & set(SECTIONS)) or set(SECTIONS), words - set(SECTIONS)


def run_questions(device, *, rehearse: bool) -> list[dict]:
    from gpu_kernels import QUESTIONS, answer

    rows = []
    for name in QUESTIONS:
        try:
            rows.append(answer(name, device, rehearse=rehearse))
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:  # one question must not hide the others
            rows.append({"question": name, "failed": f"{type(error).__name__}: {error}"})
        told = {key: value for key, value in rows[-1].items() if key != "question"}
        print(f"question  {name}: {json.dumps(told)}", flush=True)
    return rows


def run_kernels(device, names: set[str], *, rehearse: bool) -> list[dict]:
    from gpu_kernels import CASES, copy_bandwidth, measure_kernel

    rows, bandwidth = [], copy_bandwidth(device, rehearse=rehearse)
    if bandwidth:
        print(f"kernel  a copy moves {bandwidth / 1e9:.0f} GB/s", flush=True)
    for name, case in CASES.items():
        if names and case.operation not in names:
            continue
        try:
            rows.append(measure_kernel(name, device, bandwidth, rehearse=rehearse))
        except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
            rows.append({"kernel": name, "passed": False, "failed": f"{type(error).__name__}: {error}"})
        told = {key: value for key, value in rows[-1].items() if key != "kernel"}
        print(f"kernel  {name}: {json.dumps(told)}", flush=True)
    return rows if not bandwidth else [{"copy_bytes_per_s": bandwidth}, *rows]


def card() -> dict:
    """What the figures depend on, as the driver tells it."""
    import torch

    asked = "driver_version,power.limit,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True)
    told = dict(zip(asked.split(","), (word.strip() for word in done.stdout.splitlines()[0].split(",")))) if done.returncode == 0 and done.stdout else {}
    return {"capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), **told}


def run_correctness(device, names: set[str]) -> list[dict]:
    from gpu_correctness import check_family
    from gpu_models import is_known, small_networks

    results = []
    for family, network in small_networks().items():
        if names and family not in names:
            continue
        if not is_known(network):
            print(f"correctness  {family:11} this ComfyUI does not know {network.config_class}", flush=True)
            results.append({"family": family, "unavailable": f"this ComfyUI does not know {network.config_class}"})
            continue
        try:
            checks = check_family(network, device)
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:  # one family must not hide the others
            print(f"correctness  {family:11} FAILED  {type(error).__name__}: {error}", flush=True)
            results.append({"family": family, "passed": False, "error": f"{type(error).__name__}: {error}"})
            continue
        for check in checks:
            print(f"correctness  {family:11} {'ok' if check.passed else 'FAILED':7} {check.name}: {check.figure}", flush=True)
            results.append({"family": family, "check": check.name, "passed": check.passed, "figure": check.figure})
    return results


def run_speed(options: argparse.Namespace, names: set[str]) -> list[dict]:
    from gpu_models import full_networks
    from gpu_speed import ARMS

    results = []
    for network in full_networks():
        if names and network not in names:
            continue
        for arm in ("flops", *ARMS):
            row = _in_new_process(options, network, arm)
            results.append(row)
            print(f"speed  {network:7} {arm:32} {_words(row)}", flush=True)
    return results


def _in_new_process(options: argparse.Namespace, network: str, arm: str) -> dict:
    command = [sys.executable, str(Path(__file__)), "--comfyui", str(options.comfyui), "--arm", f"{network}|{arm}"]
    done = subprocess.run([*command, *(["--rehearse"] if options.rehearse else [])], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        return {"network": network, "arm": arm, "failed": done.stderr.strip()[-2000:] or f"exit status {done.returncode}"}
    return json.loads(lines[-1])


def _predicted(row: dict) -> str:
    if "predicted_peak_gib" not in row:
        return ""
    return f", peak predicted {row['predicted_peak_gib']:.1f} GiB ({row['peak_over_predicted'] - 1:+.0%})" + (f", plan: {row['plan']}" if "plan" in row else "")


def _words(row: dict) -> str:
    if "step_s" in row:
        return f"{row['step_s']:.3f} s a step (first {row['first_step_s']:.2f} s), peak {row['peak_gib']:.1f} GiB, base {row['base_gib']:.1f} GiB" + _predicted(row)
    if "forward_flop" in row:
        return f"{row['step_flop'] / 1e12:.1f} TFLOP a step without recompute, matmul {row['matmul_flop_per_s'] / 1e12:.0f} TFLOP/s"
    if row.get("rehearsed"):
        return "rehearsed"
    return next((f"{word.replace('_', ' ')}: {str(row[word]).splitlines()[-1]}" for word in ("unavailable", "out_of_memory", "failed") if word in row), "FAILED")


def run_arm(options: argparse.Namespace) -> dict:
    import torch
    from gpu_speed import count_flops, matmul_flop_per_s, measure_arm

    network, arm = options.arm.split("|")
    device = torch.device("cpu" if options.rehearse else "cuda")
    with booted_host(options.comfyui, cpu=options.rehearse):
        if arm != "flops":
            return measure_arm(network, arm, device, rehearse=options.rehearse)
        counted = count_flops(network, device, rehearse=options.rehearse)
        rate = matmul_flop_per_s(device, rehearse=options.rehearse)
        if options.rehearse:
            return {"network": network, "arm": arm, "rehearsed": counted["forward_flop"] > counted["attention_flop"] > 0 and rate is None}
        return {"network": network, "arm": arm, **counted, "matmul_flop_per_s": rate}


def add_utilisation(rows: list[dict]) -> None:
    """Model FLOP utilisation: a step's FLOPs without recompute, over its time at the card's measured matmul rate."""
    counted = {row["network"]: row for row in rows if "forward_flop" in row}
    for row in rows:
        flops = counted.get(row["network"])
        if "step_s" in row and flops:
            row["mfu"] = flops["step_flop"] / (row["step_s"] * flops["matmul_flop_per_s"])
            print(f"speed  {row['network']:7} {row['arm']:32} MFU {row['mfu']:.2f}")


def failures(result: dict) -> list[str]:
    found = [f"{row['family']}: {row.get('check') or row.get('error')}" for row in result.get("correctness", []) if row.get("passed") is False]
    found += [f"{row['network']}, {row['arm']}" for row in result.get("speed", []) if "failed" in row or row.get("rehearsed") is False]
    found += [f"question: {row['question']}" for row in result.get("questions", []) if "failed" in row]
    found += [f"kernel: {row['kernel']}" for row in result.get("kernels", []) if row.get("passed") is False or row.get("rehearsed") is False]
    return found


def main() -> int:
    options = parse()
    load_packages()
    import torch

    if options.arm:
        print(json.dumps(run_arm(options)))
        return 0
    if not options.rehearse and not torch.cuda.is_available():
        print(NO_DEVICE)
        write_json(options.json, {"skipped": True, "reason": NO_DEVICE, "torch_version": torch.__version__})
        return EXIT_NO_GPU if options.require_gpu else 0
    device = torch.device("cpu" if options.rehearse else "cuda")
    torch.backends.cudnn.allow_tf32 = False  # fp32 checks are of fp32
    torch.set_num_threads(1 if options.rehearse else torch.get_num_threads())
    sections, names = chosen(options.only)
    result: dict = {"rehearsal": options.rehearse}
    if options.rehearse:
        print("REHEARSAL on the CPU over small networks: nothing here is a measurement of a card")
    with booted_host(options.comfyui, cpu=options.rehearse) as host:
        result["environment"] = environment(host)
        if not options.rehearse:
            result["environment"]["device"] = torch.cuda.get_device_name(device)
            result["environment"]["card"] = card()
        if "questions" in sections:
            result["questions"] = run_questions(device, rehearse=options.rehearse)
        if "kernels" in sections:
            result["kernels"] = run_kernels(device, names, rehearse=options.rehearse)
        if "correctness" in sections:
            result["correctness"] = run_correctness(device, names)
    if "speed" in sections:
        result["speed"] = run_speed(options, names)
        add_utilisation(result["speed"])
    result["failures"] = failures(result)
    print("Everything passed." if not result["failures"] else "FAILED: " + "; ".join(result["failures"]))
    write_json(options.json, result)
    return EXIT_FAILED if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
