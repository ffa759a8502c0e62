"""The card as its driver tells it: versions and limits once, clocks and heat beside each measurement; and how steps are timed."""

from __future__ import annotations

import hashlib
import statistics
import subprocess
import time
from pathlib import Path
from typing import Callable

import torch

from bench_arms import StepClock

FIXED = ("name", "driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "memory.total", "persistence_mode", "compute_mode")
NOW = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")
WARMUP, MEASURED = 5, 20
FLUSH_BYTES = 512 << 20  # read between two runs: more than any card's last cache
HOLD_CYCLES = 2_000_000  # about a millisecond in which the card waits, and Python comes to its launches
MEASURING = ("training", "bridge", "benchmarks")  # what decides a figure


def card() -> dict:
    """What figures depend on. Empty of the driver's words where nvidia-smi is not to be had."""
    return {
        "capability": list(torch.cuda.get_device_capability()), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count, **_ask(FIXED),
    }


def clocks(device: torch.device) -> dict:
    """Right behind a measurement, while the card is as it was."""
    return {} if device.type != "cuda" else {"at_s": round(time.time(), 1), **_ask(NOW)}


def _ask(fields: tuple[str, ...]) -> dict:
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"nvidia_smi": f"{type(error).__name__}: {error}"}
    if done.returncode != 0 or not done.stdout:
        return {"nvidia_smi": (done.stdout or done.stderr).strip()[:200]}
    return dict(zip(fields, (word.strip() for word in done.stdout.splitlines()[0].split(","))))


def commit(root: Path) -> str:
    """Of the code that measures; where there is no history beside it, a hash of its files."""
    try:
        done = subprocess.run(["git", "-c", f"safe.directory={root}", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return code_hash(root)
    return done.stdout.strip() or code_hash(root)


def code_hash(root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for folder in MEASURING for path in (root / folder).rglob("*") if path.suffix in (".py", ".cu")):
        text = path.read_bytes().replace(b"\r\n", b"\n")
        found.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
    return f"code {found.hexdigest()[:12]}"


def fault(device: torch.device) -> str:
    """What the card has against going on: after an illegal access every further call of the process fails. Empty: nothing."""
    if device.type != "cuda":
        return ""
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
    return ""


class DeviceClock(StepClock):
    """Marks with CUDA events, which the card stamps itself; seconds once the last has passed."""

    def _now(self):
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, warmup: int) -> list[float]:
        torch.cuda.synchronize()
        marks = self.marks[warmup:]
        return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:])]


def timed_in_turns(calls: dict[str, Callable], device: torch.device) -> tuple[dict[str, float], dict[str, str]]:
    """(median seconds by name, why a call failed), stamped by the card with cold caches; the calls take turns.

    A call that leaves the card unusable ends them all. On a CPU each runs once and nothing is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    failed: dict[str, str] = {}
    on_card = device.type == "cuda"
    scratch = torch.zeros(FLUSH_BYTES // 8, dtype=torch.int64, device=device) if on_card else None
    for index in range(WARMUP + MEASURED if on_card else 1):
        for name, call in calls.items():
            if name in failed:
                continue
            try:
                seconds = _stamped(call, scratch) if on_card else call()
            except Exception as error:  # one call must not hide the others; its row says so
                failed[name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
                if fault(device):
                    return _medians(times, failed), failed
                continue
            if on_card and index >= WARMUP:
                times[name].append(seconds)
    return _medians(times, failed), failed


def _stamped(call: Callable, scratch: torch.Tensor) -> float:
    """Of one call, without what Python takes to begin it: the card is kept busy meanwhile."""
    scratch.sum()  # reading leaves nothing in the cache that would have to be written back during the call
    torch.cuda._sleep(HOLD_CYCLES)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


def _medians(times: dict[str, list[float]], failed: dict[str, str]) -> dict[str, float]:
    return {name: statistics.median(each) for name, each in times.items() if each and name not in failed}


def timed(call: Callable, device: torch.device) -> float | None:
    """Median seconds; None where nothing can be timed. Raises what the call raises."""
    call()
    found, failed = timed_in_turns({"it": call}, device)
    if failed:
        raise RuntimeError(failed["it"])
    return found.get("it")
