"""The suite for a graphics card, small on the CPU: every arm, lever, question and part runs, and what it makes of figures is right."""

import json
import math
import sys
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
            assert task["deadline"] == suite.deadline - gpu_suite.GRACE_SECONDS  # of the clock, not from the worker's beginning

        def records(self, deadline):
            for name in self.task["names"]:
                yield "begin", name, None
                row = scripts[name].pop(0) if isinstance(scripts[name], list) else scripts[name]
                if row in ("dies", "hangs"):
                    if row == "hangs":
                        suite.clock[0] += 1000.0
                    return
                yield "row", name, row
                if "device_fault" in row:
                    return

        def end(self, seconds):
            pass

        def last_words(self):
            return "illegal memory access"

    monkeypatch.setattr(gpu_suite, "Worker", Worker)
    results = Results(tmp_path / "r.json", HEAD)
    clock = [0.0]
    monkeypatch.setattr(gpu_suite, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    suite = gpu_suite.Suite(SimpleNamespace(rehearse=False), results, seconds)
    suite.clock = clock
    return suite, begun


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
    suite, begun = suite_over(monkeypatch, tmp_path, {"q": {"question": "q"}}, seconds=80.0)
    suite.run("sdxl", ["flops", "a"])  # to begin a process and one arm takes longer
    assert begun == [] and suite.results.row("sdxl", "a") == {"skipped": "no time left"}
    suite.run("questions", ["q"])
    assert begun == [["q"]] and suite.results.row("questions", "q") == {"question": "q"}


def test_a_process_that_the_end_meets_while_it_begins_is_no_failure(monkeypatch, tmp_path):
    import gpu_suite

    suite, begun = suite_over(monkeypatch, tmp_path, {})

    def killed(worker, deadline):
        suite.clock[0] = deadline
        return iter(())

    monkeypatch.setattr(gpu_suite.Worker, "records", killed)
    suite.run("sdxl", ["a", "b"])
    assert len(begun) == 1 and suite.results.value["parts"]["sdxl"] == {name: {"skipped": "no time left"} for name in ("a", "b")}


def test_a_card_that_can_not_go_on_costs_one_row(monkeypatch, tmp_path):
    suite, begun = suite_over(monkeypatch, tmp_path, {"a": step(0.2), "b": {"kernel": "b", "device_fault": "illegal address", "by": {"torch": {"s": 1.0}}}, "c": {"kernel": "c"}})
    suite.run("kernels", ["b", "c"])
    assert begun == [["b", "c"], ["c"]] and suite.results.row("kernels", "b")["by"] == {"torch": {"s": 1.0}} and suite.results.row("kernels", "c") == {"kernel": "c"}
    begun.clear()
    suite.run("kernels", ["b", "c"])
    assert begun == []  # the same code would do the same


def test_a_worker_gives_what_it_has_when_the_card_can_not_go_on(monkeypatch):
    import gpu_parts

    monkeypatch.setattr(gpu_parts, "_measure_of", lambda asked: lambda name: {"kernel": name})
    monkeypatch.setattr(gpu_parts, "fault", lambda device: "illegal address")
    rows = {}
    asked = gpu_parts.Asked(part="kernels", names=["a", "b"], device=CPU, rehearse=False, deadline=math.inf, begin=lambda name: None, emit=rows.__setitem__, seconds={}, known={})
    assert gpu_parts.run(asked) is False
    assert rows == {"a": {"kernel": "a", "device_fault": "illegal address"}} and gpu_parts.is_failure(rows["a"]) and "illegal address" in gpu_parts.words(rows["a"])


def test_an_arm_that_leaves_the_card_unusable_ends_its_process(host, monkeypatch):
    from gpu_speed import Measurer, network_for
    from gpu_arms import ARMS

    measurer = Measurer(network_for("wan14b", rehearse=True), ARMS, CPU, rehearse=True, predicts=False)
    monkeypatch.setattr(Measurer, "_measured", lambda self, arm: {"rehearsed": True})
    assert measurer.measure("ours, bf16") == {"arm": "ours, bf16", "ours": True, "bits": 16, "rehearsed": True} and measurer.is_clean

    def broken(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Measurer, "_take_down", broken)
    row = measurer.measure("ours, bf16")
    assert row["rehearsed"] and "illegal memory access" in row["device_fault"] and not measurer.is_clean


def test_what_failed_comes_last_and_not_for_ever(monkeypatch, tmp_path):
    scripts = {"failed": ["dies"] * 9, "slow": ["hangs"] * 9, "skipped": {"question": "skipped"}, "new": {"question": "new"}}
    orders = []
    for _ in range(4):
        suite, begun = suite_over(monkeypatch, tmp_path, scripts)
        if not orders:
            suite.results.add("questions", "skipped", {"skipped": "no time left"})
        suite.run("questions", ["failed", "skipped", "slow", "new"])
        orders.append(begun[0] if begun else [])
    rows = suite.results.value["parts"]["questions"]
    assert orders == [["failed", "slow", "new", "skipped"], ["skipped", "new", "failed", "slow"], ["failed", "slow"], []]
    assert rows["failed"]["tries"] == rows["slow"]["tries"] == 3 and "as 2 times before" in rows["slow"]["failed"]
    suite.results.add("kernels", "ceilings", {"failed": "x"})
    assert suite.missing("kernels", ["ceilings", "failed"]) == ["ceilings", "failed"]  # without it no other row says its share
    suite.results.add("questions", "failed", {"skipped": "no time left"})
    assert "illegal memory access" in rows["failed"]["failed"]  # what was found stays


def test_a_call_that_is_killed_over_a_row_leaves_a_word(tmp_path):
    from gpu_results import Results

    Results(tmp_path / "r.json", HEAD).begin("sdxl", "a")
    for _ in range(2):  # told once
        results = Results(tmp_path / "r.json", HEAD)
        assert results.row("sdxl", "a") == {"skipped": "the call before was killed over it", "timed_out": True, "tries": 1}
    assert results.rank("sdxl", "a") == 2 and results.rank("sdxl", "b") == 0


def test_an_arm_is_not_begun_without_the_time_it_took_before(host):
    from gpu_speed import run_part

    rows = {}
    run_part(
        "wan14b", ["ours, bf16"], CPU, rehearse=False, begin=lambda name: None, emit=rows.__setitem__, has_time=lambda seconds: seconds < 30,
        seconds={"ours, bf16": 40.0},
    )
    assert rows["ours, bf16"]["skipped"] == "no time left for about 40 s"


def test_compiling_does_not_make_other_arms_seem_long(host, monkeypatch):
    import gpu_speed

    now = [0.0]

    class Measurer:
        is_clean = True

        def __init__(self, *arguments, **options):
            pass

        def measure(self, name):
            now[0] += 200.0 if "compiled" in name else 20.0
            return {"arm": name, "times_s": [[1.0]]}

    monkeypatch.setattr(gpu_speed, "Measurer", Measurer)
    monkeypatch.setattr(gpu_speed.time, "perf_counter", lambda: now[0])
    rows, asked = {}, []
    names = ["PEFT, compiled blocks", "PEFT eager", "ours, bf16", "ours, bf16, compiled blocks"]
    gpu_speed.run_part(
        "wan14b", names, CPU, rehearse=False, begin=lambda name: None, emit=rows.__setitem__, has_time=lambda seconds: asked.append(seconds) or seconds < 190,
        seconds={"ours, nf4": 50.0}, first_seconds=45.0,
    )
    assert asked == [135.0, 50.0, 50.0, 200.0] and [name for name in names if "skipped" in rows[name]] == ["ours, bf16, compiled blocks"]


def test_code_without_a_history_is_named_by_its_hash(tmp_path):
    from gpu_card import commit

    def told(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(text)
        return commit(tmp_path)

    first = told(training__a="1")
    assert first.startswith("code ") and told(docs__a="x") == first  # decides no figure
    changed = {told(training__a="2"), told(benchmarks__b="1"), told(training__a="1", benchmarks__b="2")}
    assert len({first, *changed}) == 4


# ---- how a call is timed -------------------------------------------------


def test_the_card_waits_while_python_begins(monkeypatch):
    """The stamps hold the call alone: the cache is emptied by reading, and the launch is no part of the time."""
    import gpu_card

    order = []
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("wait"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: order.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: SimpleNamespace(record=lambda: order.append("stamp"), elapsed_time=lambda other: 3.0))
    scratch = SimpleNamespace(sum=lambda: order.append("read"))
    assert gpu_card._stamped(lambda: order.append("call"), scratch) == 3e-3
    assert order == ["read", "wait", "stamp", "call", "stamp", "synchronize"]


def test_a_call_that_breaks_the_card_is_the_only_one_to_blame(monkeypatch):
    import gpu_card

    def breaks():
        raise RuntimeError("an illegal memory access was encountered")

    calls = {"good": lambda: 2e-3, "refused": lambda: torch.empty(0).view(3), "broken": breaks, "later": lambda: 1e-3}
    monkeypatch.setattr(torch, "zeros", lambda *size, **options: None)
    monkeypatch.setattr(gpu_card, "_stamped", lambda call, scratch: call())
    card = SimpleNamespace(type="cuda")
    for dead, seconds, failed in ((True, {}, {"refused"}), (False, {"good": 2e-3, "later": 1e-3}, {"refused", "broken"})):
        monkeypatch.setattr(gpu_card, "fault", lambda device: "dead" if dead else "")
        found, told = gpu_card.timed_in_turns(calls, card)
        assert found == seconds and set(told) == failed


def test_a_broken_kernel_leaves_the_others_their_times(monkeypatch):
    import gpu_kernels
    from pistachio.training.kernels import examples, selftest

    real = selftest.check

    def check(example, kind, launcher, device):
        if kind == "cuda":
            raise RuntimeError("an illegal memory access was encountered")
        return real(example, kind, launcher, device)

    monkeypatch.setattr(selftest, "check", check)
    monkeypatch.setattr(examples, "WAN_14B", examples.SMALL)
    monkeypatch.setattr(gpu_kernels, "fault", lambda device: "dead")
    timed = []
    monkeypatch.setattr(gpu_kernels, "timed_in_turns", lambda calls, device: (timed.append(list(calls)) or dict.fromkeys(calls, 2e-3) | {gpu_kernels.EQUAL_COPY: 1e-3}, {}))
    row = gpu_kernels.measure("gated residual", CPU, {"copy_bytes_per_s": 1e9}, rehearse=False)
    assert "illegal memory access" in row["by"]["cuda"]["failed"] and row["passed"] is False and len(timed) == 1
    torch_row = row["by"]["torch"]
    assert torch_row["s"] == 2e-3 and torch_row["share_of_equal_copy"] == 0.5 and torch_row["share_of_large_copy"] == pytest.approx(row["moved_bytes"] / 2e-3 / 1e9)
    assert row["equal_copy_bytes_per_s"] == row["moved_bytes"] / 1e-3 and gpu_kernels.EQUAL_COPY not in row["by"]


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
    kernels = {"ceilings": {}, "gated residual": {"by": {"cuda": {"share_of_equal_copy": 0.9}}}, "AdamW": {"by": {"cuda": {"share_of_equal_copy": 0.5}}}, "p": {"by": {"cuda": {"rate_share": 0.2}}}}
    loss = {f"int8-convrot, {m}": {"verdict": v} for m, v in (("trained_loss", "equal"), ("held_out_loss", "better"))} | {"fp8-row, trained_loss": {"verdict": "undecided"}}
    found = {row["target"]: row for row in judged({"wan14b": wan, "kernels": kernels}, loss)}
    told = [(row["measured"] if row["measured"] is None else round(row["measured"], 3), row["passed"]) for row in list(found.values())[:11]]
    assert told == [
        (0.3, True), (round(0.52 / 0.3, 3), True), (3.0, True), (0.45, True), (0.6, False), (None, None), (round(0.45 / 0.46, 3), True), (None, None),
        (0.5, False), (1.0, True), (0.0, False),
    ]
    told = {name: found[f"kernel '{name}', share of the speed of an equal copy"]["passed"] for name in ("AdamW", "gated residual")}
    assert told == {"AdamW": False, "gated residual": True}
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
