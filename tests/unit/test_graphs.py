"""Micro-batches played from graphs: the same run to the bit, one graph a bucket, and every reason not to is told."""

import re
from contextlib import contextmanager

import pytest
import torch
from pistachio.training.batches import TrainItem
from pistachio.training.config import AdapterConfig, EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.graphs import CudaGraphs, SimulatedGraphs, StepGraphs, why_no_graphs
from pistachio.training.runtime import choose_runtime
from pistachio.training.trainer import Trainer
from support.flow import Flow

STEPS = 10


def items():
    """Two buckets of three pictures."""
    generator = torch.Generator().manual_seed(0)
    return [
        TrainItem(
            content_hash=f"{i}", latents=torch.randn(1, 3, 4, 4 + 2 * (i % 2), generator=generator), condition=1.0 + i, group=f"b{i % 2}",
            prior_condition=-1.0, prior_group=f"b{i % 2}",
        )
        for i in range(6)
    ]


def trained(device=None, steps=STEPS, model=None, **adapter):
    """(the trained weights, losses, sentences, the device)."""
    trainer = Trainer(model or Flow(), items(), TrainConfig(
        num_steps=STEPS, batch_size=2, accumulation=2, seed=1, adapter=AdapterConfig(**{"rank": 2, "alpha": 2, "targets": "all-linear+conv", **adapter}),
        optimizer=OptimizerConfig(learning_rate=1e-2), objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.25),
        evaluation=EvaluationConfig(),
    ))
    told = []
    if device is not None:
        trainer.graphs = StepGraphs(trainer.compute, trainer.network, device, told.append)
    with trainer.network:
        losses = [trainer.advance().loss for _ in range(steps)]
    return trainer.network.parameters.detach().clone(), losses, told, trainer


@pytest.fixture(scope="module")
def eager():
    return trained()


def test_a_played_run_is_the_computed_one(eager):
    device = SimulatedGraphs()
    weights, losses, told, trainer = trained(device)
    assert torch.equal(weights, eager[0]) and losses == eager[1] and told == []
    graphs = list(trainer.graphs._graphs.values())
    assert device.recorded == len(graphs) >= 2 and any(graph.is_checked for graph in graphs)
    shapes = {tuple(graph.inputs.latents.shape[1:]) for graph in graphs}
    assert shapes == {(3, 4, 4), (3, 4, 6)}


@pytest.mark.parametrize("kind", ["dora", "lokr", "loha"])
def test_adapters_whose_gradients_autograd_adds_up_play_too(kind):
    computed, played = trained(steps=5, kind=kind), trained(SimulatedGraphs(), steps=5, kind=kind)
    assert torch.equal(computed[0], played[0])


class Refusing:
    def record(self, function):
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")


class Stale:
    """A graph that kept its first inputs, as one does whose function reads memory of the computer."""

    def record(self, function):
        losses_B = function()
        return lambda: losses_B  # and no gradient


@pytest.mark.parametrize("device, reason", [(Refusing(), "can't be recorded \\(operation not permitted"), (Stale(), "played gradients differ from the computed ones")])
def test_what_cannot_be_played_is_computed_and_told(eager, device, reason):
    weights, losses, told, trainer = trained(device)
    kinds = len(trainer.graphs._refused)
    assert kinds >= 2 and len(told) == kinds
    assert all("No CUDA graph for latents of" in text for text in told)
    assert re.search(reason, told[0])
    assert torch.equal(weights, eager[0]) and losses == eager[1]


def test_no_memory_for_a_graph_is_no_end_of_the_run(eager):
    class Full:
        def record(self, function):
            function()
            raise torch.OutOfMemoryError("CUDA out of memory")

    weights, losses, told, _ = trained(Full())
    assert torch.equal(weights, eager[0]) and losses == eager[1] and "no memory for its graph" in told[0]


def test_there_is_an_end_to_graphs(eager, monkeypatch):
    monkeypatch.setattr("pistachio.training.graphs.MAX_GRAPHS", 1)
    device = SimulatedGraphs()
    weights, _, told, _ = trained(device)
    assert torch.equal(weights, eager[0]) and device.recorded == 1 and "1 other kinds" in told[0]


def test_settings_that_a_graph_cannot_honour_are_named():
    def reason(model=None, is_streaming=False, **adapter):
        trainer = trained(steps=0, model=model, **adapter)[3]
        return why_no_graphs(trainer.model, trainer.network, is_streaming=is_streaming)

    assert reason() is None
    assert "streamed" in reason(is_streaming=True)
    assert "dropout" in reason(dropout=0.1)
    live = Flow()
    live.has_fixed_conditions = False
    assert "text encoder" in reason(live)
    away = Flow()
    away.device = torch.device("meta")
    trainer = trained(steps=0)[3]
    assert "off the device ('enter.weight')" in why_no_graphs(away, trainer.network, is_streaming=False)


def test_cuda_records_after_warming_up_on_a_stream_aside(monkeypatch):
    calls = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            calls.append(("wait", self.name, other.name))

    class Graph:
        def pool(self):
            return "pool"

        def replay(self):
            calls.append("replay")

    @contextmanager
    def stream(used):
        calls.append(("on", used.name))
        yield

    @contextmanager
    def recording(graph, pool, capture_error_mode):
        calls.append(("record", pool))
        yield

    computing = Stream("computing")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("aside"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    graphs = CudaGraphs(torch.device("cpu"))

    def function():
        calls.append("run")
        return torch.ones(1)

    play = graphs.record(function)
    assert calls == [("wait", "aside", "computing"), ("on", "aside"), "run", "run", ("wait", "computing", "aside"), ("record", None), "run"]
    assert play().tolist() == [1] and calls[-1] == "replay"
    graphs.record(function)
    assert ("record", "pool") in calls  # the second graph shares the first one's memory


def test_a_plan_chooses_how_micro_batches_run():
    def chosen(keep="everything", model=None, **wishes):
        trainer = trained(steps=0, model=model)[3]
        trainer.network.keep = keep
        told = []
        choose_runtime(trainer, **{"cuda_graph": "off", "compile": "off", "is_streaming": False, "tell": told.append, **wishes})
        return trainer.graphs is not None, trainer.network.compiled is not None, told

    assert chosen() == chosen(cuda_graph="auto") == (False, False, [])
    assert chosen(cuda_graph="on", compile="blocks", device=SimulatedGraphs()) == (True, True, [])
    assert chosen(cuda_graph="on") == (False, False, ["No CUDA graphs: there is no CUDA device."])
    graphs, compiled, told = chosen(cuda_graph="on", compile="blocks", is_streaming=True, device=SimulatedGraphs())
    assert not graphs and not compiled and len(told) == 2 and all("streamed" in text for text in told)
    assert "'products' records" in chosen(compile="blocks", keep="products")[2][0]
    bare = Flow()
    bare.blocks = list
    assert "flow has no known blocks" in chosen(compile="blocks", model=bare)[2][0]
