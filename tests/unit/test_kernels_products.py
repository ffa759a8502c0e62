"""8-bit products in both directions: how far they are from exact ones, at every size of gradient; and the library's."""

import pytest
import torch
from pistachio.training.kernels.glue import Unfit
from pistachio.training.kernels.linear import product, product_backward
from pistachio.training.kernels.rows import product_fp8_library, product_fp8_torch, product_int8_library, product_int8_torch
from pistachio.training.quantization.formats import quantize

TOKENS, INPUTS, OUTPUTS = 96, 512, 384
FORWARD = {"int8-convrot": 2e-2, "fp8-row": 5e-2, "nf4": 1.2e-1}
BACKWARD = 5e-2
SCALES = [10.0**-power for power in range(9)]


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def case():
    """Weights, inputs and gradients with the outliers that real ones have: strong channels, rows of very different size."""
    weight, x, dy = seeded(OUTPUTS, INPUTS) * 0.02, seeded(TOKENS, INPUTS, seed=1), seeded(TOKENS, OUTPUTS, seed=2)
    weight[:, ::64] *= 6
    x[:, 5::43] *= 25
    dy[:, 3::48] *= 10
    return weight, x, dy * torch.exp(seeded(TOKENS, 1, seed=3))


def error(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize("format", ["int8-convrot", "fp8-row"])
def test_the_forward(case, format):
    weight, x, _ = case
    assert error(product(x, quantize(weight, format), None), x.double() @ weight.double().t()) <= FORWARD[format]


@pytest.mark.parametrize("format", ["int8-convrot", "fp8-row"])
@pytest.mark.parametrize("scale", SCALES)
def test_the_gradient_to_the_input_at_every_size(case, format, scale):
    weight, _, dy = case
    dy = (dy * scale).bfloat16()
    assert error(product_backward(dy, quantize(weight, format)), dy.double() @ weight.double()) <= BACKWARD


def test_an_unscaled_cast_would_lose_small_gradients(case):
    # What the bound above is worth: gradients cast to e5m2 as they are, as ComfyUI's own trainer does.
    weight, _, dy = case
    cast = (dy * 1e-8).to(torch.float8_e5m2).double() @ weight.double()
    assert error(cast, (dy * 1e-8).double() @ weight.double()) > 0.9


def test_rotation_is_what_the_outliers_need(case):
    weight, x, _ = case
    plain = quantize(weight, "int8-convrot")
    exact = x.double() @ weight.double().t()
    unrotated = (x / x.abs().amax(1, keepdim=True) * 127).round() * x.abs().amax(1, keepdim=True) / 127
    assert error(product(x, plain, None), exact) < error(unrotated.double() @ weight.double().t(), exact) / 2


def test_rows_of_zeros_stay_zero():
    for format in ("int8-convrot", "fp8-row"):
        weight = seeded(32, 64)
        weight[3] = 0
        packed = quantize(weight, format)
        x = seeded(4, 64, seed=1)
        x[2] = 0
        y = product(x, packed, None)
        assert y.isfinite().all() and y[2].abs().max() == 0 and y[:, 3].abs().max() == 0
        assert product_backward(torch.zeros(4, 32), packed).abs().max() == 0


def test_a_bias_is_added_once():
    for format in ("int8-convrot", "fp8-row", "nf4"):
        packed, x, bias = quantize(seeded(32, 64), format), seeded(4, 64, seed=1), seeded(32, seed=2)
        torch.testing.assert_close(product(x, packed, bias), product(x, packed, None) + bias)


# ---- the library's products, where torch has them for the CPU too ---------


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_the_librarys_int8_product_is_exact(rows):
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, shape, dtype=torch.int8, generator=random) for shape in ((rows, 264), (48, 264)))
    assert torch.equal(product_int8_library(a, b), product_int8_torch(a, b))


def test_what_the_library_refuses_is_told():
    codes = torch.zeros(4, 12, dtype=torch.int8)
    with pytest.raises(Unfit, match="multiples of eight"):
        product_int8_library(codes, codes)
    eights, ones = torch.zeros(4, 16, dtype=torch.float8_e4m3fn), torch.ones(4)
    with pytest.raises(Unfit, match="float32 results"):
        product_fp8_library(eights, eights, ones, ones, torch.float32)
    with pytest.raises(Unfit, match="multiples of 16"):
        product_fp8_library(eights[:, :8], eights[:, :8], ones, ones, torch.bfloat16)


def test_the_librarys_fp8_product():
    a, b = seeded(32, 64).to(torch.float8_e4m3fn), seeded(48, 64, seed=1).to(torch.float8_e4m3fn)
    a_scale, b_scale = seeded(32, seed=2).abs(), seeded(48, seed=3).abs()
    try:
        got = product_fp8_library(a, b, a_scale, b_scale, torch.bfloat16)
    except (RuntimeError, NotImplementedError) as error_:
        pytest.skip(f"torch has no row-scaled fp8 product for this CPU: {str(error_).splitlines()[0]}")
    assert error(got, product_fp8_torch(a, b, a_scale, b_scale, torch.float32)) < 5e-3
