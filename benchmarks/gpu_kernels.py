"""The kernels on a card: first four questions that decide what is worth having, then each kernel against float64 and its rivals.

A rehearsal runs the same code small on the CPU, with the kernels' own assembly interpreted, and returns that it ran and was
right, without a time. Knows shapes and what a kernel moves; knows no network.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Callable

import torch
from torch import Tensor
from torch.nn import functional

WARMUP, MEASURED = 5, 20
FLUSH_BYTES = 512 << 20  # written between two runs: more than any card's last cache
ERROR_BOUND = {torch.bfloat16: 5e-3, torch.float16: 1e-3, torch.float32: 1e-5}
BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn

# Wan-14B at 1024 x 1024: tokens, width, MLP; and what a rehearsal puts in their place.
FULL, SMALL = (4096, 5120, 13824), (6, 256, 512)
ADAPTER_WEIGHTS, FEW_WEIGHTS = 153_000_000, 1_000  # rank 32 on every linear


def timed(call: Callable, device: torch.device) -> float | None:
    """Median seconds, stamped by the card, with cold caches; None where nothing can be timed."""
    if device.type != "cuda":
        call()
        return None
    scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    times = []
    for index in range(WARMUP + MEASURED):
        scratch.fill_(index & 1)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        call()
        after.record()
        torch.cuda.synchronize()
        if index >= WARMUP:
            times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times)


def rated(row: dict, seconds: dict[str, float | None]) -> dict:
    return {**row, **{f"{name}_s": value for name, value in seconds.items() if value is not None}}


# ---- the four questions --------------------------------------------------


def row_major_operand(device, sizes) -> dict:
    """Does the fp8 product refuse a second operand that lies row by row? If not, the backward needs no transposition."""
    tokens, width, _ = sizes
    tokens = -(-tokens // 16) * 16
    a, b = torch.randn(tokens, width, device=device).to(E4M3), torch.randn(width, width, device=device).to(E4M3)
    scale = torch.ones((), device=device)
    seconds, answers = {}, {}
    for name, second in (("column_major", b.t()), ("row_major", b)):
        try:
            seconds[name] = timed(lambda: torch._scaled_mm(a, second, scale, scale, out_dtype=BF16), device)
            answers[f"{name}_taken"] = True
        except (RuntimeError, ValueError, NotImplementedError) as error:
            answers[f"{name}_taken"] = False
            answers[f"{name}_refusal"] = str(error).splitlines()[0][:200]
    return rated({"shape": [tokens, width, width], **answers}, seconds)


def int8_against_fp8(device, sizes) -> dict:
    """The two libraries' rates at the widths of Wan-14B, and bfloat16's beside them."""
    from pistachio.training.kernels.rows import product_fp8_library, product_fp8_torch, product_int8_library

    tokens, width, mlp = sizes
    found = {}
    for outputs in (width, mlp):
        x, w = torch.randn(tokens, width, device=device, dtype=BF16), torch.randn(outputs, width, device=device, dtype=BF16)
        x8, w8 = (t.clamp(-4, 4).mul(31).to(torch.int8) for t in (x, w))
        xf, wf = x.to(E4M3), w.to(E4M3)
        xs, ws = torch.ones(tokens, device=device), torch.ones(outputs, device=device)
        fp8 = product_fp8_library if device.type == "cuda" else product_fp8_torch  # the CPU's takes no scales by row
        calls = {
            "bf16": lambda: x @ w.t(), "int8": lambda: product_int8_library(x8, w8), "fp8_row": lambda: fp8(xf, wf, xs, ws, BF16),
        }
        for name, call in calls.items():
            try:
                seconds = timed(call, device)
            except (RuntimeError, NotImplementedError) as error:
                found[f"{name}_{outputs}"] = f"unavailable: {str(error).splitlines()[0][:160]}"
                continue
            found[f"{name}_{outputs}"] = "ran" if seconds is None else {"s": seconds, "flop_per_s": 2 * tokens * width * outputs / seconds}
    return {"shape": [tokens, width, [width, mlp]], **found}


def attention_backward(device, sizes) -> dict:
    """cuDNN's attention against FlashAttention 2's, forward and backward apart."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, heads = sizes[0], max(1, sizes[1] // 128)
    found = {}
    for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION), ("math", SDPBackend.MATH)):
        if name == "math" and device.type == "cuda":
            continue  # it would hold tokens x tokens for every head; a rehearsal has no other
        q, k, v = (torch.randn(1, heads, tokens, 128, device=device, dtype=BF16, requires_grad=True) for _ in range(3))
        try:
            with sdpa_kernel(backend):
                y = functional.scaled_dot_product_attention(q, k, v)
                dy = torch.randn_like(y)
                forward = timed(lambda: functional.scaled_dot_product_attention(q, k, v), device)
                backward = timed(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True), device)
        except RuntimeError as error:
            found[name] = f"unavailable: {str(error).splitlines()[0][:160]}"
            continue
        found[name] = "ran" if forward is None else {"forward_s": forward, "backward_s": backward}
    return {"shape": [1, heads, tokens, 128], **found}


def transposition(device, sizes) -> dict:
    """What it costs to lay 8-bit weights on their side, by the kernel and by torch, beside the product that needs it."""
    tokens, width, _ = sizes
    codes = torch.randint(-127, 128, (width, width), dtype=torch.int8, device=device)
    x = torch.randint(-127, 128, (max(tokens, 32), width), dtype=torch.int8, device=device)
    launcher = _launcher(device)
    from pistachio.training.kernels.rows import transpose_cuda

    return rated({"shape": [width, width]}, {
        "kernel": timed(lambda: transpose_cuda(launcher, codes), device), "torch": timed(lambda: codes.t().contiguous(), device),
        "int8_product": timed(lambda: torch._int_mm(x, codes.t()), device),
    })


QUESTIONS: dict[str, Callable[[torch.device, tuple[int, int, int]], dict]] = {
    "a row-major second operand in fp8": row_major_operand, "int8 against fp8": int8_against_fp8,
    "cuDNN against FlashAttention": attention_backward, "transposing weights": transposition,
}


def answer(name: str, device: torch.device, *, rehearse: bool) -> dict:
    found = QUESTIONS[name](device, SMALL if rehearse else FULL)
    return {"question": name, "rehearsed": True} if rehearse else {"question": name, **found}


# ---- the kernels ---------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    operation: str
    arguments: Callable[[torch.device, tuple[int, int, int]], tuple]
    rivals: dict[str, Callable] = field(default_factory=dict)  # what a network or a library does instead, on the same arguments
    writes: tuple[int, ...] = ()  # places of the arguments that are overwritten


def _random(device, *shape, dtype=BF16, scale=1.0) -> Tensor:
    return (torch.randn(shape, device=device) * scale).to(dtype)


def _rows(device, sizes):
    return _random(device, 1, sizes[0], sizes[1])


def _norm_arguments(device, sizes):
    vector = _random(device, 1, sizes[1], scale=0.1)
    return _rows(device, sizes), None, None, vector, vector, 1e-6, True


def _norm_backward(device, sizes):
    x = _rows(device, sizes)
    values = x.float()
    mean = values.mean(-1)
    return _rows(device, sizes), x, mean, torch.rsqrt(values.var(-1, unbiased=False) + 1e-6), None, _random(device, 1, sizes[1], scale=0.1), True


def _sums(device, sizes):
    dy, x, mean, rstd, *_ = _norm_backward(device, sizes)
    return dy, x, mean, rstd, None, None


def _heads(device, sizes):
    tokens, width, _ = sizes
    x = _random(device, 1, tokens, width // 128, 128)
    angles = torch.rand(1, tokens, 64, device=device) * 6
    table = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    return x, (1 + _random(device, width, dtype=torch.float32, scale=0.1)).to(BF16), table


def _rope(device, sizes):
    return (*_heads(device, sizes), 1e-6, True)


def _rope_backward(device, sizes):
    z, weight, table = _heads(device, sizes)
    return torch.randn_like(z), z, weight, table, torch.rand(1, sizes[0], device=device) + 0.5, True


def _kept(x: Tensor):
    from pistachio.training.kernels.activation import keep

    return keep(x)


def _gelu_backward(device, sizes):
    return _random(device, sizes[0], sizes[2]), *_kept(_random(device, sizes[0], sizes[2])), True


def _swiglu_backward(device, sizes):
    return _random(device, sizes[0], sizes[2]), *_kept(_random(device, sizes[0], sizes[2])), *_kept(_random(device, sizes[0], sizes[2]))


def _flat(device, sizes, kinds):
    count = ADAPTER_WEIGHTS if sizes == FULL else FEW_WEIGHTS
    return count, [torch.zeros(count, device=device, dtype=kind) for kind in kinds]


def _settings(device):
    from pistachio.training.kernels.adamw import knobs

    return knobs(device, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, step=3)


def _adamw(device, sizes):
    count, (m, v) = _flat(device, sizes, (torch.float32, torch.float32))
    return _random(device, count, dtype=torch.float32), _random(device, count, dtype=torch.float32), m, v.add_(1), _settings(device), torch.tensor(0.5, device=device)


def _adamw8(device, sizes):
    from pistachio.training.kernels.adamw import keys
    from pistachio.training.optimizers.eight_bit import dynamic_codes

    count, (compensation,) = _flat(device, sizes, (BF16,))
    padded = -(-count // 256) * 256
    codes, scales = torch.zeros(padded, dtype=torch.uint8, device=device), torch.zeros(padded // 256, device=device)
    grids = dynamic_codes(True).to(device), dynamic_codes(False).square().to(device)
    p, g = (_random(device, count, dtype=torch.float32) for _ in range(2))
    return p, g, codes, scales, codes.clone(), scales.clone(), compensation, *grids, _settings(device), torch.tensor(0.5, device=device), keys(device, 5)


def _int32(device, sizes):
    return torch.randint(-(2**20), 2**20, (sizes[0], sizes[1]), dtype=torch.int32, device=device)


CASES: dict[str, Case] = {
    "norm + modulate": Case(
        operation="norm_modulate", arguments=_norm_arguments,
        rivals={"eager": lambda x, w, b, shift, scale, eps, c: torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=eps), 1 + scale)},
    ),
    "norm + modulate backward": Case(operation="norm_modulate_backward", arguments=_norm_backward),
    "sums over tokens": Case(operation="column_sums", arguments=_sums),
    "gated residual": Case(
        operation="gated_residual", arguments=lambda d, s: (_rows(d, s), _rows(d, s), _random(d, 1, s[1])),
        rivals={"eager": lambda x, y, gate: torch.addcmul(x, y, gate)},
    ),
    "GELU kept in 8 bits": Case(
        operation="gelu8", arguments=lambda d, s: (_random(d, s[0], s[2]), True),
        rivals={"eager, kept in bf16": lambda x, tanh: functional.gelu(x, approximate="tanh")},
    ),
    "GELU backward from 8 bits": Case(operation="gelu8_backward", arguments=_gelu_backward),
    "SwiGLU kept in 8 bits": Case(
        operation="swiglu8", arguments=lambda d, s: (_random(d, s[0], s[2]), _random(d, s[0], s[2])),
        rivals={"eager, kept in bf16": lambda a, b: functional.silu(a) * b},
    ),
    "SwiGLU backward from 8 bits": Case(operation="swiglu8_backward", arguments=_swiglu_backward),
    "RMSNorm + RoPE": Case(operation="rms_rope_", arguments=_rope, writes=(0,)),
    "RMSNorm + RoPE backward": Case(operation="rms_rope_backward", arguments=_rope_backward),
    "rows to int8, rotated": Case(operation="quantise_rows", arguments=lambda d, s: (_random(d, s[0], s[1]), None, False, 256)),
    "rows to int8, folded": Case(
        operation="quantise_rows", arguments=lambda d, s: (_random(d, s[0], s[1]), torch.rand(s[1], device=d), False, 0),
    ),
    "rows to e4m3": Case(operation="quantise_rows", arguments=lambda d, s: (_random(d, s[0], s[1]), None, True, 0)),
    "sums to bf16, both scales": Case(
        operation="rescale_rows",
        arguments=lambda d, s: (_int32(d, s), torch.rand(s[0], device=d), torch.rand(s[1], device=d), None, 0, BF16),
    ),
    "sums to bf16, rotated": Case(
        operation="rescale_rows", arguments=lambda d, s: (_int32(d, s), torch.rand(s[0], device=d), None, None, 256, BF16),
    ),
    "weights to bf16": Case(
        operation="rescale_rows",
        arguments=lambda d, s: (torch.randint(-127, 128, (s[1], s[1]), dtype=torch.int8, device=d), torch.rand(s[1], device=d), None, None, 256, BF16),
    ),
    "weights on their side": Case(
        operation="transpose_bytes", arguments=lambda d, s: (torch.randint(-127, 128, (s[1], s[1]), dtype=torch.int8, device=d),),
    ),
    "AdamW": Case(operation="adamw_", arguments=_adamw, writes=(0, 2, 3)),
    "AdamW 8-bit with Kahan": Case(operation="adamw8_", arguments=_adamw8, writes=(0, 2, 3, 4, 5, 6)),
}


def _launcher(device: torch.device):
    if device.type != "cuda":
        from support.ptx import Interpreter

        return Interpreter()
    from pistachio.training.kernels.door import cache_folder
    from pistachio.training.kernels.launch import CudaLauncher

    return CudaLauncher(cache_folder())


def _copy(arguments: tuple) -> tuple:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)


def _results(returned, arguments: tuple, case: Case) -> list[Tensor]:
    returned = () if returned is None else returned if isinstance(returned, tuple) else (returned,)
    return [t for t in (*returned, *(arguments[i] for i in case.writes)) if t.numel()]


def _exact(arguments: tuple) -> tuple:
    kept = (torch.int8, torch.uint8, torch.int32, E4M3)
    return tuple(a.double() if isinstance(a, Tensor) and a.dtype not in kept else a for a in arguments)


def max_error(case: Case, device: torch.device, sizes) -> tuple[float, bool]:
    """(largest relative error of the results that are numbers, within bounds): the kernel against torch in float64.

    Codes may differ by one where a value lies between two; those of the optimiser are compared by a float32 step, since
    its grid's look-up is by the bits of a float32.
    """
    from pistachio.training.kernels.table import OPERATIONS

    operation, arguments = OPERATIONS[case.operation], case.arguments(device, sizes)
    mine, theirs = _copy(arguments), _copy(arguments) if case.operation == "adamw8_" else _exact(_copy(arguments))
    got = _results(operation.cuda(_launcher(device), *mine), mine, case)
    want = _results(operation.torch(*theirs), theirs, case)
    worst, passed = 0.0, True
    for one, other in zip(got, want, strict=True):
        if one.dtype in (torch.int8, torch.uint8) and case.operation != "transpose_bytes":
            passed &= (one.int() - other.int()).abs().max().item() <= 1
        elif one.dtype == E4M3:
            passed &= (one.view(torch.uint8).int() - other.view(torch.uint8).int()).abs().max().item() <= 1
        elif not one.is_floating_point():
            passed &= torch.equal(one, other)
        else:
            error = ((one.double() - other.double()).norm() / other.double().norm().clamp(min=1e-300)).item()
            # What the compensation holds is the rounding itself.
            if case.operation == "adamw8_" and one.dtype == BF16:
                passed &= bool(one.isfinite().all())
                continue
            worst, passed = max(worst, error), passed and error <= ERROR_BOUND[one.dtype]
    return worst, passed


def moved_bytes(case: Case, arguments: tuple, results: list[Tensor]) -> int:
    """Each tensor read or written once; what is overwritten twice."""
    written = {id(arguments[i]) for i in case.writes}
    return sum(a.nbytes for a in arguments if isinstance(a, Tensor)) + sum(r.nbytes for r in results if id(r) not in written) + sum(
        arguments[i].nbytes for i in case.writes
    )


def measure_kernel(name: str, device: torch.device, bandwidth: float | None, *, rehearse: bool) -> dict:
    from pistachio.training.kernels.table import OPERATIONS

    case, sizes = CASES[name], SMALL if rehearse else FULL
    operation = OPERATIONS[case.operation]
    error, passed = max_error(case, device, SMALL)
    row: dict = {"kernel": name, "operation": case.operation, "max_rel_err": error, "passed": passed}
    arguments, launcher = case.arguments(device, sizes), _launcher(device)
    results = _results(operation.cuda(launcher, *arguments), arguments, case)
    size_bytes = moved_bytes(case, arguments, results)
    own = timed(lambda: operation.cuda(launcher, *arguments), device)
    compiled = torch.compile(operation.torch, backend="eager" if rehearse else "inductor", dynamic=False)
    rivals: dict[str, Callable] = {"torch": operation.torch, "torch_compiled": compiled, **case.rivals}
    if operation.library is not None:
        rivals["library"] = operation.library
    for rival, call in rivals.items():
        try:
            seconds = timed(lambda: call(*arguments), device)
        except Exception as failure:  # a rival that fails must not hide the kernel's own figures; the row says so
            row[f"{rival}_failed"] = f"{type(failure).__name__}: {str(failure).splitlines()[0][:160] if str(failure) else ''}"
            continue
        if seconds is not None:
            row[f"{rival}_s"] = seconds
    if rehearse:
        failed = [key for key in row if key.endswith("_failed") and not key.startswith("library")]
        return {"kernel": name, "rehearsed": passed and size_bytes > 0 and not failed, **({"failed": {key: row[key] for key in failed}} if failed else {})}
    share = size_bytes / own / bandwidth if own and bandwidth else None
    return {**row, "kernel_s": own, "moved_bytes": size_bytes, "bandwidth_share": share}


def copy_bandwidth(device: torch.device, *, rehearse: bool) -> float | None:
    """Bytes a second of the card's own copy of a large buffer, read and written; None in a rehearsal."""
    source = torch.empty(1 << 10 if rehearse else 1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device)
    return None if seconds is None else 2 * source.nbytes / seconds
