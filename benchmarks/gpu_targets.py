"""What the suite's figures have to be, as a table, and whether they are: true, false, or null where it was not measured.

Written beside every row that comes, so that a part alone is judged too. Knows rows; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpu_kernels import SHARE_OF_EQUAL_COPY
from gpu_parts import CEILINGS

WAN, SDXL = "wan14b", "sdxl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    name: str
    wanted: float
    at_most: bool = False  # else at least
    measured: Callable[["Rows"], tuple[float | None, str]]  # (figure, of which rows)


class Rows:
    """The rows of a result by part, with what the targets ask of them."""

    def __init__(self, parts: dict[str, dict[str, dict]], equal_loss: dict):
        self.parts, self.equal_loss = parts, equal_loss

    def seconds(self, network: str, arm: str) -> tuple[float | None, str]:
        return self.parts.get(network, {}).get(arm, {}).get("step_s"), arm

    def best(self, network: str, *, ours: bool, bits: int | None = None) -> tuple[float | None, str]:
        """The fastest arm of those that hold the whole model on the card, unplanned."""
        times = {
            name: row["step_s"] for name, row in self.parts.get(network, {}).items()
            if "step_s" in row and row["ours"] is ours and bits in (None, row["bits"]) and "plan" not in row
        }
        name = min(times, key=times.get, default="")
        return times.get(name), name

    def times_faster(self, network: str, slower: tuple, faster: tuple) -> tuple[float | None, str]:
        if slower[0] is None or faster[0] is None:
            return None, ""
        return slower[0] / faster[0], f"{faster[1]} against {slower[1]}"

    def utilisation(self, network: str, arm: str) -> tuple[float | None, str]:
        return self.parts.get(network, {}).get(arm, {}).get("mfu"), arm

    def kernels(self) -> dict[str, dict]:
        return {name: row for name, row in self.parts.get("kernels", {}).items() if name != CEILINGS}

    def least_share(self) -> tuple[float | None, str]:
        shares = {
            name: row["by"]["cuda"][SHARE_OF_EQUAL_COPY] for name, row in self.kernels().items() if SHARE_OF_EQUAL_COPY in row.get("by", {}).get("cuda", {})
        }
        name = min(shares, key=shares.get, default="")
        return shares.get(name), name

    def loss(self, format: str) -> tuple[float | None, str]:
        verdicts = {name: row["verdict"] for name, row in self.equal_loss.items() if name.startswith(format)}
        if not verdicts or "not measured" in verdicts.values():
            return None, ""
        return float(all(word in ("equal", "better") for word in verdicts.values())), ", ".join(f"{name}: {word}" for name, word in verdicts.items())


def _planned(gigabytes: int) -> Callable[[Rows], tuple[float | None, str]]:
    def measured(rows: Rows):
        whole, planned = rows.seconds(WAN, "ours, bf16"), rows.seconds(WAN, f"ours, planned for {gigabytes} GB")
        return rows.times_faster(WAN, whole, planned)

    return measured


TARGETS = (
    Target(name="Wan-14B 1024x1024, seconds of a step with 8-bit products", wanted=0.35, at_most=True, measured=lambda r: r.best(WAN, ours=True, bits=8)),
    Target(
        name="Wan-14B, times as fast as the best arm that is not ours", wanted=1.6,
        measured=lambda r: r.times_faster(WAN, r.best(WAN, ours=False), r.best(WAN, ours=True, bits=8)),
    ),
    Target(
        name="Wan-14B, times as fast as the built-in trainer as it comes", wanted=2.5,
        measured=lambda r: r.times_faster(WAN, r.seconds(WAN, "built-in, default"), r.best(WAN, ours=True, bits=8)),
    ),
    Target(name="Wan-14B, seconds of a step in bf16", wanted=0.46, at_most=True, measured=lambda r: r.best(WAN, ours=True, bits=16)),
    Target(name="Wan-14B in bf16, share of the measured matmul rate", wanted=0.70, measured=lambda r: r.utilisation(WAN, r.best(WAN, ours=True, bits=16)[1])),
    Target(
        name="SDXL, times as fast as PEFT eager", wanted=3.0,
        measured=lambda r: r.times_faster(SDXL, r.seconds(SDXL, "PEFT eager"), r.best(SDXL, ours=True)),
    ),
    Target(name="Wan-14B within 16 GB, share of the resident speed", wanted=0.95, measured=_planned(16)),
    Target(name="Wan-14B within 12 GB, share of the resident speed", wanted=0.85, measured=_planned(12)),
    Target(name="the slowest row kernel, share of the speed of an equal copy", wanted=0.85, measured=Rows.least_share),
    Target(name="int8-convrot learns as bf16 does (1: yes)", wanted=1.0, measured=lambda r: r.loss("int8-convrot")),
    Target(name="fp8-row learns as bf16 does (1: yes)", wanted=1.0, measured=lambda r: r.loss("fp8-row")),
)


def judged(parts: dict[str, dict[str, dict]], equal_loss: dict | None = None) -> list[dict]:
    rows, found = Rows(parts, equal_loss or {}), []
    for target in TARGETS:
        figure, of = target.measured(rows)
        passed = None if figure is None else figure <= target.wanted if target.at_most else figure >= target.wanted
        found.append({
            "target": target.name, "wanted": f"at {'most' if target.at_most else 'least'} {target.wanted:g}", "measured": figure, "of": of, "passed": passed,
        })
    for name, row in rows.kernels().items():
        entry = row.get("by", {}).get("cuda", {})
        if SHARE_OF_EQUAL_COPY in entry:
            figure = entry[SHARE_OF_EQUAL_COPY]
            found.append({"target": f"kernel '{name}', share of the speed of an equal copy", "wanted": "at least 0.85", "measured": figure, "of": "cuda", "passed": figure >= 0.85})
    return found
