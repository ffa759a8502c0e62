"""Four questions whose answers decide which kernels are worth having, asked of the card before anything else.

A rehearsal runs the same code small on the CPU and returns that it ran. Knows shapes and libraries; knows no network.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch.nn import functional

from gpu_card import timed

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn
# Wan-14B at 1024 x 1024: tokens, width, MLP; and what a rehearsal puts in their place.
FULL, SMALL = (4096, 5120, 13824), (6, 256, 512)


def rated(row: dict, seconds: dict[str, float | None]) -> dict:
    return {**row, **{f"{name}_s": value for name, value in seconds.items() if value is not None}}


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
    launcher = launcher_for(device)
    from pistachio.training.kernels.rows import transpose_cuda

    return rated({"shape": [width, width]}, {
        "kernel": timed(lambda: transpose_cuda(launcher, codes), device), "torch": timed(lambda: codes.t().contiguous(), device),
        "int8_product": timed(lambda: torch._int_mm(x, codes.t()), device),
    })


def launcher_for(device: torch.device):
    """What starts kernels on the card; on a CPU the interpreter of their assembly."""
    if device.type != "cuda":
        from support.ptx import Interpreter

        return Interpreter()
    from pistachio.training.kernels.door import cache_folder
    from pistachio.training.kernels.launch import CudaLauncher

    return CudaLauncher(cache_folder())


QUESTIONS: dict[str, Callable[[torch.device, tuple[int, int, int]], dict]] = {
    "a row-major second operand in fp8": row_major_operand, "int8 against fp8": int8_against_fp8,
    "cuDNN against FlashAttention": attention_backward, "transposing weights": transposition,
}


def answer(name: str, device: torch.device, *, rehearse: bool) -> dict:
    found = QUESTIONS[name](device, SMALL if rehearse else FULL)
    return {"question": name, "rehearsed": True} if rehearse else {"question": name, **found}
