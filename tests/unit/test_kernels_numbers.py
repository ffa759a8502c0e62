"""Every kernel's own assembly, run on the CPU by support.ptx, against float64: odd shapes, strides, empty batches.

Outputs begin as NaN (or the largest integer), so what a kernel leaves unwritten is seen; what it reads or writes outside
its tensors is an error of the interpreter's.
"""

import pytest
import torch
from pistachio.training.kernels import adamw, programs
from pistachio.training.kernels.adamw import chance, keys, knobs
from pistachio.training.kernels.door import open_door, shut_doors
from pistachio.training.kernels.glue import Unfit
from pistachio.training.kernels.linear import Adapter, lora_linear
from pistachio.training.kernels.table import OPERATIONS
from pistachio.training.optimizers.eight_bit import AdamW8bitKahan, EightBit, dynamic_codes
from pistachio.training.quantization.formats import dequantize, quantize

from support.compiler import needs_compiler
from support.ptx import Fault, Interpreter, parsed

BF16, F16, F32, E4M3 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
TOLERANCE = {BF16: 3e-3, F16: 5e-4, F32: 1e-6}
CPU = torch.device("cpu")


pytestmark = needs_compiler


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty gives NaN, and the largest integer for integers."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def seeded(*shape, dtype=F32, seed=0, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def exact(value):
    """float64 of what the kernel was given."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != E4M3:
        return value.double()
    return value


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def compare(got, want):
    assert got.shape == want.shape
    if got.dtype in (torch.int8, E4M3):
        # A value halfway between two codes, rounded in another precision, may take the other one.
        step = (got.float() - want.float()).abs() / (1 if got.dtype == torch.int8 else want.float().abs().clamp(min=2**-6) / 8)
        assert step.numel() == 0 or (step.max() <= 1.01 and (step > 0).float().mean() < 2e-3)
    elif not got.is_floating_point():
        assert torch.equal(got, want)
    elif got.numel():
        error = (got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300)
        assert error <= TOLERANCE[got.dtype], f"relative error {error:.1e}"


def check(name, *arguments, target="compute_75"):
    runner = Interpreter(target)
    got = as_tuple(OPERATIONS[name].cuda(runner, *arguments))
    want = as_tuple(OPERATIONS[name].torch(*map(exact, arguments)))
    assert bool(runner.launched) == any(part.numel() > 0 for part in got)
    for mine, theirs in zip(got, want, strict=True):
        compare(mine, theirs)
    return got


# dtype, columns: eight at a time; a tail that no vector covers; more than one group a thread
ROWS = [(BF16, 520, "compute_75"), (BF16, 2056, "compute_90"), (F32, 77, "compute_75"), (F16, 40, "compute_90")]


@pytest.mark.parametrize("dtype, cols, target", ROWS)
@pytest.mark.parametrize("centred", [True, False])
def test_norm_and_modulation(dtype, cols, target, centred):
    wide = seeded(2, 5, cols + 16, dtype=dtype, scale=3.0) + 1
    x = wide[:, :, 8 : cols + 8]  # a view with gaps between rows
    shift, scale = seeded(2, cols, dtype=dtype, seed=1), seeded(1, 5, cols, dtype=dtype, seed=2)
    weight, bias = (None, None) if centred else (seeded(cols, dtype=dtype, seed=3), seeded(cols, dtype=F32, seed=4))
    _, mean, rstd = check("norm_modulate", x, weight, bias, shift, scale, 1e-6, centred, target=target)
    dy = seeded(2, 5, cols, dtype=dtype, seed=5)
    check("norm_modulate_backward", dy, x, mean, rstd, weight, scale, centred, target=target)
    check("column_sums", dy, x, mean, rstd, weight, bias, target=target)
    check("norm_modulate", x, weight, bias, shift, 1 + scale, 1e-6, centred, 0.0, target=target)  # the caller has added the one
    check("norm_modulate_backward", dy, x, mean, rstd, weight, 1 + scale, centred, 0.0, target=target)


def test_modulation_of_another_type_is_made_alike_before_it_is_repeated():
    """A float32 copy of [B, T, C] would be as much traffic as the row kernel saves."""
    x, shift, weight = seeded(1, 4096, 64, dtype=BF16), seeded(1, 64, dtype=BF16, seed=1), seeded(64, seed=2)
    given = []

    class Written:
        def launch(self, program, entry, grid, threads, arguments, device, *, shared_bytes=0):
            given.extend(arguments)

    OPERATIONS["norm_modulate"].cuda(Written(), x, weight, None, shift, None, 1e-6, False)
    (vector,) = [part for part in given if isinstance(part, torch.Tensor) and part.dtype == F32 and part.shape == x.shape]
    assert vector.untyped_storage().nbytes() == 64 * 4


def test_norm_without_modulation_and_many_tokens():
    x = seeded(1, 131, 24, dtype=BF16)  # three parts of column_sums, the last one short
    _, mean, rstd = check("norm_modulate", x, None, None, None, None, 1e-6, True)
    check("column_sums", x, None, None, None, None, None)
    check("column_sums", x, x, mean, rstd, None, None)


@pytest.mark.parametrize("dtype, cols, target", ROWS[:3])
def test_gated_residual(dtype, cols, target):
    x, y = seeded(2, 3, cols, dtype=dtype), seeded(3, 2, cols, dtype=dtype, seed=1).transpose(0, 1)
    check("gated_residual", x, y, seeded(2, cols, dtype=dtype, seed=2), target=target)
    check("gated_residual", None, y, seeded(1, 3, cols, seed=2), target=target)


@pytest.mark.parametrize("dtype, cols, target", [(BF16, 528, "compute_75"), (F32, 77, "compute_90"), (F16, 2049, "compute_75")])
def test_activations_and_their_backwards(dtype, cols, target):
    wide = seeded(5, 2 * cols, dtype=dtype, scale=2.0)
    a, b = wide[:, :cols], wide[:, cols:]  # halves of one product
    a[1] = 0  # no scale
    dy = seeded(5, cols, dtype=dtype, seed=1)
    _, codes, scales = check("gelu8", a, cols % 2 == 0, target=target)
    check("gelu8_backward", dy, codes, scales, cols % 2 == 0, target=target)
    _, *kept = check("swiglu8", a, b, target=target)
    check("swiglu8_backward", dy, *kept, target=target)
    _, *kept = check("geglu8", wide, target=target)
    check("geglu8_backward", dy, *kept, target=target)


@pytest.mark.parametrize("dtype, heads, width, whole_row", [(BF16, 3, 128, False), (BF16, 20, 128, True), (F32, 2, 24, True), (F16, 5, 8, False)])
def test_norm_and_rotary_embedding_in_place(dtype, heads, width, whole_row):
    batch, tokens = 2, 3
    x = seeded(batch, heads, tokens, width, dtype=dtype).transpose(1, 2)
    angles = seeded(1, tokens, width // 2, seed=1) * 3
    table = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    weight = (seeded(heads * width if whole_row else width, seed=2) * 0.2 + 1).to(dtype)
    z, want = x.clone(memory_format=torch.preserve_format), x.double()
    rstd = OPERATIONS["rms_rope_"].cuda(Interpreter(), z, weight, table, 1e-6, whole_row)
    compare(rstd, OPERATIONS["rms_rope_"].torch(want, weight.double(), table.double(), 1e-6, whole_row))
    compare(z, want)
    check("rms_rope_backward", seeded(batch, tokens, heads, width, dtype=dtype, seed=3), z, weight, table, rstd, whole_row)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype, cols, group, target", [(BF16, 768, 256, "compute_90"), (F32, 192, 64, "compute_75"), (BF16, 48, 16, "compute_75"), (F16, 77, 0, "compute_90"), (BF16, 2304, 256, "compute_80"), (BF16, 16640, 0, "compute_90")])
def test_rows_to_codes_and_back(fp8, dtype, cols, group, target):
    x = seeded(2 * 7, cols, dtype=dtype)[::2] * torch.logspace(-6, 3, 7)[:, None].to(dtype)  # every second row
    x[3] = 0
    fold = seeded(cols, seed=1).abs()
    codes, scales = check("quantise_rows", x, fold, fp8, group, target=target)
    check("rescale_rows", codes, scales, None, None, group, dtype, target=target)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_stays_so(fp8, bad):
    x = seeded(3, 512)
    x[1, 300] = bad
    for codes, scales in (OPERATIONS["quantise_rows"].cuda(Interpreter("compute_90"), x, None, fp8, 256), OPERATIONS["quantise_rows"].torch(x, None, fp8, 256)):
        assert scales.isfinite().tolist() == [True, False, True]
        assert (codes.float() * scales[:, None]).isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("cols, group", [(512, 256), (77, 0)])
def test_sums_to_numbers(cols, group):
    sums = torch.randint(-(2**23), 2**23, (5, cols), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    check("rescale_rows", sums, seeded(5).abs(), seeded(cols, seed=1).abs(), seeded(cols, seed=2), group, BF16)


def test_every_code_is_read_as_torch_reads_it():
    codes = torch.arange(256, dtype=torch.uint8).view(2, 128)
    for dtype in (torch.int8, E4M3):
        values = codes.view(dtype)
        got = OPERATIONS["rescale_rows"].cuda(Interpreter(), values, None, None, None, 0, F32)
        torch.testing.assert_close(got, values.float(), rtol=0, atol=0, equal_nan=True)


def test_rounding_to_e4m3_is_torchs_on_every_target():
    # A row whose largest is 448 has a scale of one. Halfway points, subnormals, both signs.
    grid = torch.arange(0, 127, dtype=torch.uint8).view(E4M3).float()
    points = torch.cat([grid, (grid[1:] + grid[:-1]) / 2, grid * 1.01])
    row = torch.cat([points, -points, torch.tensor([448.0])]).clamp(-448, 448)[None]
    for target in ("compute_75", "compute_90"):
        codes, scale = OPERATIONS["quantise_rows"].cuda(Interpreter(target), row, None, True, 0)
        assert scale.item() == 1.0
        assert torch.equal(codes.view(torch.uint8), row.to(E4M3).view(torch.uint8)), target


@pytest.mark.parametrize("rows, cols", [(64, 132), (71, 133), (1, 5)])
def test_bytes_on_their_side(rows, cols):
    codes = torch.randint(-128, 128, (rows, cols), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    check("transpose_bytes", codes)


@pytest.mark.parametrize("name, arguments", [
    ("norm_modulate", (torch.empty(0, 5, 16), None, None, None, None, 1e-6, True)),
    ("column_sums", (torch.zeros(2, 0, 16), None, None, None, None, None)),
    ("gated_residual", (None, torch.empty(0, 5, 16), torch.zeros(1, 16))),
    ("gelu8", (torch.empty(0, 16), True)),
    ("swiglu8", (torch.empty(0, 16), torch.empty(0, 16))),
    ("geglu8", (torch.empty(0, 16),)),
    ("quantise_rows", (torch.empty(0, 256), None, True, 256)),
    ("rescale_rows", (torch.empty(0, 16, dtype=torch.int32), None, None, None, 0, F32)),
    ("transpose_bytes", (torch.empty(0, 16, dtype=torch.int8),)),
])
def test_an_empty_batch_starts_nothing(name, arguments):
    runner = Interpreter()
    got = as_tuple(OPERATIONS[name].cuda(runner, *arguments))
    assert runner.launched == []
    for mine, theirs in zip(got, as_tuple(OPERATIONS[name].torch(*arguments)), strict=True):
        assert mine.shape == theirs.shape and torch.equal(mine, theirs)


# ---- the optimisers ------------------------------------------------------


@pytest.mark.parametrize("step", [1, 165, 3000, 40_000])
def test_the_librarys_adamw_takes_the_same_step(step):
    """Also where a correction has become 1 in float32."""
    settings = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    p, g, m, v = seeded(64), seeded(64, seed=1), seeded(64, seed=2, scale=0.1), seeded(64, seed=3).square()
    mine, theirs = ([part.clone() for part in (p, g, m, v)] for _ in range(2))
    adamw.step_library(*mine, knobs(CPU, step=step, **settings), None)
    adamw.step_torch(*theirs, knobs(CPU, step=step, **settings), None)
    assert ((mine[0] - theirs[0]).norm() / (theirs[0] - p).norm()).item() < 1e-3


@pytest.mark.parametrize("count", [4096, 1003])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_adamw_in_one_launch(count, clip):
    settings = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    p = seeded(count)
    reference = p.clone().requires_grad_(True)
    theirs = torch.optim.AdamW([reference], **settings)
    m, v = torch.zeros(count), torch.zeros(count)
    for step in range(1, 4):
        g = seeded(count, seed=step)
        reference.grad = g if clip is None else g * clip
        theirs.step()
        adamw.step_cuda(Interpreter(), p, g, m, v, knobs(CPU, step=step, **settings), None if clip is None else torch.tensor(clip))
    assert ((p - reference).norm() / reference.norm()).item() < 1e-6


@pytest.mark.parametrize("count", [1024, 700])
def test_adamw_with_codes_is_the_torch_step(count):
    settings = dict(lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    grids = dynamic_codes(True), dynamic_codes(False).square()

    def state():
        padded = -(-count // 256) * 256
        codes, scales = torch.zeros(padded, dtype=torch.uint8), torch.zeros(padded // 256)
        return [seeded(count), codes.clone(), scales.clone(), codes.clone(), scales.clone(), torch.zeros(count, dtype=BF16)]

    mine, theirs = state(), state()
    for step in range(1, 4):
        g = seeded(count, seed=step)
        shared = (*grids, knobs(CPU, step=step, **settings), torch.tensor(0.5), keys(CPU, step))
        adamw.step8_cuda(Interpreter(), mine[0], g, *mine[1:], *shared)
        adamw.step8_torch(theirs[0], g, *theirs[1:], *shared)
        assert ((mine[0] - theirs[0]).norm() / theirs[0].norm()).item() < 1e-5
        for index in (1, 3):  # a rounding that falls on its chance to the last bit may go the other way
            apart = (mine[index].int() - theirs[index].int()).abs()
            assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01
        for index in (2, 4):
            torch.testing.assert_close(mine[index], theirs[index], rtol=1e-5, atol=0)


@pytest.mark.parametrize("count", [1024, 700])
def test_the_optimiser_takes_its_step_in_one_launch(count):
    """Where the door chose the kernel: as the usual step does but for the draws, whose size is a code's."""
    optimisers, weights = [], [seeded(count).requires_grad_(True) for _ in range(2)]
    for index, p in enumerate(weights):
        optimisers.append(AdamW8bitKahan([p], lr=0.01, weight_decay=0.1))
        runner = Interpreter()
        if index:
            open_door("adamw8_=cuda", CPU, launcher=runner)
        try:
            for step in range(1, 4):
                p.grad = seeded(count, seed=step)
                optimisers[index].step()
        finally:
            shut_doors()
        assert runner.launched == ["adamw8"] * 3 * index
    assert ((weights[0] - weights[1]).norm() / (weights[0] - seeded(count)).norm()).item() < 0.05
    mine, theirs = (o.state_dict()["state"][0] for o in reversed(optimisers))
    assert {k: (v.shape, v.dtype) for k, v in mine.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}


def test_chances_are_even_and_differ_by_key():
    one, two = (chance(1 << 14, key) for key in keys(CPU, 7))
    assert abs(one.mean() - 0.5) < 0.01 and abs(one.square().mean() - 1 / 3) < 0.01
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.03
    grid = EightBit(dynamic_codes(True))
    values = torch.full((1 << 14,), 0.3333)
    values[::256] = 1.0
    codes, scales = grid.encode(values, one)
    assert abs(grid.decode(codes, scales)[1:256].mean() - 0.3333) < 1e-3


# ---- the whole 8-bit linear ----------------------------------------------


@pytest.mark.parametrize("format, rank", [("int8-convrot", 1), ("int8-convrot", 16), ("fp8-row", 4), ("fp8-row", 64)])
def test_an_eight_bit_lora_through_the_kernels(format, rank):
    """Forward and backward as on a card, but for the two products, which are the library's there and torch's here."""
    tokens, inputs, outputs = 17, 256, 48
    packed = quantize(seeded(outputs, inputs, scale=0.06), format)
    runner = Interpreter()
    open_door("cuda", CPU, launcher=runner)
    try:
        x = seeded(tokens, inputs, seed=1).requires_grad_(True)
        a, b = (seeded(*shape, seed=2, scale=0.1).requires_grad_(True) for shape in ((rank, inputs), (outputs, rank)))
        y = lora_linear(x, packed, seeded(outputs, seed=3), [Adapter(a, b)], 0.5)
        dy = seeded(tokens, outputs, seed=4, scale=1e-6)
        y.backward(dy)
    finally:
        shut_doors()
    assert {"quantise_rows", "transpose_bytes"} <= set(runner.launched)
    weight, exact_x = dequantize(packed).double(), x.detach().double()
    update = 0.5 * b.detach().double() @ a.detach().double()
    want_y = exact_x @ (weight + update).t() + seeded(outputs, seed=3).double()
    want_dx = dy.double() @ (weight + update)
    bound = 2e-2 if format == "int8-convrot" else 5e-2
    assert ((y.detach() - want_y).norm() / want_y.norm()).item() < bound
    assert ((x.grad - want_dx).norm() / want_dx.norm()).item() < 5e-2
    want_a = 0.5 * (dy.double() @ b.detach().double()).t() @ exact_x
    assert ((a.grad - want_a).norm() / want_a.norm()).item() < 1e-5


# ---- the interpreter itself ----------------------------------------------


def test_the_interpreter_sees_what_a_card_would_not():
    x, short = seeded(4, 64), torch.empty(4, 63)
    source = OPERATIONS["transpose_bytes"]
    with pytest.raises(Fault, match="outside every tensor"):
        class Shortened(Interpreter):
            def launch(self, program, entry, grid, threads, arguments, device):
                super().launch(program, entry, grid, threads, (arguments[0][:-1], *arguments[1:]), device)
        source.cuda(Shortened(), torch.zeros(65, 64, dtype=torch.int8))
    with pytest.raises(Fault, match="threads"):
        class Fewer(Interpreter):
            def launch(self, program, entry, grid, threads, arguments, device):
                super().launch(program, entry, grid, threads - 32, arguments, device)
        source.cuda(Fewer(), torch.zeros(64, 64, dtype=torch.int8))
    with pytest.raises(Unfit):
        OPERATIONS["norm_modulate"].cuda(Interpreter(), x[None].double(), None, None, None, None, 1e-6, True)
    assert short.isnan().all()


def test_the_interpreter_sees_a_missing_barrier(monkeypatch):
    kept = programs.source_text
    monkeypatch.setattr(programs, "source_text", lambda name: kept(name).replace("__syncthreads();", "") + "\n// no barrier")
    parsed.cache_clear()
    try:
        with pytest.raises(Fault, match="since the last barrier"):
            OPERATIONS["transpose_bytes"].cuda(Interpreter(), torch.zeros(64, 64, dtype=torch.int8))
        with pytest.raises(Fault, match="since the last barrier"):
            OPERATIONS["quantise_rows"].cuda(Interpreter(), seeded(2, 2048), None, False, 0)
    finally:
        parsed.cache_clear()
