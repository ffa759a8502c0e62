"""Optimiser state and averaged weights in main memory: the same numbers to the bit, through a stop and a move in the middle."""

import copy

import pytest
import torch
from pistachio.training.config import OPTIMIZERS, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.errors import PistachioError
from pistachio.training.optimizers import RunOptimizer
from pistachio.training.trainer import Trainer
from support.flow import Flow, train_items

from .test_optimizers import MATRICES_ALONE, Network, settings, take

EVERY = [name for name in OPTIMIZERS if name not in ("library", "adamw-8bit")]
LIBRARY = ("pytorch_optimizer.Lamb", "schedulefree.RAdamScheduleFree")


def choice(name):
    return settings("library", library=name) if "." in name else settings(name)


@pytest.mark.parametrize("name", [*EVERY, *LIBRARY])
def test_the_steps_are_the_same_to_the_bit(name):
    """Stopped after three steps and taken up in the other place, too; and after somebody else has changed the weights."""
    whole, apart, moved = (Network() for _ in range(3))
    on_device, on_cpu, first = (RunOptimizer(n, choice(name), place=p) for n, p in ((whole, "device"), (apart, "cpu"), (moved, "cpu")))
    for network, optimizer in ((whole, on_device), (apart, on_cpu), (moved, first)):
        take(network, optimizer, range(3), 0.01)
    second = RunOptimizer(moved, choice(name), place="device")
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    third = RunOptimizer(apart, choice(name), place="cpu")
    third.load_state_dict(copy.deepcopy(on_device.state_dict()))
    for network in (whole, apart, moved):
        network.parameters.mul_(0.5)
    for network, optimizer in ((whole, on_device), (apart, third), (moved, second)):
        take(network, optimizer, range(3, 6), 0.01)
    assert torch.equal(apart.parameters, whole.parameters) and torch.equal(moved.parameters, whole.parameters)
    assert third.state_bytes == on_device.state_bytes == second.state_bytes > 0
    if on_device.averages:
        averages = [torch.zeros_like(whole.parameters) for _ in range(3)]
        for optimizer, average in zip((on_device, third, second), averages):
            optimizer.copy_average(average)
        assert torch.equal(averages[1], averages[0]) and torch.equal(averages[2], averages[0]) and averages[0].any()
        assert torch.equal(apart.parameters, whole.parameters)


def test_the_state_is_beside_a_copy_and_not_beside_the_weights():
    network = Network(MATRICES_ALONE)
    optimizer = RunOptimizer(network, settings("adamw"), place="cpu")
    take(network, optimizer, range(1), 0.01)
    (stepped,) = optimizer.inner.state
    assert stepped is optimizer.held.parameters and stepped.data_ptr() != network.parameters.data_ptr()
    assert torch.equal(stepped, network.parameters)
    before = optimizer.held.parameters._version
    network.gradients.zero_()
    optimizer.step(0.0)
    came_down = optimizer.held.parameters._version - before
    network.parameters.add_(1.0)
    before = optimizer.held.parameters._version
    optimizer.step(0.0)
    assert optimizer.held.parameters._version - before == came_down + 1  # only then are the weights fetched
    assert torch.equal(optimizer.held.parameters, network.parameters)


@pytest.mark.parametrize("name, per_weight", [("adamw", 8), ("adamw-8bit-kahan", 4 + 8 / 256), ("lion", 4)])
def test_bytes_of_the_state(name, per_weight):
    network = Network({"one": {"lora_A": (64, 256), "lora_B": (64, 64)}})
    optimizer = RunOptimizer(network, settings(name), place="cpu")
    take(network, optimizer, range(1), 0.01)
    count = network.parameters.numel()
    assert optimizer.state_bytes == pytest.approx(count * per_weight, abs=64)


def test_what_can_not_be_is_refused():
    with pytest.raises(PistachioError, match="keeps its state on the graphics card"):
        RunOptimizer(Network(), OptimizerConfig(name="adamw-8bit"), place="cpu")
    with pytest.raises(PistachioError, match="'disk' is unknown"):
        RunOptimizer(Network(), settings("adamw"), place="disk")


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit-kahan", "schedule-free"])
def test_a_run_is_the_same_wherever_state_and_average_live(optimizer):
    config = TrainConfig(
        num_steps=6, batch_size=2, optimizer=OptimizerConfig(name=optimizer, learning_rate=1e-2, schedule="constant", ema_decay=0.0 if optimizer == "schedule-free" else 0.5),
        objective=ObjectiveConfig(timestep_distribution="uniform"),
    )
    places = [{}, {"average_place": "cpu"}, {"optimizer_place": "cpu"}, {"optimizer_place": "cpu", "average_place": "cpu"}]
    trainers = [Trainer(Flow(), train_items(), config, **place) for place in places]
    for trainer in trainers:
        with trainer.model.training(), trainer.network:
            for _ in range(3):
                trainer.advance()
    states = [copy.deepcopy(trainer.state()) for trainer in trainers]
    trainers = [Trainer(Flow(), train_items(), config, **place) for place in reversed(places)]  # each goes on elsewhere
    for trainer, state in zip(trainers, states):
        trainer.load(state)
        with trainer.model.training(), trainer.network:
            losses = [trainer.advance().loss for _ in range(3)]
    assert losses[0] != losses[1]
    first = trainers[0].state()
    for trainer in trainers[1:]:
        other = trainer.state()
        assert torch.equal(other["parameters"], first["parameters"]) and torch.equal(other["average"], first["average"])
    assert not torch.equal(first["parameters"], first["average"])
