"""The race of attention backends: right before fast, failures told, and a table that stays with its run. Real functions, on the CPU."""

import json
import sys
import time
import types
from dataclasses import replace

import pytest
import torch
from pistachio.training.attention import AttentionTable, Backend, Dispatcher, Shape, choose, compete, shape_of
from pistachio.training.attention.backends import BACKENDS
from pistachio.training.attention.race import winner
from pistachio.training.errors import PistachioError

CPU = torch.device("cpu")
SHAPE = Shape(batch=2, heads=4, key_heads=4, queries=12, keys=20, width=8, dtype="float32")
MATH = next(backend for backend in BACKENDS if backend.name == "math")


def always(shape, capability):
    return None


def slowed(seconds, run=MATH.run):
    def slow(*args):
        time.sleep(seconds)
        return run(*args)

    return slow


class Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        raise RuntimeError("no kernel for this card\nsecond line")


def backend(name, run, why_not=always):
    return Backend(name=name, run=run, why_not=why_not)


SLOW, FAST = backend("slow", slowed(0.012)), backend("fast", slowed(0.002))
WITHOUT_BACKWARD = backend("forward-only", lambda q, k, v, mask, scale: MATH.run(q.detach(), k.detach(), v.detach(), mask, scale))
BREAKING = backend("breaking", lambda *args: Breaks.apply(MATH.run(*args)))
WRONG = backend("wrong", lambda q, k, v, mask, scale: MATH.run(q, k, v * 1.01, mask, scale))
UNFIT = backend("unfit", MATH.run, lambda shape, capability: f"needs 9.0, and this is {capability[0]}.{capability[1]}")


def test_the_fastest_that_is_right_wins_whatever_the_order():
    for order in ((SLOW, FAST), (FAST, SLOW)):
        assert winner(compete(order, SHAPE, CPU)) == "fast"


def test_who_is_out_says_why():
    state = torch.get_rng_state()
    heats = {heat.backend: heat for heat in compete((WITHOUT_BACKWARD, BREAKING, WRONG, UNFIT, SLOW), SHAPE, CPU, capability=(7, 5))}
    assert heats["forward-only"].reason == "has no backward"
    assert heats["breaking"].reason == "failed (RuntimeError: no kernel for this card)"
    assert heats["wrong"].reason.startswith("is wrong: its output is off by 0.01")
    assert heats["unfit"].reason == "needs 9.0, and this is 7.5"
    assert winner(list(heats.values())) == "slow" and heats["slow"].seconds >= 0.012
    assert torch.equal(torch.get_rng_state(), state)  # the run's own random numbers are not drawn from


def test_nobody_wins_where_nobody_finishes():
    assert winner(compete((BREAKING, WRONG), SHAPE, CPU)) is None


@pytest.mark.parametrize("mask", ["", "bool", "float32"])
@pytest.mark.parametrize("key_heads", [4, 2])
def test_pytorchs_paths_on_a_cpu_pass_the_check(mask, key_heads):
    shape = replace(SHAPE, mask=mask, key_heads=key_heads)
    heats = compete([MATH], shape, CPU, time_of=lambda run, device: run() or 1.0)
    assert heats[0].seconds == 1.0, heats[0].reason


def test_what_a_backend_cannot_do_is_known_before_it_runs():
    reasons = {b.name: b.why_not(SHAPE, (9, 0)) for b in BACKENDS if b.name in ("cudnn", "flash", "efficient", "math")}
    assert "float32" in reasons["cudnn"] and "float32" in reasons["flash"] and reasons["efficient"] is None is reasons["math"]
    half = replace(SHAPE, dtype="bfloat16")
    by_name = {b.name: b for b in BACKENDS}
    assert by_name["flash"].why_not(half, (8, 0)) is None and "7.5" in by_name["flash"].why_not(half, (7, 5))
    assert "mask" in by_name["flash"].why_not(replace(half, mask="bool"), (9, 0)) and by_name["cudnn"].why_not(replace(half, mask="bool"), (9, 0)) is None
    assert "GB of scores" in by_name["math"].why_not(replace(half, heads=40, queries=8192, keys=8192), (9, 0))


def choice(backends, shapes=(SHAPE,), **options):
    return choose(shapes, CPU, device_name="this card", capability=(9, 0), backends=backends, **options)


def test_a_table_is_raced_for_once_and_stays_with_its_run():
    table = choice((SLOW, FAST))
    assert [name for _, name in table.rows] == ["fast"]
    assert table.note.startswith("Attention on this card: fast for 12x20, 4 heads of 8 (slow ") and "fast " in table.note
    again = AttentionTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table

    def never(run, device):
        raise AssertionError("raced again")

    assert choice((SLOW, FAST), before=again, time_of=never) is again
    other_card = choice((SLOW,), before=replace(again, device="another card"))
    assert [name for _, name in other_card.rows] == ["slow"] and "the run had fast until now" in other_card.note
    wished = choice((SLOW, FAST), before=again, wanted="slow")
    assert [name for _, name in wished.rows] == ["slow"]


def test_a_wish_that_cannot_be_met_is_refused():
    with pytest.raises(PistachioError, match="Attention 'breaking' failed .* Set attention to 'auto' in Memory Settings"):
        choice((BREAKING, FAST), wanted="breaking")
    with pytest.raises(PistachioError, match="'none' is unknown"):
        choice((FAST,), wanted="none")


def test_where_all_fail_pytorch_chooses_and_the_note_says_so():
    table = choice((BREAKING, WRONG))
    assert [name for _, name in table.rows] == ["pytorch"]
    assert "none finished the race" in table.note and "breaking failed" in table.note and "wrong is wrong" in table.note
    q = torch.zeros(2, 4, 12, 8)
    assert Dispatcher(table, (BREAKING, WRONG)).backend(q, torch.zeros(2, 4, 20, 8), None) is None


def test_other_shapes_of_the_run_use_the_nearest_raced_one():
    self_attention, cross = replace(SHAPE, queries=64, keys=64), replace(SHAPE, queries=64, keys=4)
    table = AttentionTable(device="this card", rows=((self_attention, "fast"), (cross, "slow")), note="")
    assert table.backend_for(replace(SHAPE, queries=80, keys=70)) == "fast"
    assert table.backend_for(replace(SHAPE, queries=80, keys=5)) == "slow"
    assert table.backend_for(replace(SHAPE, mask="bool")) == "pytorch"  # nobody raced with a mask
    assert table.backend_for(replace(SHAPE, dtype="bfloat16")) == "pytorch"
    q, k = torch.zeros(2, 4, 64, 8), torch.zeros(2, 2, 64, 8)
    assert shape_of(q, k, None) == replace(self_attention, key_heads=2)
    assert Dispatcher(table, (SLOW, FAST)).backend(q, k, None) is FAST


def as_xformers(q, k, v, attn_bias=None, scale=None):
    """The package's signature and layout, [B, T, H, D]; it isn't installed with the tests."""
    assert q.shape[2] == k.shape[2] and (attn_bias is None or attn_bias.stride(-2) % 8 == 0)
    return MATH.run(*(t.transpose(1, 2) for t in (q, k, v)), attn_bias, scale).transpose(1, 2)


def as_flash_attn(q, k, v, softmax_scale=None):
    """It takes grouped queries as they are."""
    return MATH.run(*(t.transpose(1, 2) for t in (q, k, v)), None, softmax_scale).transpose(1, 2)


@pytest.mark.parametrize("mask", ["", "bool", "float32"])
def test_packages_get_their_own_layout(monkeypatch, mask):
    operations = types.SimpleNamespace(memory_efficient_attention=as_xformers)
    monkeypatch.setitem(sys.modules, "xformers", types.SimpleNamespace(ops=operations))
    monkeypatch.setitem(sys.modules, "xformers.ops", operations)
    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=as_flash_attn))
    packages = [b for b in BACKENDS if b.name in ("xformers", "flash-attn")]
    heats = compete(
        [replace(b, why_not=b.why_not if b.name == "xformers" else always) for b in packages], replace(SHAPE, key_heads=2, mask=mask), CPU,
        time_of=lambda run, device: run() or 1.0,
    )
    for heat in heats:
        assert heat.seconds == 1.0 or (heat.backend == "flash-attn" and mask and heat.reason.startswith("is wrong")), heat  # it takes no mask
    assert "takes no mask" == packages[0].why_not(replace(SHAPE, mask="bool"), (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert packages[0].why_not(SHAPE, (9, 0)).startswith("isn't installed")
