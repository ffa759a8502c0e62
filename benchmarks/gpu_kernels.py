"""Every implementation of every operation of the door's table, on a card: against float64, each other, and the card's ceiling.

What is called, and with what, is the table's and its examples': an operation that is added there is measured here, and one
without an example is an error. A rehearsal runs the same code small on the CPU, with the kernels' own assembly interpreted.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

from gpu_card import clocks, fault, timed_in_turns
from gpu_parts import CEILINGS
from gpu_questions import launcher_for

EQUAL_COPY, SHARE_OF_EQUAL_COPY = "copy of as many bytes", "share_of_equal_copy"  # the target's: of bandwidth at the kernel's own size
FULL_SIZE_BOUND = 1e-2  # ||kernel - torch|| / ||torch|| at the size of a model: both round to 16 bits
SQUARE = 8192  # of the products that a card's rates are measured with
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn

# What a compiler may make one kernel of; each costs its seconds.
FUSIBLE = ("norm_", "gated_", "gelu8", "swiglu8", "geglu8", "rms_rope", "quantise_", "rescale_")

# What a network does instead, on the same arguments.
RIVALS: dict[str, dict[str, Callable]] = {
    "norm_modulate": {"eager": lambda x, w, b, shift, scale, eps, c: torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)},
    "gated_residual": {"eager": lambda x, y, gate: torch.addcmul(x, y, gate)},
    "gelu8": {"eager, kept in bf16": lambda x, tanh: functional.gelu(x, approximate="tanh")},
    "swiglu8": {"eager, kept in bf16": lambda a, b: functional.silu(a) * b},
    "geglu8": {"eager, kept in bf16": lambda both: both.chunk(2, -1)[0] * functional.gelu(both.chunk(2, -1)[1])},
    "product_int8": {"bf16": lambda a, b: a.to(BF16) @ b.to(BF16).t()},
}


def names() -> list[str]:
    """Rows of this part; operations that lack an example are rows too, which fail."""
    from pistachio.training.kernels.examples import EXAMPLES, without_example

    return [CEILINGS, *(example.name for example in EXAMPLES), *without_example()]


def operations() -> dict[str, str]:
    """Row -> operation."""
    from pistachio.training.kernels.examples import EXAMPLES, without_example

    return {example.name: example.operation for example in EXAMPLES} | {name: name for name in without_example()}


def ceilings(device: torch.device, *, rehearse: bool) -> dict:
    """What this card reaches with nothing in the way: bytes of a large copy, and each library's rate of a large product."""
    from pistachio.training.kernels.rows import product_fp8_library, product_int8_library

    source = torch.empty(1 << 10 if rehearse else 1 << 30, dtype=torch.uint8, device=device)
    target, size = torch.empty_like(source), 32 if rehearse else SQUARE
    a, b = (torch.randn(size, size, device=device, dtype=BF16) for _ in range(2))
    a8, b8 = ((t * 31).clamp(-127, 127).to(torch.int8) for t in (a, b))
    ones = torch.ones(size, device=device)
    af, bf = a.to(E4M3), b.to(E4M3)  # once: a conversion is no part of a product
    seconds, failed = timed_in_turns({
        "copy": lambda: target.copy_(source), "bf16": lambda: a @ b, "int8": lambda: product_int8_library(a8, b8),
        "fp8": lambda: product_fp8_library(af, bf, ones, ones, BF16),
    }, device)
    row = {f"{name}_flop_per_s": 2 * size**3 / seconds[name] for name in ("bf16", "int8", "fp8") if name in seconds}
    row |= {"copy_bytes_per_s": 2 * source.nbytes / seconds["copy"]} if "copy" in seconds else {}
    return {"kernel": CEILINGS, **row, **({"rehearsed": "copy" not in failed} if rehearse else {"not_measured": failed, "clocks": [clocks(device)]})}


def moved_bytes(arguments: tuple, results: list[Tensor], writes: tuple[int, ...]) -> int:
    """Each tensor read or written once; what is overwritten twice."""
    written = {id(arguments[i]) for i in writes}
    read = sum(a.nbytes for a in arguments if isinstance(a, Tensor))
    return read + sum(r.nbytes for r in results if id(r) not in written) + sum(arguments[i].nbytes for i in writes)


def measure(name: str, device: torch.device, ceiling: dict, *, rehearse: bool) -> dict:
    from pistachio.training.kernels.examples import EXAMPLES, SMALL, WAN_14B, Numbers
    from pistachio.training.kernels.selftest import call_of, check, compare, results_of
    from pistachio.training.kernels.table import OPERATIONS

    example = next((one for one in EXAMPLES if one.name == name), None)
    if example is None:
        return {"kernel": name, "operation": name, "passed": False, "failed": "no example of it in training/kernels/examples.py"}
    operation, launcher, sizes = OPERATIONS[example.operation], launcher_for(device), SMALL if rehearse else WAN_14B
    arguments = example.arguments(Numbers(device), sizes)
    kinds: dict[str, dict] = {}
    calls: dict[str, Callable] = {}
    size_bytes, reference = 0, None

    def compared(kind: str) -> None:
        nonlocal size_bytes, reference
        try:
            error, passed = check(example, kind, launcher, device)
            call = call_of(example.operation, kind, launcher)
            own = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
            results = results_of(call(*own), own, example)
            size_bytes = moved_bytes(own, results, example.writes)
            kinds[kind] = {"max_rel_err": error, "passed": passed}
            if reference is None:
                reference = results
            elif not rehearse:
                apart, _ = compare(example, results, reference)
                kinds[kind] |= {"apart_from_torch": apart, "passed": passed and apart <= FULL_SIZE_BOUND}
            calls[kind] = lambda: call(*arguments)
        except Exception as error:  # an implementation that fails must not hide the others; its entry says so
            kinds[kind] = {"passed": False, "failed": f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"}

    for kind in reversed(operation.implementations):  # torch first: the others are compared with it at full size
        if kind != "cuda":
            compared(kind)
    if example.operation.startswith(FUSIBLE):
        compiled = torch.compile(operation.torch, backend="eager" if rehearse else "inductor", dynamic=False)
        calls["torch, compiled"] = lambda: compiled(*arguments)
    calls |= {rival: lambda call=call: call(*arguments) for rival, call in RIVALS.get(example.operation, {}).items()}
    if example.flop is None:
        calls[EQUAL_COPY] = equal_copy(size_bytes, device)
    seconds, failed = timed_in_turns(calls, device)
    if "cuda" in operation.implementations:  # last: one that makes the card unusable does not take the others' times along
        compared("cuda")
        if "cuda" in calls and not fault(device):
            again, failed_again = timed_in_turns(calls, device)
            seconds, failed = seconds | again, failed | failed_again
    copy_s = seconds.pop(EQUAL_COPY, None)
    for rival in [name for name in calls if name != EQUAL_COPY]:
        entry = kinds.setdefault(rival, {})
        entry |= {"failed": failed[rival], **({"passed": False} if rival == "cuda" else {})} if rival in failed else {}
        if rival in seconds:
            entry |= {"s": seconds[rival], **share(example, seconds[rival], size_bytes, copy_s, ceiling, sizes)}
    row = {"kernel": name, "operation": example.operation, "shape": [list(a.shape) for a in arguments if isinstance(a, Tensor)], "by": kinds}
    wrong = [kind for kind, entry in kinds.items() if entry.get("passed") is False and not (rehearse and kind == "library")]
    row |= {"passed": not wrong}
    if rehearse:
        broken = [kind for kind in failed if kind != "library"]
        return {"kernel": name, "operation": example.operation, "rehearsed": not wrong and not broken and size_bytes > 0, **({"by": kinds} if wrong or broken else {})}
    copied = {"equal_copy_s": copy_s, "equal_copy_bytes_per_s": size_bytes / copy_s} if copy_s else {}
    return {**row, "moved_bytes": size_bytes, **copied, **best_of(kinds), "clocks": [clocks(device)]}


def equal_copy(size_bytes: int, device: torch.device) -> Callable:
    """A copy that reads and writes as many bytes, half of them each: what a kernel of this size could reach at best."""
    source = torch.zeros(max(1, size_bytes // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def share(example, seconds: float, size_bytes: int, copy_s: float | None, ceiling: dict, sizes) -> dict:
    if example.flop is None:
        rate, large = size_bytes / seconds, ceiling.get("copy_bytes_per_s")
        shares = {SHARE_OF_EQUAL_COPY: copy_s / seconds} if copy_s else {}
        return {"bytes_per_s": rate, **shares, **({"share_of_large_copy": rate / large} if large else {})}
    rate, top = example.flop(sizes) / seconds, ceiling.get(f"{example.codes}_flop_per_s")
    return {"flop_per_s": rate, **({"rate_share": rate / top} if top else {})}


def best_of(kinds: dict[str, dict]) -> dict:
    """Which implementation of the door is fastest of those that are right, and ours against the best that is not ours."""
    right = {kind: entry["s"] for kind, entry in kinds.items() if kind in ("cuda", "library", "torch") and entry.get("passed") and "s" in entry}
    others = [entry["s"] for kind, entry in kinds.items() if kind != "cuda" and "s" in entry]
    found = {"fastest": min(right, key=right.get)} if right else {}
    return found | ({"times_faster": min(others) / right["cuda"]} if "cuda" in right and others else {})
