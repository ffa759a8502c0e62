"""The suite's parts: what rows each has, and how a worker process measures them one after the other.

A worker is given the rows that are missing and the time that is left. It says a row's name before it begins it, and gives
the row as soon as there is one. Knows no file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gpu_card import fault

NETWORKS = ("wan14b", "flux", "sdxl", "sd35")
PARTS = ("questions", "kernels", *NETWORKS, "ablation", "loss", "correctness")
FLOPS = "flops"  # the row of a network that counts a step's work, once
CEILINGS = "ceilings"  # the row that kernels are held against: always first
ROUNDS = {**{name: 2 for name in NETWORKS}, "ablation": 2}
ERRORS = (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError, AttributeError, KeyError, OSError)
# What a first row of a part is taken to need, before any is known.
FIRST_ROW_SECONDS = {**{name: 45.0 for name in NETWORKS}, "ablation": 25.0, "loss": 25.0, "correctness": 30.0}


@dataclass(kw_only=True)
class Asked:
    """What one process is to do."""

    part: str
    names: list[str]
    device: torch.device
    rehearse: bool
    deadline: float  # on time.monotonic's clock of this machine
    begin: Callable[[str], None]
    emit: Callable[[str, dict], None]
    seconds: dict[str, float]  # what rows took before
    known: dict[str, dict]  # rows that are there already

    def has_time(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.deadline


def names_of(part: str) -> list[str]:
    """Every row of a part, in the order of their worth. Needs no host."""
    if part == "questions":
        from gpu_questions import QUESTIONS

        return list(QUESTIONS)
    if part == "kernels":
        from gpu_kernels import names

        return names()
    if part == "loss":
        from gpu_loss import names

        return names()
    if part == "correctness":
        from gpu_models import small_networks

        return list(small_networks())
    from gpu_speed import arms_of

    return [*([FLOPS] if part in NETWORKS else []), *arms_of(part)]


def run(asked: Asked) -> bool:
    """False: what was asked is not done, and another process should go on."""
    if asked.part in NETWORKS or asked.part == "ablation":
        from gpu_speed import run_part

        return run_part(
            asked.part, asked.names, asked.device, rehearse=asked.rehearse, begin=asked.begin, emit=asked.emit, has_time=asked.has_time,
            seconds=asked.seconds, first_seconds=FIRST_ROW_SECONDS[asked.part],
        )
    measure = _measure_of(asked)
    longest = FIRST_ROW_SECONDS.get(asked.part, 5.0)
    for name in asked.names:
        asked.begin(name)
        if not asked.has_time(asked.seconds.get(name, longest)):
            asked.emit(name, {"skipped": "no time left"})
            continue
        before = time.monotonic()
        try:
            row = measure(name)
        except ERRORS as error:  # one row must not hide the others
            row = {"failed": f"{type(error).__name__}: {str(error).strip()[-1500:]}"}
        longest = min(longest, time.monotonic() - before) if asked.part == "kernels" else time.monotonic() - before
        unusable = fault(asked.device)
        asked.emit(name, row | ({"device_fault": unusable} if unusable else {}))
        if unusable:
            return False
    return True


def _measure_of(asked: Asked) -> Callable[[str], dict]:
    device, rehearse = asked.device, asked.rehearse
    if asked.part == "questions":
        from gpu_questions import answer

        return lambda name: answer(name, device, rehearse=rehearse)
    if asked.part == "loss":
        from gpu_loss import measure

        return lambda name: measure(name, device, rehearse=rehearse)
    if asked.part == "correctness":
        return lambda name: _correctness(name, device)
    import gpu_kernels

    ceiling = dict(asked.known.get(gpu_kernels.CEILINGS, {}))

    def kernel(name: str) -> dict:
        if name == gpu_kernels.CEILINGS:
            ceiling.update(gpu_kernels.ceilings(device, rehearse=rehearse))
            return dict(ceiling)
        return gpu_kernels.measure(name, device, ceiling, rehearse=rehearse)

    return kernel


def _correctness(name: str, device: torch.device) -> dict:
    from gpu_correctness import check_family
    from gpu_models import is_known, small_networks

    network = small_networks()[name]
    if not is_known(network):
        return {"family": name, "unavailable": f"this ComfyUI does not know {network.config_class}"}
    checks = check_family(network, device)
    return {
        "family": name, "passed": all(check.passed for check in checks),
        "checks": [{"check": check.name, "passed": check.passed, "figure": check.figure} for check in checks],
    }


def words(row: dict) -> str:
    """A row for the terminal."""
    for key in ("unavailable", "out_of_memory", "skipped", "failed"):
        if key in row:
            return f"{key.replace('_', ' ')}: {str(row[key]).strip().splitlines()[-1][:300]}"
    if "step_s" in row:
        predicted = f", predicted {row['predicted_peak_gib']:.1f}" if "predicted_peak_gib" in row else ""
        rounds = " | ".join(f"{seconds:.4f}" for seconds in row["round_medians_s"])
        return f"{row['step_s']:.4f} s a step ({rounds}), first {row['first_step_s']:.1f} s, peak {row['peak_gib']:.1f} GiB{predicted}"
    if "rehearsed" in row:
        return "rehearsed" if row["rehearsed"] else f"FAILED {row}"
    if "by" in row:
        return "; ".join(_kind(kind, entry) for kind, entry in row["by"].items())
    if "checks" in row:
        failed = [f"{check['check']} ({check['figure']})" for check in row["checks"] if not check["passed"]]
        return f"{len(row['checks'])} checks passed" if not failed else f"FAILED {'; '.join(failed)}"
    if "device_fault" in row and "by" not in row:
        return f"the card can't go on: {row['device_fault']}"
    told = {key: value for key, value in row.items() if key not in ("kernel", "question", "run", "losses", "notes", "clocks", "kernels")}
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in told.items())


def _kind(kind: str, entry: dict) -> str:
    share = entry.get("share_of_equal_copy", entry.get("rate_share"))
    parts = [f"{entry['s'] * 1e6:.0f} us" if "s" in entry else "", f"{share:.0%}" if share else "", "" if entry.get("passed", True) else "WRONG", entry.get("failed", "")]
    return f"{kind} {' '.join(filter(None, parts))}"


def is_failure(row: dict) -> bool:
    """An arm that is not ours may be impossible; everything else that fails is a failure."""
    if "failed" in row or "device_fault" in row:
        return row.get("ours", True)
    return row.get("passed") is False or row.get("rehearsed") is False
