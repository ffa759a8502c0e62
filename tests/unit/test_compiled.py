"""Blocks through the compiler: the same run, and one sentence where that fails. PyTorch's own backends stand for the one that writes kernels."""

import pytest
import torch
from pistachio.training.compiled import CompiledBlocks, why_not_compiled
from pistachio.training.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.trainer import Trainer
from support.flow import Flow, train_items


def trained(backend=None, keep="everything"):
    trainer = Trainer(Flow(), train_items(), TrainConfig(
        num_steps=3, batch_size=2, seed=1, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear"),
        optimizer=OptimizerConfig(learning_rate=1e-2), objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.0),
    ), keep=keep)
    told = []
    if backend is not None:
        trainer.network.compiled = CompiledBlocks(trainer.model, backend=backend, tell=told.append)
    with trainer.network:
        for _ in range(3):
            trainer.advance()
    assert "forward" not in vars(trainer.model.network.blocks[0])
    return trainer.network.parameters.detach().clone(), told


@pytest.fixture(scope="module")
def eager():
    return trained()[0]


@pytest.mark.parametrize("keep", ["everything", "blocks"])
def test_compiled_blocks_train_the_same(eager, keep):
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    weights, told = trained(backend, keep)
    assert told == [] and len(compilations) >= 2
    assert ((weights - eager).norm() / eager.norm()).item() < 1e-6


def test_a_compiler_that_fails_is_told_and_the_run_goes_on(eager):
    def backend(graph, inputs):
        raise OSError("no compiler")

    torch._dynamo.reset()
    weights, told = trained(backend)
    assert torch.equal(weights, eager)
    assert len(told) == 1 and "can't be compiled" in told[0] and "no compiler" in told[0]


def test_an_error_of_the_model_is_none_of_the_compilers():
    def backend(graph, inputs):
        def run(*args):
            raise MemoryError("of the model")

        return run

    torch._dynamo.reset()
    with pytest.raises(MemoryError, match="of the model"):
        trained(backend)


def test_what_does_not_go_together_is_named():
    assert why_not_compiled(keep="blocks", is_streaming=False) is None
    assert "streamed" in why_not_compiled(keep="blocks", is_streaming=True)
    assert "'attention' records" in why_not_compiled(keep="attention", is_streaming=False)
