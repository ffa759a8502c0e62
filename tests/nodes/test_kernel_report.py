"""Kernel Report: what it says on a machine without a card, and with each thing that can be wrong with one."""

import dataclasses
import itertools

import pytest
import torch
from pistachio.training.kernels import door as door_module
from pistachio.training.kernels import nvrtc, open_door, selftest, shut_doors
from pistachio.training.kernels.door import Door
from pistachio.training.kernels.examples import EXAMPLES, without_example
from pistachio.training.kernels.nvrtc import CompileFailed, CompilerMissing
from pistachio.training.kernels.report import NO_CARD, driver_words, markdown, sentences
from pistachio.training.kernels.table import OPERATIONS

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def shut():
    yield
    shut_doors()


@pytest.fixture
def card(monkeypatch):
    """A Hopper as far as torch is asked, with no memory and no driver behind it; `card(7, 0)` is another."""
    properties = {"name": "NVIDIA H200", "total_memory": 150_000_000_000, "multi_processor_count": 132}

    def place(major=9, minor=0):
        found = type("Properties", (), {**properties, "major": major, "minor": minor})
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: found.name)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: found)

    place()
    return place


def test_the_node_on_a_machine_without_a_card(host):
    from pistachio.nodes.kernel_report import KernelReport

    before = open_door("cuda", CPU)
    with torch.inference_mode():  # as the host runs nodes
        out = KernelReport.execute(kernels="cuda")
    (text,), shown = out.args, out.ui["text"][0]
    assert NO_CARD in text and NO_CARD in shown
    for name in OPERATIONS:
        assert f"| `{name}` | torch |" in text
    assert "can't: needs an NVIDIA card, not 'cpu'" in text and "NVRTC" in text and "kernels" in text
    checks = len(EXAMPLES) + len(selftest.gradient_errors())
    assert f"{checks} of {checks} checks passed" in text and f"{checks} of {checks} checks passed" in shown
    assert "| gradient of norm + modulate | autograd | right |" in text
    assert "## The last run here" in text and before.line in text
    assert door_module.opened(CPU) is before  # asking chose nothing


def test_the_node_without_a_self_test(host):
    from pistachio.nodes.kernel_report import KernelReport

    (text,) = KernelReport.execute(self_test=False).args
    assert "Self-test" not in text and "## What runs each operation" in text and "Kernels 'auto' on CPU" in text
    assert KernelReport.validate_inputs(kernels="fast") is not True and KernelReport.validate_inputs(kernels="auto") is True


def test_every_operation_has_an_example():
    assert without_example() == []


def test_the_time_limit_is_kept():
    seconds = itertools.count(0, 4)  # each look at the clock is four seconds later
    found = selftest.run(Door("cuda", CPU), limit_seconds=30, clock=lambda: float(next(seconds)))
    made = [f for f in found if f.passed is not None]
    assert 0 < len(made) < 5 and [f.passed for f in found[len(made):]] == [None] * (len(found) - len(made))
    assert "no time left of 30 s" in found[-1].words and "were not made" in markdown(Door("auto", CPU), found)


def test_a_wrong_implementation_is_found(monkeypatch):
    broken = dataclasses.replace(OPERATIONS["gated_residual"], library=lambda x, y, gate: OPERATIONS["gated_residual"].torch(x, y, gate) * 1.02)
    raising = dataclasses.replace(OPERATIONS["transpose_bytes"], library=lambda x: torch.empty(0).view(3))
    monkeypatch.setitem(OPERATIONS, "gated_residual", broken)
    monkeypatch.setitem(OPERATIONS, "transpose_bytes", raising)
    monkeypatch.setattr(door_module, "_why_no_library", lambda device, least: "")
    door = Door("cuda", CPU)
    examples = tuple(e for e in EXAMPLES if e.operation in ("gated_residual", "transpose_bytes"))
    found = {(f.name, f.implementation): f for f in selftest.run(door, limit_seconds=30, examples=examples)}
    assert found["gated residual", "library"].passed is False and found["gated residual", "torch"].passed
    assert found["weights on their side", "library"].words.startswith("RuntimeError")
    told = sentences(door, list(found.values()))
    assert any("2 failed" in line for line in told) and any("gated residual (library): beyond its bound" in line for line in told)
    assert "**WRONG**" in markdown(door, list(found.values()))


# ---- a card with something wrong -----------------------------------------


def _missing():
    raise CompilerMissing("NVRTC, the compiler library of CUDA, can't be loaded (tried x).")


@pytest.mark.parametrize("capability, told", [
    ((9, 0), None), ((9, 7), None), ((7, 0), "the card is too old (compute capability 7.0, at least 7.5 is needed)"), ((13, 0), "doesn't know the card (compute capability 13.0)"),
])
def test_what_is_said_of_a_card(card, capability, told):
    card(*capability)
    door = Door("cuda", CARD)
    text = markdown(door)
    assert "NVIDIA H200, 150 GB, 132 multiprocessors" in text and f"sm_{capability[0]}{capability[1]}" in text and NO_CARD not in text
    for name, operation in OPERATIONS.items():
        if "cuda" in operation.implementations:
            assert (door.implementation(name) == "cuda") == (told is None), name
    assert ("sm_97, newer than the compiler: kernels are compiled for sm_90" in text) == (capability == (9, 7))
    assert told is None or (text.count(f"can't: {told}" if capability[0] < 13 else "can't: the compiler") >= 10 and told in door.line)


def test_a_compiler_that_is_missing_is_one_line(card, monkeypatch):
    monkeypatch.setattr(nvrtc, "architectures", _missing)
    monkeypatch.setattr(nvrtc, "version", _missing)
    door = Door("cuda", CARD)
    assert door.implementation("norm_modulate") == "torch"
    assert "| Compiler | NVRTC, the compiler library of CUDA, can't be loaded (tried x). |" in markdown(door)


class _Refusing:
    """A launcher as it is where the driver is older than the compiler, or a source does not compile."""

    def __init__(self, words):
        self.words = words

    def launch(self, *arguments):
        raise CompileFailed(self.words)


@pytest.mark.parametrize("words", ["the driver is older than the compiler that torch ships (cuModuleLoadData: 218)", "NVRTC 13.0 (compilation error): gate.cu(3)"])
def test_a_kernel_that_can_not_be_loaded_is_told_and_torch_goes_on(words):
    door = open_door("cuda", CPU, launcher=_Refusing(words))
    x, y, gate = torch.ones(1, 2, 8), torch.ones(1, 2, 8), torch.ones(1, 8)
    assert torch.equal(torch.ops.pistachio.gated_residual(x, y, gate), x + y)
    text = markdown(Door("auto", CPU), used=door)
    assert text.count(words) == 2 and "torch runs it" in text  # the line of choices, and the note
    found = selftest.run(door, limit_seconds=30, examples=tuple(e for e in EXAMPLES if e.operation == "gated_residual"))
    assert [(f.implementation, f.passed) for f in found[-2:]] == [("cuda", False), ("torch", True)]


def test_the_driver_in_words(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    assert driver_words() == "for CUDA up to 12.4"
