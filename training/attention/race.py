"""A short race of attention backends: forward and backward on tensors of a run's own shape, right before fast.

Knows backends as functions; the clock and the numbers of repeats are given, so that a test can race plain functions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Callable, Sequence

import torch
from torch import Tensor

from .backends import Backend, Shape, additive

WARM_UPS = 2
REPEATS = 5
CHECKED_QUERIES = 512  # of one head: enough to tell a wrong result, and no large score matrix
# Largest |error| / |reference| of the output and of each gradient.
TOLERANCES = {"float64": 1e-9, "float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Heat:
    """One backend on one shape: its time, or why it is out."""

    backend: str
    seconds: float | None
    reason: str = ""


def compete(
    backends: Sequence[Backend], shape: Shape, device: torch.device, *, capability: tuple[int, int] = (0, 0),
    time_of: Callable[[Callable[[], None], torch.device], float] | None = None,
) -> list[Heat]:
    """All backends in their order. None raises: one that fails is out, with its reason."""
    heats = []
    for backend in backends:
        reason = backend.why_not(shape, capability)
        seconds = None
        if reason is None:
            try:
                reason = _why_wrong(backend, shape, device)
                if reason is None:
                    seconds = (time_of or seconds_of)(_call(backend, shape, device), device)
            except torch.OutOfMemoryError:
                reason = "ran out of memory"
            except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
                reason = f"failed ({type(error).__name__}: {_first_line(error)})"
        heats.append(Heat(backend=backend.name, seconds=seconds, reason=reason or ""))
    return heats


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def winner(heats: Sequence[Heat]) -> str | None:
    """The fastest, the earlier of equals; None if none finished."""
    finished = [heat for heat in heats if heat.seconds is not None]
    return min(finished, key=lambda heat: heat.seconds).backend if finished else None


def _inputs(shape: Shape, device: torch.device) -> tuple[list[Tensor], Tensor | None]:
    """q, k, v and a mask that hides some keys. The global random numbers are left alone."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = getattr(torch, shape.dtype)

    def random(heads: int, count: int) -> Tensor:
        # As a network gives them: views of [B, T, H D].
        tensor = torch.randn(shape.batch, count, heads, shape.width, dtype=dtype, device=device, generator=generator)
        return tensor.transpose(1, 2).requires_grad_(True)

    q, k, v = random(shape.heads, shape.queries), random(shape.key_heads, shape.keys), random(shape.key_heads, shape.keys)
    if not shape.mask:
        return [q, k, v], None
    mask = torch.rand(shape.batch, 1, shape.queries, shape.keys, device=device, generator=generator) < 0.75
    mask[..., 0] = True
    return [q, k, v], mask if shape.mask == "bool" else additive(mask, getattr(torch, shape.mask))


def _call(backend: Backend, shape: Shape, device: torch.device) -> Callable[[], None]:
    inputs, mask = _inputs(shape, device)
    gradient: list[Tensor] = []

    def run() -> None:
        out = backend.run(*inputs, mask, None)
        if not gradient:
            gradient.append(out.detach().clone())
        torch.autograd.grad(out, inputs, gradient[0])

    return run


def _why_wrong(backend: Backend, shape: Shape, device: torch.device) -> str | None:
    """Against attention written out, on one head of each group."""
    groups = shape.heads // shape.key_heads
    small = replace(shape, batch=1, heads=groups, key_heads=1, queries=min(shape.queries, CHECKED_QUERIES))
    inputs, mask = _inputs(small, device)
    out = backend.run(*inputs, mask, None)
    if not out.requires_grad:
        return "has no backward"
    precise = [tensor.detach().double().requires_grad_(True) for tensor in inputs]
    expected = written_out(*precise, mask)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(device)
    found = [out, *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]
    wanted = [expected, *torch.autograd.grad(expected, precise, gradient)]
    for name, a, b in zip(("output", "gradient of q", "gradient of k", "gradient of v"), found, wanted):
        error = ((a.double() - b).norm() / b.norm()).item()
        if not error <= TOLERANCES[shape.dtype]:
            return f"is wrong: its {name} is off by {error:.2g}"
    return None


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + additive(mask, scores.dtype)
    return scores.softmax(-1) @ v


def seconds_of(run: Callable[[], None], device: torch.device) -> float:
    """Median of a few, after a warm-up."""
    for _ in range(WARM_UPS):
        run()
    times = []
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began)
    return median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
