"""Weights in 8 and 4 bits: layouts, error bounds, and the libraries that store them the same way."""

import math

import pytest
import torch
from pistachio.training.errors import PistachioError
from pistachio.training.quantization.formats import (
    FORMATS, NF4_BLOCK, ROTATION_GROUPS, dequantize, hadamard, quantize, rotate, rotation_group, rounding_bound, why_not,
)

# Relative error of the weights, and of a product with them, on weights with eight large input channels.
TYPICAL = {"fp8-row": 0.028, "int8-convrot": 0.011, "nf4": 0.12}


def outlier_weights(rows=128, columns=512, seed=0):
    source = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=source) * 0.02
    weights[:, torch.randperm(columns, generator=source)[:8]] *= 6
    return weights


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("format", FORMATS)
def test_no_value_is_further_off_than_its_bound(format):
    weights = torch.cat([outlier_weights(), outlier_weights(seed=1) * 1e-6, torch.zeros(2, 512), torch.full((1, 512), 3e4)])
    packed = quantize(weights, format)
    read = dequantize(packed)
    off = (read - weights).abs()
    if format == "int8-convrot":
        off = (rotate(read, packed.group) - rotate(weights, packed.group)).abs()
    share = (off / rounding_bound(packed).clamp(min=1e-30))[:256]
    assert (off <= rounding_bound(packed) * (1 + 1e-4) + 1e-30).all()
    assert share.max() > 0.9  # the bound is not idle
    assert torch.equal(read[256:258], torch.zeros(2, 512))


@pytest.mark.parametrize("format", FORMATS)
def test_the_error_is_what_the_format_is_known_for(format):
    weights = outlier_weights()
    packed = quantize(weights, format)
    x = torch.randn(64, 512, generator=torch.Generator().manual_seed(2))
    assert 0.5 < relative(dequantize(packed), weights) / TYPICAL[format] < 1.1
    assert 0.5 < relative(x @ dequantize(packed).T, x @ weights.T) / TYPICAL[format] < 1.2
    assert relative(dequantize(packed, torch.bfloat16).float(), dequantize(packed)) < 0.004


@pytest.mark.parametrize("format, bits", [("fp8-row", 8 + 32 / 512), ("int8-convrot", 8 + 32 / 512), ("nf4", 4.5)])
def test_bytes(format, bits):
    packed = quantize(outlier_weights(), format)
    assert packed.size_bytes == 128 * 512 * bits / 8
    assert packed.shape == (128, 512)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_stored_is_stored_again_as_it_is(format):
    once = quantize(outlier_weights(), format)
    again = quantize(dequantize(once), format)
    assert (again.codes.view(torch.uint8) == once.codes.view(torch.uint8)).float().mean() > 0.999
    torch.testing.assert_close(again.scale, once.scale)


@pytest.mark.parametrize("group", ROTATION_GROUPS)
def test_the_rotation_is_its_own_inverse_and_spreads_an_outlier(group):
    matrix = hadamard(group, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(matrix @ matrix, torch.eye(group, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T)
    assert torch.unique(matrix.sum(0).round(decimals=9)).numel() == 1
    spike = torch.zeros(3, 2 * group)
    spike[:, 5] = 1
    assert rotate(spike, group).abs().max().item() == pytest.approx(1 / math.sqrt(group))
    x, weights = torch.randn(4, 2 * group).double(), torch.randn(6, 2 * group).double()
    torch.testing.assert_close(rotate(x, group) @ rotate(weights, group).T, x @ weights.T)


def test_shapes_that_a_format_has_no_room_for():
    assert [rotation_group(n) for n in (5120, 320, 48, 24)] == [256, 64, 16, None]
    assert "no multiple of 16" in why_not((8, 24), "int8-convrot")
    assert f"no multiple of {NF4_BLOCK}" in why_not((3, 24), "nf4")
    assert why_not((3, 24), "fp8-row") is None and "axes" in why_not((3, 4, 5), "fp8-row")
    with pytest.raises(PistachioError, match="no multiple of 16"):
        quantize(torch.ones(8, 24), "int8-convrot")


def test_bitsandbytes_stores_nf4_the_same_way():
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = outlier_weights()
    codes, state = functional.quantize_4bit(weights, blocksize=NF4_BLOCK, quant_type="nf4")
    packed = quantize(weights, "nf4")
    assert torch.equal(codes.flatten(), packed.codes) and torch.equal(state.absmax, packed.scale)
    torch.testing.assert_close(functional.dequantize_4bit(codes, state), dequantize(packed), rtol=1e-6, atol=0)


def test_comfy_kitchen_stores_int8_convrot_the_same_way():
    tensor = pytest.importorskip("comfy_kitchen.tensor")
    weights = outlier_weights()
    theirs = tensor.QuantizedTensor.from_float(weights, "TensorWiseINT8Layout", per_channel=True, convrot=True, convrot_groupsize=256)
    packed = quantize(weights, "int8-convrot")
    assert (theirs._qdata == packed.codes).float().mean() > 0.9999  # a tie may fall either way
    torch.testing.assert_close(theirs._params.scale.flatten(), packed.scale)
    torch.testing.assert_close(theirs.dequantize(), dequantize(packed), rtol=0, atol=float(packed.scale.max()))
