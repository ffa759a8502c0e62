"""The 8-bit LoRA product's own assembly, run on the CPU by support.ptx, against float64; and the norm that writes codes for it.

Results begin as NaN. What a card would race on (a slot of shared memory filled too early, read too early) is an error there.
"""

import pytest
import torch
from pistachio.training.kernels import codes as codes_module
from pistachio.training.kernels import forget_inputs, gemm, neighbours, norm_modulate, programs
from pistachio.training.kernels.codes import codes_of, forget
from pistachio.training.kernels.door import Door, open_door, shut_doors, whole_products
from pistachio.training.kernels.gemm import pool_bytes, tiles_of
from pistachio.training.kernels.glue import Unfit
from pistachio.training.kernels.linear import Adapter, LowRank, lora_linear, product, product_backward
from pistachio.training.kernels.neighbours import low_rank_input
from pistachio.training.kernels.norm import NormModulate
from pistachio.training.kernels.table import OPERATIONS
from pistachio.training.quantization.formats import dequantize, quantize, rotate

from support.compiler import needs_compiler
from support.ptx import Fault, Interpreter, parsed

BF16, F32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
CPU = torch.device("cpu")


pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty gives NaN, and the largest integer for integers."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    shut_doors()
    forget_inputs()


def seeded(*shape, dtype=F32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def codes(rows, cols, seed, *, fp8=False, gap=0):
    """With `gap` bytes between rows."""
    if fp8:
        return seeded(rows, cols + gap, seed=seed).to(E4M3)[:, :cols]
    return torch.randint(-127, 128, (rows, cols + gap), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))[:, :cols]


def error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def arguments(rows, cols, shared, rank, group, *, fp8=False, gap=0, bare=False):
    t, u = (None, None) if not rank else (seeded(rows, rank, dtype=BF16, scale=50.0, seed=3), seeded(rank, cols, dtype=BF16, scale=50.0, seed=4).t())
    scales = (seeded(rows, seed=5).abs() + 0.1, None if bare else seeded(cols, seed=6).abs() + 0.1, None if bare else seeded(cols, scale=100.0, seed=7))
    return codes(rows, shared, 1, fp8=fp8, gap=gap), codes(cols, shared, 2, fp8=fp8), *scales, t, u, 0.3 if rank else 1.0, group


def exact(a, b, row_scale, col_scale, bias, t, u, alpha, group):
    y = (a.double() @ b.double().t()) * row_scale.double()[:, None]
    y = y if col_scale is None else y * col_scale.double()
    y = rotate(y, group) if group else y
    y = y if bias is None else y + bias.double()
    return y if t is None else y + alpha * t.double() @ u.double().t()


# rows, columns, shared axis, rank, group, result: tails of every kind, two blocks along either axis, no rank and ranks 1 to 64
CASES = [
    (5, 48, 96, 4, 16, BF16, "compute_80"), (33, 300, 80, 1, 0, F32, "compute_80"), (1, 512, 208, 64, 256, BF16, "compute_90"),
    (20, 256, 336, 16, 256, BF16, "compute_90"),
]


@pytest.mark.parametrize("rows, cols, shared, rank, group, dtype, target", CASES)
def test_int8_with_scales_low_rank_rotation_and_bias(rows, cols, shared, rank, group, dtype, target):
    given = arguments(rows, cols, shared, rank, group, gap=16)
    got = OPERATIONS["product_lora_int8"].cuda(Interpreter(target), *given, dtype)
    assert got.dtype == dtype and got.is_contiguous()
    assert error(got, exact(*given)) < (3e-3 if dtype == BF16 else 3e-6)
    # What is asked without a kernel is the same.
    assert error(OPERATIONS["product_lora_int8"].torch(*given, F32), exact(*given)) < 1e-6


def test_a_block_of_many_rows_and_nothing_beside_the_product():
    given = arguments(130, 24, 64, 0, 0, bare=True)
    got = OPERATIONS["product_lora_int8"].cuda(Interpreter("compute_80"), *given, F32)
    assert error(got, exact(*given)) < 1e-6


@pytest.mark.parametrize("major", [8, 10])
def test_e4m3_with_a_low_rank_part(major, monkeypatch):
    """In the blocks of both kinds of card."""
    assert tiles_of(True, major) == (2 if major == 10 else 4) and tiles_of(False, major) == 4
    monkeypatch.setattr(gemm, "tiles_of", lambda fp8, _: tiles_of(fp8, major))
    given = arguments(75, 77, 48, 8, 0, fp8=True)
    got = OPERATIONS["product_lora_fp8"].cuda(Interpreter("compute_89"), *given, BF16)
    assert error(got, exact(*given)) < 3e-3
    with pytest.raises(Unfit, match="rotation of e4m3"):
        OPERATIONS["product_lora_fp8"].cuda(Interpreter("compute_89"), *arguments(9, 64, 48, 0, 16, fp8=True), BF16)


def test_an_empty_batch_starts_nothing():
    runner = Interpreter("compute_80")
    assert OPERATIONS["product_lora_int8"].cuda(runner, *arguments(0, 48, 96, 4, 0), BF16).shape == (0, 48) and not runner.launched


def test_what_it_does_not_take_is_told_and_another_way_found():
    door = open_door("cuda", CPU, launcher=Interpreter("compute_80"))
    packed = quantize(seeded(16, 24 * 16), "int8-convrot")
    low_rank = LowRank(seeded(3, 4), seeded(16, 4), 1.0)
    assert error(product(seeded(3, 24 * 16), packed, None, low_rank), seeded(3, 24 * 16) @ dequantize(packed).t() + low_rank.t @ low_rank.u.t()) < 2e-2
    assert door.notes == ["Kernel product_lora_int8: torch instead of cuda for a low-rank part in torch.float32."]
    with pytest.raises(Unfit, match="begin at 16 bytes"):
        OPERATIONS["product_lora_int8"].cuda(Interpreter("compute_80"), *arguments(3, 8, 40, 0, 0), BF16)


def test_shared_memory_fits_every_card_since_ampere():
    assert all(pool_bytes(tiles) <= 99 * 1024 and 32 * 264 * 4 <= pool_bytes(tiles) for tiles in (1, 2, 4))  # 16 rows a warp, padded


@pytest.mark.parametrize("capability, told", [((7, 5), "needs compute capability 8.0, the card has 7.5"), ((8, 6), "")])
def test_older_cards_step_aside(monkeypatch, capability, told):
    from pistachio.training.kernels import door as door_module

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a card")
    monkeypatch.setattr(door_module, "_why_no_cuda", lambda device: "")
    door = Door("cuda", torch.device("cuda:0"))
    for name, kind in (("product_lora_int8", "torch" if told else "cuda"), ("product_lora_fp8", "torch"), ("norm_modulate", "cuda")):
        assert door.implementation(name) == kind
    assert told in door.choices["product_lora_int8"].reason


# ---- the interpreter sees what a card would race on ------------------------


@pytest.mark.parametrize("before, after, told", [
    ("        wait_for_oldest();\n", "", "still on"),
    ("        __syncthreads();\n        begin(step", "        begin(step", "since the last barrier|still on"),
    ("begin(step + STAGES - 1)", "begin(step + STAGES)", "since the last barrier|still on|NaN"),
])
def test_a_broken_pipeline_is_seen(monkeypatch, before, after, told):
    kept = programs.source_text
    assert before in kept("gemm")
    monkeypatch.setattr(programs, "source_text", lambda name: kept(name).replace(before, after))
    parsed.cache_clear()
    try:
        with pytest.raises(Fault, match=told):
            OPERATIONS["product_lora_int8"].cuda(Interpreter("compute_80"), *arguments(5, 48, 640, 0, 0), F32)
    finally:
        parsed.cache_clear()


# ---- the whole linear ------------------------------------------------------


@pytest.mark.parametrize("format, rank, target", [("int8-convrot", 16, "compute_80"), ("fp8-row", 4, "compute_89")])
def test_a_lora_linear_is_one_kernel_each_way(format, rank, target):
    tokens, inputs, outputs = 17, 256, 48
    packed, bias = quantize(seeded(outputs, inputs, scale=0.06), format), seeded(outputs, seed=3)
    x = seeded(tokens, inputs, seed=1, dtype=BF16).requires_grad_(True)
    a, b = (seeded(*shape, seed=2, scale=0.1, dtype=BF16).requires_grad_(True) for shape in ((rank, inputs), (outputs, rank)))
    dy = seeded(tokens, outputs, seed=4, scale=1e-6, dtype=BF16)
    runner = Interpreter(target)
    name = {"int8-convrot": "product_lora_int8", "fp8-row": "product_lora_fp8"}[format]
    open_door(f"{name}=cuda", CPU, launcher=runner)
    assert whole_products(CPU, format)
    y = lora_linear(x, packed, bias, [Adapter(a, b)], 0.5)
    y.backward(dy)
    assert runner.launched == [name] * 2
    weight, update = dequantize(packed).double(), 0.5 * b.detach().double() @ a.detach().double()
    assert error(y.detach(), x.detach().double() @ (weight + update).t() + bias.double()) < (2e-2 if format == "int8-convrot" else 5e-2)
    assert error(x.grad, dy.double() @ (weight + update)) < 5e-2
    assert error(a.grad, 0.5 * (dy.double() @ b.detach().double()).t() @ x.detach().double()) < 1e-2


@pytest.mark.parametrize("power", [0, 4, 8])
def test_gradients_of_any_size(power):
    packed = quantize(seeded(32, 256, scale=0.06), "int8-convrot")
    dy = seeded(6, 32, seed=1, scale=10.0**-power, dtype=BF16)
    open_door("product_lora_int8=cuda", CPU, launcher=Interpreter("compute_80"))
    low_rank = LowRank(seeded(6, 4, seed=2, scale=10.0**-power, dtype=BF16), seeded(256, 4, seed=3, scale=0.1, dtype=BF16), 0.5)
    want = dy.double() @ dequantize(packed).double() + 0.5 * low_rank.t.double() @ low_rank.u.double().t()
    assert error(product_backward(dy, packed, low_rank), want) < 5e-2


# ---- codes that are made once ----------------------------------------------


@pytest.mark.parametrize("fp8, group, cols", [(False, 256, 512), (True, 0, 77)])
def test_a_norm_writes_codes_of_what_it_writes(fp8, group, cols):
    x = seeded(2, 3, cols, dtype=BF16, scale=3.0)
    shift, scale = seeded(2, cols, seed=1, dtype=BF16), seeded(2, cols, seed=2, dtype=BF16)
    runner = Interpreter("compute_90")
    y, mean, rstd, codes_, scales = OPERATIONS["norm_modulate_codes"].cuda(runner, x, None, None, shift, scale, 1e-6, True, fp8, group)
    plain = OPERATIONS["norm_modulate"].cuda(runner, x, None, None, shift, scale, 1e-6, True)
    assert all(torch.equal(one, other) for one, other in zip((y, mean, rstd), plain))
    again, their_scales = OPERATIONS["quantise_rows"].cuda(runner, y.view(-1, cols), None, fp8, group)
    assert torch.equal(codes_.view(torch.uint8), again.view(torch.uint8)) and torch.equal(scales, their_scales)
    want = OPERATIONS["norm_modulate_codes"].torch(x.double(), None, None, shift.double(), scale.double(), 1e-6, True, fp8, group)
    # Codes of rounded values: a step more where the value was rounded up, as quantise_rows of y has it.
    assert (codes_.float() - want[3].float()).abs().max() <= (1 if not fp8 else 32)


def test_a_norms_codes_reach_the_product_and_are_made_once_for_three():
    packed = [quantize(seeded(32, 256, seed=seed, scale=0.06), "int8-convrot") for seed in range(3)]
    runner = Interpreter("compute_80")
    open_door("cuda", CPU, launcher=runner)
    x = seeded(1, 4, 256, dtype=BF16)
    y = norm_modulate(x, eps=1e-6, centred=True, codes_for=(False, 256))
    results = [product(y.view(-1, 256), each, None) for each in packed]
    assert runner.launched == ["norm_modulate_codes", *["product_lora_int8"] * 3]
    forget()
    assert torch.equal(product(y.view(-1, 256), packed[0], None), results[0]) and runner.launched[-2:] == ["quantise_rows", "product_lora_int8"]


def test_kept_codes_are_never_of_other_rows():
    x = seeded(4, 256)
    codes_, scales = codes_of(x, False, 256)
    assert codes_of(x.view(2, 2, 256).reshape(-1, 256), False, 256)[0] is codes_
    assert codes_of(x, False, 64)[0] is not codes_  # another rotation
    codes_of(x, False, 256)
    x.mul_(2)
    torch.testing.assert_close(codes_of(x, False, 256)[1], 2 * scales)
    last = codes_module._last[CPU]
    del x
    assert last.storage.expired()
    assert codes_of(seeded(4, 256), False, 256)[0] is not last.codes
    with torch.inference_mode():  # no count of writes
        inside = seeded(4, 256)
        codes_of(inside, False, 256)
        inside.mul_(3)
        torch.testing.assert_close(codes_of(inside, False, 256)[1], 3 * scales)


def test_gradients_pass_a_norm_with_codes():
    x, shift = seeded(1, 3, 16).double().requires_grad_(True), seeded(1, 16, seed=1).double().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, shift: NormModulate.apply(x, None, None, shift, shift, 1e-6, True, (False, 16)), (x, shift))


class Site:
    def __init__(self, rank, seed):
        self.a_RI, self.neighbours = seeded(rank, 8, seed=seed), ()


def test_layers_that_read_the_same_rows_share_one_product(monkeypatch):
    sites, taken = [Site(rank, seed) for seed, rank in enumerate((2, 4, 3))], []
    product_ = torch.Tensor.mm
    monkeypatch.setattr(torch.Tensor, "mm", lambda x, a: taken.append(tuple(a.shape)) or product_(x, a))

    def run(x, order=(0, 1, 2)):
        taken.clear()
        for index in order:
            torch.testing.assert_close(low_rank_input(x, sites[index]), product_(x, sites[index].a_RI.t()))

    run(seeded(5, 8, seed=10))
    assert taken == [(8, 2), (8, 4), (8, 3)]  # not known yet
    x = seeded(5, 8, seed=11)
    run(x)
    assert taken == [(8, 9)]
    for site in sites:
        site.a_RI.mul_(2)  # a step of the optimiser, over rows that stay
    run(x)
    assert taken == [(8, 9)]
    run(seeded(5, 8, seed=12), order=(1, 0, 2))  # another order: nobody leads at first, and nothing is wrong
    for _ in range(2):
        run(seeded(5, 8, seed=13), order=(0,))
    x = seeded(8, 8, seed=14)
    run(x)
    run(x.t())  # the same memory, other rows
    neighbours.forget()
    assert not neighbours._last
