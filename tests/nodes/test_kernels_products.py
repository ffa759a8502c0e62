"""A base in 8 bits multiplied in 8 bits both ways, through the host's own model; the products are torch's for the CPU.

fp8-row is Pistachio's own layer in both hosts. int8-convrot is the newer host's own, whose forward stays its own.
"""

import dataclasses

import pytest
import torch
from pistachio.training.kernels import door as door_module
from pistachio.training.kernels import open_door, shut_doors
from pistachio.training.kernels.table import OPERATIONS
from support import tiny_objects
from support.prepared import Prepared

CPU = torch.device("cpu")
FAMILY = "flux_schnell"


@pytest.fixture(scope="module")
def quantized(host):
    from pistachio.bridge.quantize import quantize_base

    tiny = tiny_objects.load(FAMILY)
    with torch.inference_mode():
        model, _ = quantize_base(tiny.model, "fp8-row")
    return Prepared(type(tiny)(**{name: getattr(tiny, name) for name in tiny.__slots__ if name != "model"}, model=model))


@pytest.fixture
def products(monkeypatch):
    """Products asked for, counted, and taken by plain torch in the library's place."""
    counted = []

    def product(a, b, *scales):
        counted.append((tuple(b.shape), b.data_ptr()))
        return OPERATIONS["product_fp8"].torch(a, b, *scales)

    monkeypatch.setattr(door_module, "_why_no_library", lambda device, least: "")
    monkeypatch.setitem(OPERATIONS, "product_fp8", dataclasses.replace(OPERATIONS["product_fp8"], library=product))
    yield counted
    shut_doors()


def gradient(prepared, keep="everything"):
    with prepared.model.training(), prepared.network(keep=keep) as network:
        return prepared.gradient(network)


def test_products_in_eight_bits_are_taken_only_where_asked_for(quantized, products):
    exact = gradient(quantized)
    open_door("auto", CPU)
    assert torch.equal(gradient(quantized), exact) and products == []
    open_door("product_fp8=library", CPU)
    found = gradient(quantized)
    assert len(products) > 20  # forwards and backwards
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) >= 0.98 and not torch.equal(found, exact)


def test_the_backward_turns_the_codes_on_their_side(quantized, products):
    stored = {module.weight.data_ptr(): tuple(module.weight.shape) for module in quantized.model.network.modules() if hasattr(module, "weight_scale")}
    open_door("product_fp8=library", CPU)
    gradient(quantized)
    forward = {shape for shape, address in products if address in stored}
    turned = {shape[::-1] for shape, address in products if address not in stored}
    assert turned and turned <= forward and any(rows != cols for rows, cols in turned)


def test_what_blocks_keep_does_not_change_the_gradient(quantized, products):
    open_door("product_fp8=library", CPU)
    whole = gradient(quantized)
    for keep in ("blocks", "products"):
        # Block checkpointing adds up in another order, in float32 products too.
        assert ((gradient(quantized, keep) - whole).norm() / whole.norm()).item() < 1e-6, keep


def test_the_newer_hosts_own_int8_has_its_backward_in_eight_bits(host, monkeypatch):
    from pistachio.bridge.quantize import host_has_int8_convrot, quantize_base

    if not host_has_int8_convrot():
        pytest.skip("this ComfyUI has no int8 layers of its own")
    turned = []

    def product(a, b):
        turned.append(tuple(b.shape))
        return OPERATIONS["product_int8"].torch(a, b)

    monkeypatch.setattr(door_module, "_why_no_library", lambda device, least: "")
    monkeypatch.setitem(OPERATIONS, "product_int8", dataclasses.replace(OPERATIONS["product_int8"], library=product))
    tiny = tiny_objects.load(FAMILY)
    with torch.inference_mode():
        model, _ = quantize_base(tiny.model, "int8-convrot")
    prepared = Prepared(type(tiny)(**{name: getattr(tiny, name) for name in tiny.__slots__ if name != "model"}, model=model))
    exact = gradient(prepared)
    open_door("product_int8=library", CPU)
    try:
        found = gradient(prepared)
    finally:
        shut_doors()
    assert len(turned) > 5 and torch.nn.functional.cosine_similarity(found, exact, dim=0) >= 0.99
