"""Which implementation runs, how that is said and forced; the autograd Functions; the operators under torch's own machinery."""

import dataclasses
import logging

import pytest
import torch
from pistachio.training.config.memory import MemoryConfig
from pistachio.training.errors import PistachioError
from pistachio.training.kernels import gated_residual, geglu, gelu, norm_modulate, nvrtc, open_door, rms_rope, shut_doors, swiglu
from pistachio.training.kernels import door as door_module
from pistachio.training.kernels.activation import GeGlu8, Gelu8, SwiGlu8, geglu_reference, gelu_reference, swiglu_reference
from pistachio.training.kernels.door import Door, parse_setting
from pistachio.training.kernels.gate import GatedResidual
from pistachio.training.kernels.linear import Adapter, lora_linear
from pistachio.training.kernels.norm import NormModulate
from pistachio.training.kernels.nvrtc import CompileFailed
from pistachio.training.kernels.rope import RmsRope, safe_weight
from pistachio.training.kernels.table import OPERATIONS
from pistachio.training.quantization.formats import dequantize, quantize
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

CPU = torch.device("cpu")
F64 = torch.float64


@pytest.fixture(autouse=True)
def shut():
    yield
    shut_doors()


def seeded(*shape, seed=0, dtype=F64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def leaf(*shape, seed=0):
    return seeded(*shape, seed=seed).requires_grad_(True)


def table(tokens, width):
    angles = seeded(1, tokens, width // 2, seed=9) * 3
    return torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))


class Broken:
    """A launcher whose compiler fails, as on a machine with an old driver."""

    def launch(self, *arguments):
        raise CompileFailed("the driver is too old")


# ---- the door ------------------------------------------------------------


def test_every_operation_has_a_reference_and_an_operator():
    for name, operation in OPERATIONS.items():
        assert operation.implementations[-1] == "torch"
        assert hasattr(torch.ops.pistachio, name)
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pistachio::{name}", "Meta")


def test_automatic_is_torch_until_a_card_has_measured(caplog):
    with caplog.at_level(logging.INFO, logger="pistachio"):
        door = open_door("auto", CPU)
    assert {choice.implementation for choice in door.choices.values()} == {"torch"}
    assert [record.message for record in caplog.records] == [door.line]
    assert door.line == "Kernels 'auto' on CPU: torch for everything."
    assert door.report()["operations"]["adamw_"]["implementation"] == "torch"
    # On a card too: no kernel of ours is taken unasked.
    assert "cuda" not in parse_setting("auto").values()


def test_a_forced_kernel_that_can_not_run_says_why():
    door = Door("cuda", CPU)
    assert door.implementation("norm_modulate") == "torch"
    assert "needs an NVIDIA card, not 'cpu'" in door.choices["norm_modulate"].reason and "needs an NVIDIA card" in door.line


def test_one_operation_can_be_forced():
    door = Door("norm_modulate=cuda, adamw_=torch", CPU, launcher=Broken())
    assert door.implementation("norm_modulate") == "cuda" and door.implementation("gated_residual") == "torch"
    for wrong, told in (("norm=cuda", "there is no operation 'norm'"), ("product_int8=cuda", "has no 'cuda'"), ("fast", "there is no operation 'fast'")):
        with pytest.raises(PistachioError, match=told):
            MemoryConfig(kernels=wrong)


def test_a_failed_compile_is_one_line_and_torch(caplog):
    door = open_door("cuda", CPU, launcher=Broken())
    x, y, gate = seeded(1, 2, 8, dtype=torch.float32), seeded(1, 2, 8, seed=1, dtype=torch.float32), torch.ones(1, 8)
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        for _ in range(3):
            torch.testing.assert_close(gated_residual(x, y, gate), x + y)
    assert len(caplog.records) == 1 and "the driver is too old" in caplog.records[0].message
    assert door.notes == [caplog.records[0].message] and door.implementation("gated_residual") == "torch"


def test_a_call_that_a_kernel_can_not_take_is_said_once():
    door = open_door("cuda", CPU, launcher=Broken())
    for _ in range(2):
        gated_residual(seeded(1, 2, 8), seeded(1, 2, 8, seed=1), torch.ones(1, 8, dtype=F64))
    assert door.notes == ["Kernel gated_residual: torch instead of cuda for float64 values."]
    assert door.implementation("gated_residual") == "cuda"  # other calls may fit


def test_the_compiler_missing_is_an_answer(monkeypatch):
    monkeypatch.setattr(nvrtc, "_candidates", lambda: [])
    nvrtc.library.cache_clear()
    try:
        with pytest.raises(nvrtc.CompilerMissing, match="NVRTC"):
            nvrtc.library()
    finally:
        nvrtc.library.cache_clear()


# 12.1 has a compiler that knows 12.0, whose code it runs; 8.0 does not run 8.6's.
@pytest.mark.parametrize("capability, told", [((6, 1), "too old"), ((75, 0), "doesn't know the card"), ((9, 0), ""), ((12, 1), ""), ((8, 0), "doesn't know the card")])
def test_which_cards_the_kernels_take(monkeypatch, capability, told):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 86, 90, 120))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    reason = door_module._why_no_cuda(torch.device("cuda:0"))
    assert told in reason and bool(told) == bool(reason)


# ---- gradients -----------------------------------------------------------


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("modulation", [(2, 6), (2, 1, 6), (2, 3, 6), (1, 6)])
def test_gradients_of_norm_and_modulation(centred, modulation):
    x, shift, scale = leaf(2, 3, 6), leaf(*modulation, seed=1), leaf(*modulation, seed=2)
    weight, bias = seeded(6, seed=3), seeded(6, seed=4)
    function = lambda x, shift, scale: NormModulate.apply(x, weight, bias, shift, scale, 1e-6, centred)
    assert torch.autograd.gradcheck(function, (x, shift, scale))
    torch.testing.assert_close(function(x, shift, scale), norm_modulate(x, weight, bias, shift, scale, eps=1e-6, centred=centred))
    assert torch.autograd.gradcheck(lambda x: NormModulate.apply(x, None, None, None, None, 1e-6, centred), (x,))


@pytest.mark.parametrize("gate", [(2, 6), (2, 3, 6), (1, 1, 6)])
def test_gradients_of_the_gated_residual(gate):
    assert torch.autograd.gradcheck(GatedResidual.apply, (leaf(2, 3, 6), leaf(2, 3, 6, seed=1), leaf(*gate, seed=2)))


@pytest.mark.parametrize("whole_row", [True, False])
def test_gradients_of_norm_and_rotary_embedding(whole_row):
    weight = seeded(16 if whole_row else 8, seed=1).abs() + 0.5
    function = lambda x: RmsRope.apply(x * 1.0, weight, table(3, 8), 1e-6, whole_row)
    x = leaf(2, 3, 2, 8)
    assert torch.autograd.gradcheck(function, (x,))
    torch.testing.assert_close(function(x), rms_rope(x, weight, table(3, 8), eps=1e-6, whole_row=whole_row))


def test_rotary_embedding_in_place_on_a_view_of_a_product():
    # As networks use it: the heads are a view of what the layer gave.
    x, w, weight = leaf(2, 3, 16), leaf(16, 16, seed=1), seeded(8, seed=2).abs() + 0.5

    def heads(values):
        return (values @ w).view(2, 3, 2, 8)

    got, want = (torch.autograd.grad(f.square().sum(), (x, w)) for f in (
        RmsRope.apply(heads(x), weight, table(3, 8), 1e-6, False), rms_rope(heads(x), weight, table(3, 8), eps=1e-6, whole_row=False),
    ))
    for mine, theirs in zip(got, want):
        torch.testing.assert_close(mine, theirs)


def test_a_weight_near_zero_is_not_divided_by():
    assert safe_weight(torch.tensor([0.5, -2.0])) and not safe_weight(torch.tensor([1e-5, 1.0]))


@pytest.mark.parametrize("function, reference, count", [
    (lambda x: Gelu8.apply(x, True), lambda x: gelu_reference(x, True), 1),
    (lambda x: Gelu8.apply(x, False), lambda x: gelu_reference(x, False), 1), (SwiGlu8.apply, swiglu_reference, 2), (GeGlu8.apply, geglu_reference, 1),
])
def test_activations_kept_in_eight_bits(function, reference, count):
    inputs = [leaf(2, 3, 300, seed=i) for i in range(count)]
    y, want = function(*inputs), reference(*inputs)
    assert torch.equal(y, want)  # the forward doesn't round
    dy = seeded(*y.shape, seed=7)
    for mine, theirs in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(want, inputs, dy)):
        assert ((mine - theirs).norm() / theirs.norm()).item() < 1e-2
    # On the grid of its codes nothing is rounded: there the gradient is exact. 512 values are two halves of whole groups.
    on_grid = [(torch.randint(-127, 128, (2, 512), generator=torch.Generator().manual_seed(i)) / 32.0).double() for i in range(count)]
    for tensor in on_grid:
        tensor[:, ::128] = 127 / 32
        tensor.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad(function(*on_grid).sum(), on_grid), torch.autograd.grad(reference(*on_grid).sum(), on_grid))


@pytest.mark.parametrize("rank", [1, 4, 16])
@pytest.mark.parametrize("tokens, biased", [(5, True), (1, False), (0, True)])
def test_gradients_of_the_lora_linear(rank, tokens, biased):
    weight, bias = seeded(6, 8), seeded(6, seed=1) if biased else None
    x, a, b = leaf(1, tokens, 8, seed=2), leaf(rank, 8, seed=3), leaf(6, rank, seed=4)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, weight, bias, [Adapter(a, b)], 0.5), (x, a, b))


def test_adapters_that_share_an_input():
    # q, k and v stacked in one weight, each with an adapter of its own rank.
    weight, x = seeded(12, 8), leaf(2, 5, 8, seed=2)
    factors = [leaf(*shape, seed=i) for i, shape in enumerate(((1, 8), (4, 1), (3, 8), (4, 3), (2, 8), (4, 2)))]
    adapters = lambda factors: [Adapter(factors[i], factors[i + 1], 2 * i) for i in (0, 2, 4)]
    assert torch.autograd.gradcheck(lambda x, *factors: lora_linear(x, weight, None, adapters(factors), 0.5), (x, *factors))


def test_a_weight_in_four_bits_is_its_dequantised_self():
    packed = quantize(seeded(8, 16).float(), "nf4")
    x, a, b = leaf(3, 16, seed=2), leaf(4, 16, seed=3), leaf(8, 4, seed=4)
    assert torch.autograd.gradcheck(lambda x, a, b: lora_linear(x, packed, None, [Adapter(a, b)], 0.5), (x, a, b))
    torch.testing.assert_close(lora_linear(x, packed, None, [Adapter(a, b)], 0.0), x @ dequantize(packed).double().t())


# ---- torch's machinery ---------------------------------------------------


def calls():
    like = dict(dtype=torch.bfloat16)
    x, dy, v = torch.empty(2, 3, 256, **like), torch.empty(2, 3, 256, **like), torch.empty(2, 256, **like)
    statistics = torch.empty(2, 3)
    heads, angles, rstd = torch.empty(2, 3, 2, 128, **like), torch.empty(1, 3, 64, 2, 2), torch.empty(2, 3, 2)
    codes, eights = torch.empty(6, 256, dtype=torch.int8), torch.empty(6, 256, dtype=torch.float8_e4m3fn)
    flat, bytes_, scales = torch.ones(512), torch.zeros(512, dtype=torch.uint8), torch.zeros(2)
    grid = torch.linspace(-1, 1, 256)
    return {
        "norm_modulate": (x, None, None, v, v, 1e-6, True), "norm_modulate_codes": (x, None, None, v, v, 1e-6, True, False, 256), "norm_modulate_backward": (dy, x, statistics, statistics, None, v, True),
        "column_sums": (dy, x, statistics, statistics, None, None), "gated_residual": (x, dy, v),
        "gelu8": (x[0], True), "gelu8_backward": (dy[0], codes[:3], torch.empty(3, 2), True),
        "swiglu8": (x[0], dy[0]), "swiglu8_backward": (dy[0], codes[:3], torch.empty(3, 2), codes[:3], torch.empty(3, 2)),
        "geglu8": (x[0],), "geglu8_backward": (dy[0][:, :128], codes[:3], torch.empty(3, 2)),
        "rms_rope_": (heads, torch.ones(128), angles, 1e-6, False), "rms_rope_backward": (heads, heads, torch.ones(128), angles, rstd, False),
        "quantise_rows": (x[0], torch.ones(256), True, 256), "rescale_rows": (codes, torch.ones(6), None, None, 256, torch.bfloat16),
        "transpose_bytes": (eights,), "product_int8": (codes, codes), "product_fp8": (eights, eights, torch.ones(6), torch.ones(6), torch.bfloat16),
        "product_lora_int8": (codes, codes, torch.ones(6), None, torch.ones(6), torch.ones(6, 2), torch.ones(6, 2), 0.5, 0, torch.bfloat16),
        "product_lora_fp8": (eights, eights, torch.ones(6), torch.ones(6), None, None, None, 1.0, 0, torch.bfloat16),
        "adamw_": (flat, flat, flat.clone(), flat.clone(), torch.full((7,), 0.5), None),
        "adamw8_": (flat, flat, bytes_, scales, bytes_.clone(), scales.clone(), flat.bfloat16(), grid, grid.abs().sort().values, torch.full((7,), 0.5), None, torch.zeros(2, dtype=torch.int32)),
    }


@pytest.mark.parametrize("name, written", [("adamw_", (0, 2, 3)), ("adamw8_", (0, 2, 3, 4, 5, 6)), ("rms_rope_", (0,)), ("gated_residual", ())])
def test_what_a_kernel_writes_counts_as_changed(monkeypatch, name, written):
    """A backward that had saved it must not use it as if it were the same."""
    arguments = [a.clone() if isinstance(a, torch.Tensor) else a for a in calls()[name]]
    monkeypatch.setattr(Door, "call", lambda self, operation, *given: None if name.startswith("adamw") else OPERATIONS[name].meta(*given))  # as a kernel: torch sees nothing
    getattr(torch.ops.pistachio, name)(*arguments)
    assert [place for place, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a._version] == list(written)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_meta_implementation_says_what_the_reference_gives(name):
    arguments = calls()[name]
    operator = getattr(torch.ops.pistachio, name)
    as_list = lambda value: [] if value is None else list(value) if isinstance(value, (tuple, list)) else [value]
    real = as_list(operator(*arguments))
    on_meta = as_list(operator(*[a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]))
    with FakeTensorMode() as mode:
        faked = as_list(operator(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]))
    form = lambda tensors: [(tuple(t.shape), t.dtype, tuple(t.stride())) for t in tensors]
    assert form(real) == form(on_meta) == form(faked)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_block_gives_the_same_gradients(reentrant):
    weight, packed = seeded(16, seed=1).abs() + 0.5, quantize(seeded(16, 16).float(), "int8-convrot")
    a, b, shift = leaf(2, 16, seed=2), leaf(16, 2, seed=3), leaf(1, 16, seed=5)

    def block(x):
        n = NormModulate.apply(x, None, None, shift, shift, 1e-6, True)
        q = RmsRope.apply(lora_linear(n, packed, None, [Adapter(a, b)], 1.0).view(1, 3, 2, 8), weight[:8], table(3, 8), 1e-6, False)
        h = Gelu8.apply(q.flatten(2), True)
        return GatedResidual.apply(x, SwiGlu8.apply(h, n), shift)

    x = leaf(1, 3, 16)
    inputs = (x, a, b, shift)
    plain = torch.autograd.grad(block(x).square().sum(), inputs)
    for tensor in inputs:
        tensor.grad = None
    checkpoint(block, x, use_reentrant=reentrant).square().sum().backward()
    for tensor, want in zip(inputs, plain):
        assert torch.equal(tensor.grad, want)


def test_the_plain_forms_are_what_runs_unasked():
    x, v = leaf(1, 2, 8), leaf(1, 8, seed=1)
    for result in (norm_modulate(x, shift=v, eps=1e-6, centred=True), gated_residual(x, x, v), gelu(x, tanh=True), swiglu(x, x), geglu(x)):
        assert "Function" not in type(result.grad_fn).__name__ and not type(result.grad_fn).__name__.startswith(("NormModulate", "Gated", "Gelu8", "SwiGlu8", "GeGlu8"))
    assert dataclasses.is_dataclass(Door("auto", CPU).choices["gelu8"])
