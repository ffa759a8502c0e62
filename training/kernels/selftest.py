"""Is every implementation of every operation right here? Small shapes against torch in float64, within a time limit.

Nothing is chosen, kept or measured: a door is asked what can run, and each of that is called. The autograd functions are
checked beside it, on the CPU, where the reference runs in float64.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from .activation import GeGlu8, Gelu8, SwiGlu8, geglu_reference, gelu_reference, swiglu_reference
from .door import Door
from .examples import E4M3, EXAMPLES, SMALL, Example, Numbers, Sizes
from .gate import GatedResidual
from .glue import Unfit
from .linear import Adapter, lora_linear
from .norm import NormModulate
from .rope import RmsRope
from .table import OPERATIONS

BOUNDS = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5, torch.float64: 1e-12}  # ||difference|| / ||reference||
# A kept input has 8 bits: the slope is off by as much as torch's own function over the rounded input would be.
KEPT_BOUND = 2e-2
STEP, GRADIENT_BOUND = 1e-5, 1e-6
EXACT = (torch.int8, torch.uint8, torch.int32, E4M3)  # codes, sums: a reference in float64 takes them as they are


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    name: str
    implementation: str  # "cuda", "library", "torch"; of gradients "autograd"
    passed: bool | None  # None: not tested
    error: float | None = None  # the largest relative one
    words: str = ""  # why it failed, or was not tested
    seconds: float = 0.0


# ---- one implementation --------------------------------------------------


def copied(arguments: tuple) -> tuple:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)


def results_of(returned, arguments: tuple, example: Example) -> list[Tensor]:
    """What came back and what was overwritten, without the empty."""
    returned = () if returned is None else returned if isinstance(returned, tuple) else (returned,)
    return [t for t in (*returned, *(arguments[i] for i in example.writes)) if t.numel()]


def expected(example: Example, arguments: tuple) -> list[Tensor]:
    """By the reference in float64, on the CPU. The 8-bit optimiser's looks its grid up by a float32's bits, and stays in float32."""
    arguments = copied(tuple(a.cpu() if isinstance(a, Tensor) else a for a in arguments))
    if example.operation != "adamw8_":
        arguments = tuple(_in_float64(a) for a in arguments)
    return results_of(OPERATIONS[example.operation].torch(*arguments), arguments, example)


def _in_float64(argument):
    if isinstance(argument, torch.dtype):  # of a result
        return torch.float64
    return argument.double() if isinstance(argument, Tensor) and argument.dtype not in EXACT else argument


def compare(example: Example, got: list[Tensor], want: list[Tensor]) -> tuple[float, bool]:
    """(largest relative error of the results that are numbers, all within bounds).

    Codes may differ by one where a value lies between two.
    """
    worst, passed = 0.0, len(got) == len(want)
    for one, other in zip((t.to(w.device) for t, w in zip(got, want)), want):
        if one.dtype in (torch.int8, torch.uint8) and example.operation != "transpose_bytes":
            passed &= (one.int() - other.int()).abs().max().item() <= 1
        elif one.dtype == E4M3:
            passed &= (one.view(torch.uint8).int() - other.view(torch.uint8).int()).abs().max().item() <= 1
        elif not one.is_floating_point():
            passed &= torch.equal(one, other)
        elif example.operation == "adamw8_" and one.dtype == torch.bfloat16:
            passed &= bool(one.isfinite().all())  # what the compensation holds is the rounding itself
        else:
            error = ((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-300)).item()
            worst = max(worst, error) if error == error else math.inf
            passed &= error <= BOUNDS[one.dtype]
    return worst, bool(passed)


def call_of(operation: str, implementation: str, launcher) -> Callable:
    found = getattr(OPERATIONS[operation], implementation)
    return (lambda *arguments: found(launcher, *arguments)) if implementation == "cuda" else found


def check(example: Example, implementation: str, launcher, device: torch.device, sizes: Sizes = SMALL) -> tuple[float, bool]:
    """Raises what the implementation raises."""
    arguments = example.arguments(Numbers(device), sizes)
    own = copied(arguments)
    got = results_of(call_of(example.operation, implementation, launcher)(*own), own, example)
    return compare(example, got, expected(example, arguments))


# ---- gradients -----------------------------------------------------------


def _leaf(n: Numbers, *shape: int) -> Tensor:
    return n.normal(*shape, dtype=torch.float64).requires_grad_(True)


def _gradient_error(function: Callable, inputs: tuple[Tensor, ...], slope_of: Callable | None = None) -> float:
    """The gradient along a random direction, against central differences of `slope_of` (the function itself)."""
    n, slope_of = Numbers(torch.device("cpu"), 1), slope_of or function
    result = function(*inputs)
    weight = n.normal(*result.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((result * weight).sum(), inputs)
    directions = [n.normal(*t.shape, dtype=torch.float64) for t in inputs]
    along = sum((g * d).sum().item() for g, d in zip(gradients, directions))
    with torch.no_grad():
        ends = [(slope_of(*(t + sign * STEP * d for t, d in zip(inputs, directions))) * weight).sum().item() for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * STEP)
    size = sum(g.norm().item() * d.norm().item() for g, d in zip(gradients, directions))  # one direction alone may be nearly flat
    return abs(along - slope) / max(size, 1e-300)


def _rotary(n: Numbers) -> Tensor:
    angles = n.uniform(1, 3, 4).double() * 3
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))


def gradient_errors() -> dict[str, Callable[[], tuple[float, float]]]:
    """Name -> () -> (error, bound) of each autograd function, whose operations the CPU's door runs in torch."""
    n = Numbers(torch.device("cpu"))

    def lora():
        x, a, b = _leaf(n, 5, 6), _leaf(n, 4, 6), _leaf(n, 7, 4)
        weight = n.normal(7, 6, dtype=torch.float64)
        return _gradient_error(lambda x, a, b: lora_linear(x, weight, None, [Adapter(a, b)], 0.5), (x, a, b))

    return {
        "norm + modulate": lambda: (_gradient_error(
            lambda x, shift, scale: NormModulate.apply(x, None, None, shift, scale, 1e-6, True), (_leaf(n, 2, 3, 8), _leaf(n, 2, 8), _leaf(n, 2, 8)),
        ), GRADIENT_BOUND),
        "gated residual": lambda: (_gradient_error(GatedResidual.apply, (_leaf(n, 2, 3, 8), _leaf(n, 2, 3, 8), _leaf(n, 2, 8))), GRADIENT_BOUND),
        "RMSNorm + RoPE": lambda: (_gradient_error(
            lambda x, weight=n.uniform(16).double() + 0.5, table=_rotary(n): RmsRope.apply(x * 1.0, weight, table, 1e-6, True), (_leaf(n, 2, 3, 2, 8),),
        ), GRADIENT_BOUND),
        "GELU kept in 8 bits": lambda: (_gradient_error(lambda x: Gelu8.apply(x, True), (_leaf(n, 4, 128),), lambda x: gelu_reference(x, True)), KEPT_BOUND),
        "SwiGLU kept in 8 bits": lambda: (_gradient_error(SwiGlu8.apply, (_leaf(n, 4, 128), _leaf(n, 4, 128)), swiglu_reference), KEPT_BOUND),
        "GEGLU kept in 8 bits": lambda: (_gradient_error(GeGlu8.apply, (_leaf(n, 4, 256),), geglu_reference), KEPT_BOUND),
        "LoRA linear": lambda: (lora(), GRADIENT_BOUND),
    }


# ---- all -----------------------------------------------------------------


def run(
    door: Door, *, limit_seconds: float, clock: Callable[[], float] = time.monotonic, told: Callable[[int, int], None] = lambda done, total: None,
    examples: tuple[Example, ...] = EXAMPLES,
) -> list[Finding]:
    """`door`: what may run, by `Door.why_not`. What there is no time for is a finding too. Raises nothing of a kernel's own."""
    began, found = clock(), []
    tries = [(f"gradient of {name}", "autograd", error) for name, error in gradient_errors().items()]
    for example in examples:
        for kind in OPERATIONS[example.operation].implementations:
            if not door.why_not(example.operation, kind):
                tries.append((example.name, kind, lambda example=example, kind=kind: check(example, kind, door.launcher, door.device)))
    with torch.inference_mode(False), torch.enable_grad():
        for index, (name, kind, work) in enumerate(tries):
            told(index, len(tries))
            if clock() - began > limit_seconds:
                found.append(Finding(name=name, implementation=kind, passed=None, words=f"no time left of {limit_seconds:g} s"))
                continue
            found.append(_tried(name, kind, work, clock))
    told(len(tries), len(tries))
    return found


def _tried(name: str, kind: str, work: Callable, clock: Callable[[], float]) -> Finding:
    before = clock()
    try:
        error, second = work()
    except Unfit as reason:
        return Finding(name=name, implementation=kind, passed=None, words=f"does not take {reason}", seconds=clock() - before)
    except (RuntimeError, OSError, ValueError, TypeError, NotImplementedError, AssertionError) as failure:  # one must not hide the others
        words = (str(failure).strip().splitlines() or [""])[0][:300]
        return Finding(name=name, implementation=kind, passed=False, words=f"{type(failure).__name__}: {words}", seconds=clock() - before)
    passed = second if isinstance(second, bool) else error <= second
    return Finding(name=name, implementation=kind, passed=passed, error=error, words="" if passed else "beyond its bound", seconds=clock() - before)
