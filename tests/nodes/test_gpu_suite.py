"""The suite for a graphics card, small on the CPU: every arm, lever, question and part runs, and what it makes of figures is right."""

import json
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch

CPU = torch.device("cpu")
# One of each kind of compiled arm: tracing takes seconds, and the others differ in what they keep and in codes alone.
TRACED = {"W8A8 fp8, compiled blocks", "ours, int8-convrot, compiled blocks"}
# The levers that no arm has; each kernel's is the same code under another setting.
LEVERS = (
    "as it is", "gated_residual in torch", "8 bits in the forward alone", "library products", "codes read back to 16 bits", "keeps in RAM", "attention flash",
    "CUDA graphs", "AdamW 8-bit with Kahan", "optimiser in RAM", "no adapters",
)


@pytest.fixture(scope="module", autouse=True)
def benchmarks(repository):
    folder = str(repository / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture(autouse=True)
def shut():
    yield
    from pistachio.training.kernels import shut_doors

    shut_doors()


def rehearsed(part, names, **options):
    from gpu_speed import run_part

    rows = {}
    assert run_part(
        part, list(names), CPU, rehearse=True, begin=lambda name: None, emit=rows.__setitem__, has_time=lambda seconds: True, seconds={},
        predicts=False, **options,
    )
    return rows


# ---- every line runs -----------------------------------------------------


def test_every_arm_runs_over_wan(host):
    from gpu_arms import ARMS

    compiled = {name for name in ARMS if "compiled" in name}
    rows = rehearsed("wan14b", ["flops", *(name for name in ARMS if name not in compiled - TRACED)])
    assert TRACED <= compiled and len(rows) == 1 + len(ARMS) - len(compiled - TRACED)
    for name, row in rows.items():
        assert row.get("rehearsed") is True or "bypass_mode" in row.get("unavailable", ""), (name, row)
    assert "torch for everything" in rows["ours, fp8-row, own kernels"]["kernels"] and rows["W8A8 fp8, compiled blocks"]["linears_in_8_bits"] == 20
    assert "1 blocks streamed" in rows["ours, planned for 12 GB"]["plan"]
    # What a run tells of itself stands in the row: here that nothing was compiled or recorded in vain.
    assert [name for name, row in rows.items() if row.get("notes")] == []


@pytest.mark.parametrize("network", ["sdxl", "sd35", "flux"])
def test_other_networks_run_too(host, network):
    rows = rehearsed(network, ["flops", "PEFT eager", "ours, int8-convrot, own kernels"])
    assert all(row.get("rehearsed") for row in rows.values()), rows


def test_the_levers_run(host):
    from gpu_arms import levers
    from pistachio.training.kernels.table import OPERATIONS

    own = {name for name, operation in OPERATIONS.items() if operation.cuda is not None}
    assert {f"{name} in torch" for name in own} <= set(levers())  # a kernel that is added is a lever by itself
    rows = rehearsed("ablation", LEVERS)
    assert all(row.get("rehearsed") for row in rows.values()), rows


def test_the_forward_alone_is_in_8_bits(host, monkeypatch):
    """The lever does what it says: no product of the backward is taken in 8 bits."""
    from gpu_arms import Own, Setup
    from gpu_speed import network_for, workload_for
    from pistachio.training.kernels import linear

    backwards, real = [], linear.product_backward
    monkeypatch.setattr(linear, "product_backward", lambda *arguments: backwards.append(1) or real(*arguments))
    from pistachio.training.kernels import door

    monkeypatch.setattr(door, "_why_no_library", lambda device, least: "")
    counts = []
    for directions in ("forward", "both"):
        backwards.clear()
        Own(workload_for(network_for("wan14b", rehearse=True), CPU), Setup(format="int8-convrot", kernels="library", directions=directions)).run(1)
        counts.append(len(backwards))
    assert counts[0] == 0 < counts[1]


@pytest.mark.parametrize("name", ["int8-convrot, seed 1", "fp8-row, seed 2"])
def test_a_run_of_equal_loss(host, name):
    import gpu_loss

    assert gpu_loss.measure(name, CPU, rehearse=True) == {"run": name, "rehearsed": True}


def test_questions_and_kernels_run(host):
    import gpu_kernels
    from gpu_parts import Asked, names_of, run

    names = names_of("kernels")
    assert names[0] == gpu_kernels.CEILINGS and len(names) == len(set(names)) > 20
    chosen = [gpu_kernels.CEILINGS, "gated residual", "weights on their side", "int8 product, to the width", "AdamW"]
    assert set(chosen) <= set(names)
    for part, wanted in (("kernels", chosen), ("questions", names_of("questions"))):
        rows = {}
        assert run(Asked(part=part, names=wanted, device=CPU, rehearse=True, deadline=math.inf, begin=lambda name: None, emit=rows.__setitem__, seconds={}, known={}))
        assert list(rows) == wanted and all(row["rehearsed"] for row in rows.values()), rows


def test_an_operation_without_an_example_fails(monkeypatch):
    import gpu_kernels
    from gpu_parts import is_failure
    from pistachio.training.kernels import examples

    monkeypatch.setattr(examples, "EXAMPLES", tuple(e for e in examples.EXAMPLES if e.operation != "adamw_"))
    assert "adamw_" in gpu_kernels.names()
    row = gpu_kernels.measure("adamw_", CPU, {}, rehearse=True)
    assert is_failure(row) and "no example" in row["failed"]


# ---- processes, budget and file ------------------------------------------

HEAD = {"rehearsal": False, "environment": {"device": "card", "host_version": "1", "torch_version": "2", "commit": "abc"}}


def step(*times):
    from gpu_results import summary

    return {"arm": "a", "ours": True, "bits": 8, "times_s": [list(times)], **summary([list(times)]), "first_step_s": 1.0, "peak_gib": 1.0, "clocks": [{}], "total_s": 5.0}


def test_rounds_are_joined_and_a_call_goes_on(tmp_path):
    from gpu_results import Results

    path = tmp_path / "card.json"
    results = Results(path, HEAD)
    results.add("sdxl", "a", step(0.1, 0.2, 0.3))
    results.add("sdxl", "b", {"arm": "b", "skipped": "no time left"})
    again = Results(path, HEAD)
    assert again.rounds("sdxl", "a") == 1 and again.rounds("sdxl", "b") == again.rounds("sdxl", "c") == 0
    row = again.add("sdxl", "a", step(0.4, 0.5, 0.6))
    assert row["step_s"] == pytest.approx(0.35) and row["round_medians_s"] == [0.2, 0.5] and again.rounds("sdxl", "a") == 2
    again.add("sdxl", "a", {"arm": "a", "failed": "a later round"})
    assert again.row("sdxl", "a")["num_steps"] == 6 and again.row("sdxl", "a")["later"] == [{"failed": "a later round"}]
    assert json.loads(path.read_text())["parts"]["sdxl"]["a"]["num_steps"] == 6 and [p.name for p in tmp_path.iterdir()] == ["card.json"]
    other = {**HEAD, "environment": {**HEAD["environment"], "device": "another card"}}
    with pytest.raises(ValueError, match="another device"):
        Results(path, other)
    assert Results(path, other, fresh=True).rows("sdxl") == []


def suite_over(monkeypatch, tmp_path, scripts, *, seconds=100.0):
    """A Suite whose workers say what `scripts` has: rows by name, or an exception's name where the process ends."""
    import gpu_suite
    from gpu_results import Results

    begun = []

    class Worker:
        def __init__(self, options, task):
            self.task = task
            begun.append(list(task["names"]))

        def records(self, deadline):
            for name in self.task["names"]:
                yield "begin", name, None
                row = scripts[name].pop(0) if isinstance(scripts[name], list) else scripts[name]
                if row == "dies":
                    return
                yield "row", name, row

        def last_words(self):
            return "illegal memory access"

    monkeypatch.setattr(gpu_suite, "Worker", Worker)
    results = Results(tmp_path / "r.json", HEAD)
    return gpu_suite.Suite(SimpleNamespace(rehearse=False), results, time.monotonic() + seconds), begun


def test_arms_take_turns_and_a_process_that_dies_costs_one_arm(monkeypatch, tmp_path):
    scripts = {"flops": {"arm": "flops", "step_flop": 1e12, "forward_flop": 1.0, "matmul_flop_per_s": 1e13}, "a": step(0.2, 0.2), "b": ["dies"], "c": step(0.4, 0.4)}
    suite, begun = suite_over(monkeypatch, tmp_path, scripts)
    suite.run("sdxl", ["flops", "a", "b", "c"])
    assert begun == [["flops", "a", "b", "c", "a", "b", "c"], ["c", "a", "c"]]
    rows = suite.results.value["parts"]["sdxl"]
    assert rows["a"]["num_steps"] == rows["c"]["num_steps"] == 4 and "illegal memory access" in rows["b"]["failed"]
    assert rows["a"]["mfu"] == pytest.approx(1e12 / (0.2 * 1e13))
    begun.clear()
    suite.run("sdxl", ["flops", "a", "c"])
    assert begun == []  # all there


def test_without_time_rows_are_left_for_the_next_call(monkeypatch, tmp_path):
    suite, begun = suite_over(monkeypatch, tmp_path, {}, seconds=1.0)
    suite.run("sdxl", ["flops", "a"])
    assert begun == [] and suite.results.row("sdxl", "a") == {"skipped": "no time left"}


def test_an_arm_is_not_begun_without_the_time_it_took_before(host):
    from gpu_speed import run_part

    rows = {}
    run_part(
        "wan14b", ["ours, bf16"], CPU, rehearse=False, begin=lambda name: None, emit=rows.__setitem__, has_time=lambda seconds: seconds < 30,
        seconds={"ours, bf16": 40.0},
    )
    assert rows["ours, bf16"]["skipped"] == "no time left for about 40 s"


def test_a_rehearsal_is_no_result_of_a_card(monkeypatch, repository, capsys):
    import gpu_suite

    target = repository / "benchmarks" / "results" / "gpu-x.json"
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "--comfyui", "nowhere", "--rehearse", "--json", str(target)])
    monkeypatch.setattr(gpu_suite, "load_packages", lambda: None)
    assert gpu_suite.main() == gpu_suite.EXIT_USAGE and not target.exists() and "what cards measured" in capsys.readouterr().out


# ---- what is made of figures ---------------------------------------------


def arm(seconds, ours, bits=16, **values):
    return {"step_s": seconds, "ours": ours, "bits": bits, **values}


def test_targets():
    from gpu_targets import judged

    wan = {
        "built-in, default": arm(0.9, False), "PEFT eager": arm(0.7, False), "W8A8 fp8, compiled blocks": arm(0.52, False, 8),
        "ours, bf16": arm(0.45, True, mfu=0.6), "ours, fp8-row, own kernels": arm(0.30, True, 8), "ours, planned for 16 GB": arm(0.46, True, plan="x"),
        "PEFT eager, blocks checkpointed": {"out_of_memory": "x"},
    }
    kernels = {"ceilings": {}, "gated residual": {"by": {"cuda": {"bandwidth_share": 0.9}}}, "AdamW": {"by": {"cuda": {"bandwidth_share": 0.5}}}, "p": {"by": {"cuda": {"rate_share": 0.2}}}}
    loss = {f"int8-convrot, {m}": {"verdict": v} for m, v in (("trained_loss", "equal"), ("held_out_loss", "better"))} | {"fp8-row, trained_loss": {"verdict": "undecided"}}
    found = {row["target"]: row for row in judged({"wan14b": wan, "kernels": kernels}, loss)}
    told = [(row["measured"] if row["measured"] is None else round(row["measured"], 3), row["passed"]) for row in list(found.values())[:11]]
    assert told == [
        (0.3, True), (round(0.52 / 0.3, 3), True), (3.0, True), (0.45, True), (0.6, False), (None, None), (round(0.45 / 0.46, 3), True), (None, None),
        (0.5, False), (1.0, True), (0.0, False),
    ]
    assert found["kernel 'AdamW', share of the measured bandwidth"]["passed"] is False and found["kernel 'gated residual', share of the measured bandwidth"]["passed"]
    assert all(row["passed"] is None for row in judged({}))


@pytest.mark.parametrize("ratios, verdict", [
    ([0.001, -0.002, 0.002], "equal"), ([0.05, 0.055, 0.052], "worse"), ([-0.06, -0.05, -0.055], "better"), ([0.02, -0.03, 0.06], "undecided"), ([0.0], "not measured"),
])
def test_the_verdict_on_equal_loss(ratios, verdict):
    import gpu_loss

    assert gpu_loss.compared(ratios)["verdict"] == verdict


def test_the_interval_is_students():
    import gpu_loss

    found = gpu_loss.compared([0.01, 0.02, 0.03])
    # Mean .02, standard deviation .01, three runs: .02 +- 2.920 x .01 / sqrt(3).
    assert found["interval_90"] == pytest.approx([0.02 - 0.016858, 0.02 + 0.016858], abs=1e-6) and found["t"] == pytest.approx(3.4641, abs=1e-4)
    rows = [{"format": f, "seed": s, "trained_loss": l, "held_out_loss": l} for f, s, l in (("bf16", 1, 1.0), ("bf16", 2, 2.0), ("int8-convrot", 1, 1.0), ("int8-convrot", 2, 2.0), ("fp8-row", 1, 1.0))]
    told = gpu_loss.verdict(rows)
    assert told["int8-convrot, held_out_loss"]["verdict"] == "equal" and told["fp8-row, held_out_loss"]["verdict"] == "not measured"
