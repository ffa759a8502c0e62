"""Results that wait: what takes them on, and that everything else finds the layer's own tensor, gradients included."""

import pytest
import torch
from pistachio.training.kernels.pending import Gated, Heads, Norm, Product, settled


def seeded(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, Y, V = seeded(2, 3, 8), seeded(2, 3, 8, seed=1), seeded(2, 1, 8, seed=2)


def norm(calls, x=X):
    return Norm(x, lambda: x * 2, lambda shift, scale: calls.append("modulated") or x * 2 * scale + shift)


def product(calls):
    return Product(Y, lambda x, y, gate: calls.append("gated") or x + y * gate)


@pytest.mark.parametrize("use, taken", [
    (lambda n: torch.addcmul(V, n, 1 + V), ["modulated"]),
    (lambda n: torch.addcmul(V[:1], n, V[:1]), ["modulated"]),
    (lambda n: torch.addcmul(V.double(), n.double(), V.double()), []),  # another type
    (lambda n: torch.addcmul(V[0, 0], n, V[0, 0]), []),  # other axes
    (lambda n: torch.addcmul(V, n, V, value=0.5), []),
    (lambda n: torch.addcmul(n, V.expand_as(X), V), []),
    (lambda n: n * (1 + V) + V, []), (lambda n: torch.cat([n, n], 1), []), (lambda n: n[:, :1], []), (lambda n: n.to(torch.float64), []),
    (lambda n: torch.nn.functional.linear(n, seeded(4, 8)), []), (lambda n: (n - V) / 2, []), (lambda n: 1 - n, []), (lambda n: -n, []),
])
def test_a_norm_and_what_follows_it(use, taken):
    calls = []
    assert torch.allclose(settled(use(norm(calls))), settled(use(X * 2)), atol=1e-6)
    assert calls == taken


@pytest.mark.parametrize("use, taken", [
    (lambda p: torch.addcmul(X, p, V), ["gated"]), (lambda p: X + p * V, ["gated"]), (lambda p: X + V * p, ["gated"]), (lambda p: p * V + X, ["gated"]),
    (lambda p: X + p, []), (lambda p: X + p * 2, []), (lambda p: X + p * V[0, 0], []), (lambda p: X.double() + p * V, []), (lambda p: (p * V).sum(), []),
    (lambda p: torch.addcmul(X[:1], p, V), []), (lambda p: torch.addcmul(X, V.expand_as(X), p), []),
])
def test_a_gate_and_what_follows_it(use, taken):
    calls = []
    assert torch.allclose(settled(use(product(calls))), use(Y), atol=1e-6)
    assert calls == taken


def test_an_addition_in_place_gives_a_new_tensor_where_a_kernel_does_it():
    calls, x = [], X.clone()
    before = x
    x += product(calls) * V
    assert calls == ["gated"] and torch.equal(before, X) and torch.allclose(x, X + Y * V)


@pytest.mark.parametrize("gate", [V.double(), V[0, 0], 2.0])
def test_an_addition_in_place_leaves_what_a_norm_kept_where_no_kernel_does_it(gate):
    calls, x = [], X.clone()
    kept = x
    x += product(calls) * gate
    assert calls == [] and torch.equal(kept, X) and torch.allclose(x, (X + Y * gate).float())


def test_writing_into_a_part_is_kept():
    waiting = norm([])
    waiting[:, :1] *= V
    want = X * 2
    want[:, :1] *= V
    assert torch.equal(settled(waiting), want) and torch.equal(torch.addcmul(V, waiting, V), torch.addcmul(V, want, V))


def test_heads_wait_through_a_view_and_a_concatenation():
    turned = lambda x, table: x * table
    heads = Heads(X, lambda x: x + 1, turned)
    assert torch.equal(heads.view(2, 3, 2, 4).turn(torch.tensor(3.0)), X.view(2, 3, 2, 4) * 3)
    assert torch.equal(settled(heads.view(2, 3, 2, 4)), (X + 1).view(2, 3, 2, 4)) and heads.to(torch.float32) is heads and heads.shape == X.shape
    joined = torch.cat((Heads(X, lambda x: x + 1, turned), Heads(Y, lambda x: x + 1, turned)), dim=1)
    table = seeded(1, 6, 1, seed=3)
    assert torch.equal(joined.turn(table, 1), torch.cat([X, Y], 1) * table) and torch.equal(settled(joined), torch.cat([X, Y], 1) + 1)
    assert isinstance(torch.cat((heads, X), dim=1), torch.Tensor)


def test_gradients_reach_what_waited():
    x = X.clone().requires_grad_(True)
    torch.nn.functional.gelu(norm([], x)).sum().backward()
    assert x.grad is not None and not isinstance(Gated(Y, V, None).settled, Gated)
