"""Every optimiser against its authors' code or a formula, on a toy that it must solve, and through a stop in the middle."""

import copy
import math

import prodigyopt
import pytest
import pytorch_optimizer
import schedulefree
import torch
from pistachio.training.config import OPTIMIZERS, OptimizerConfig, from_dict
from pistachio.training.errors import PistachioError
from pistachio.training.optimizers import RunOptimizer
from pistachio.training.optimizers.arguments import parse
from pistachio.training.optimizers.eight_bit import AdamW8bitKahan, EightBit, dynamic_codes
from pistachio.training.optimizers.elementwise import Prodigy
from pistachio.training.optimizers.factored import Adafactor, Came
from pistachio.training.optimizers.library import PACKAGES, optimizer_class

OURS = [name for name in OPTIMIZERS if name not in ("library", "adamw-8bit")]
SHAPES = {"one": {"lora_A": (4, 6), "lora_B": (8, 4)}, "two": {"lora_A": (4, 6), "lora_B": (8, 4), "magnitude": (8,)}}

MATRICES_ALONE = {"one": {"lora_A": (4, 6), "lora_B": (8, 4)}}


class Adapter:
    def __init__(self):
        self.tensors = {}


class Network:
    """Adapters over one flat buffer, B transposed in it, as the engine keeps them."""

    def __init__(self, shapes=SHAPES, *, seed=0):
        count = sum(math.prod(s) for adapter in shapes.values() for s in adapter.values())
        self.parameters = torch.randn(count, generator=torch.Generator().manual_seed(seed))
        self.gradients = torch.zeros(count)
        self.parameters.grad = self.gradients
        self.adapters, offset = {}, 0
        for path, tensors in shapes.items():
            self.adapters[path] = Adapter()
            for name, shape in tensors.items():
                end = offset + math.prod(shape)
                view = (lambda flat: flat.view(shape[::-1]).t()) if name == "lora_B" else (lambda flat: flat.view(shape))
                tensor = view(self.parameters[offset:end]).requires_grad_(True)
                tensor.grad = view(self.gradients[offset:end])
                self.adapters[path].tensors[name] = tensor
                offset = end

    @property
    def tensors(self):
        return [tensor for adapter in self.adapters.values() for tensor in adapter.tensors.values()]


def settings(name, **changes):
    asked = f"{name} {changes.get('library', '')}".lower()
    needed = {"learning_rate": 1.0} if "prodigy" in asked else {"schedule": "constant"} if "free" in asked else {}
    return OptimizerConfig(**{"name": name, "learning_rate": 0.01, "weight_decay": 0.1, **needed, **changes})


def gradient(step, count):
    return torch.randn(count, generator=torch.Generator().manual_seed(1000 + step)) * 0.3


def take(network, optimizer, steps, rate):
    for step in steps:
        network.gradients.copy_(gradient(step, network.gradients.numel()) + 0.1 * network.parameters)
        optimizer.step(rate * (1 + 0.1 * (step % 3)))


# ---- references --------------------------------------------------------------


def reference(name, parameters):
    return {
        "adamw": lambda: torch.optim.AdamW(parameters, weight_decay=0.1),
        "lion": lambda: pytorch_optimizer.Lion(parameters, weight_decay=0.1, weight_decouple=True),
        "adafactor": lambda: pytorch_optimizer.AdaFactor(parameters, lr=1.0, weight_decay=0.1, weight_decouple=True, scale_parameter=False, relative_step=False, betas=(None, 0.999)),
        "came": lambda: pytorch_optimizer.CAME(parameters, weight_decay=0.1, weight_decouple=True),
        "prodigy": lambda: prodigyopt.Prodigy(parameters, weight_decay=0.1),
        "schedule-free": lambda: schedulefree.AdamWScheduleFree(parameters, weight_decay=0.1),
    }[name]()


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "came", "prodigy", "schedule-free"])
def test_the_authors_code_takes_the_same_steps(name):
    """Adapter by adapter for them, flat or stacked for us."""
    network = Network()
    theirs = [tensor.detach().clone().requires_grad_(True) for tensor in network.tensors]
    ours = RunOptimizer(network, settings(name, decay_magnitudes=True))
    library = reference(name, theirs)
    if hasattr(library, "train"):
        library.train()
    base = 1.0 if name == "prodigy" else 0.01
    rtol, atol = (2e-4, 2e-5) if name == "prodigy" else (2e-5, 2e-6)  # theirs keeps d in float64
    for step in range(12):
        flat = gradient(step, network.gradients.numel()) + 0.1 * network.parameters
        network.gradients.copy_(flat)
        rate = base * (1 + 0.1 * (step % 3))
        for tensor, own in zip(theirs, network.tensors):
            tensor.grad = own.grad.clone()
        for group in library.param_groups:
            group["lr"] = rate
        ours.step(rate)
        library.step()
        for tensor, own in zip(theirs, network.tensors):
            torch.testing.assert_close(own, tensor, rtol=rtol, atol=atol)
    if name == "schedule-free":
        library.eval()
        average = torch.zeros_like(network.parameters)
        before = network.parameters.clone()
        ours.copy_average(average)
        network.parameters.copy_(average)
        for tensor, own in zip(theirs, network.tensors):
            torch.testing.assert_close(own, tensor, rtol=rtol, atol=atol)
        assert not torch.equal(before, average)


def test_a_flat_buffer_would_give_factored_methods_another_answer():
    """Why they get the adapters' own matrices."""
    for optimizer in (Adafactor, Came):
        network = Network()
        flat = network.parameters.clone()
        flat.grad = network.gradients
        network.gradients.copy_(gradient(0, flat.numel()))
        by_matrix = optimizer(network.tensors, lr=0.01)
        by_matrix.step()
        optimizer([flat], lr=0.01).step()
        assert (flat - network.parameters).abs().max() > 1e-3


def test_convolutions_are_factored_as_matrices():
    kernel, matrix = torch.ones(4, 3, 3, 3), torch.ones(4, 27)
    g = gradient(0, 108)
    kernel.grad, matrix.grad = g.view(4, 3, 3, 3), g.view(4, 27)
    for optimizer in (Adafactor, Came):
        for p in (kernel, matrix):
            made = optimizer([p], lr=0.1)
            made.step()
            assert sum(v.numel() for v in made.state[p].values() if v.shape != (1, 4, 27)) <= 2 * (4 + 27)
        assert torch.equal(kernel.view(4, 27), matrix)


# ---- a toy that each must solve ----------------------------------------------


@pytest.mark.parametrize("name", OURS)
def test_it_solves_a_least_squares_problem(name):
    """Curvatures from 0.3 to 3; from a relative error near 1 to below 2 %."""
    network = Network(MATRICES_ALONE, seed=2)
    g = torch.Generator().manual_seed(3)
    wanted = torch.randn(network.parameters.shape, generator=g)
    curvature = torch.logspace(-0.5, 0.5, len(wanted))[torch.randperm(len(wanted), generator=g)]
    rate = {"prodigy": 1.0, "schedule-free": 0.2}.get(name, 0.05)
    optimizer = RunOptimizer(network, settings(name, weight_decay=0.0, learning_rate=rate))
    steps = 600 if name == "lion" else 300
    for step in range(steps):
        network.gradients.copy_(curvature * (network.parameters - wanted))
        optimizer.step(rate if name == "schedule-free" else rate * (1 - step / steps))
    if optimizer.averages:
        optimizer.copy_average(network.parameters)
    assert (network.parameters - wanted).norm() / wanted.norm() < 0.02


# ---- a stop in the middle ----------------------------------------------------


LIBRARY = [
    "torch.optim.RAdam", "torch.optim.Muon", "pytorch_optimizer.Lamb", "pytorch_optimizer.ScheduleFreeAdamW", "prodigyopt.Prodigy",
    "schedulefree.RAdamScheduleFree",
]
ARGUMENTS = {"prodigyopt.Prodigy": "use_bias_correction=true"}


@pytest.mark.parametrize("case", [*OURS, "adamw + LoRA+", "adamw-8bit-kahan + LoRA+", *LIBRARY])
def test_a_resumed_run_is_the_same_bit_for_bit(case, tmp_path):
    """Six steps, and three, the file, three more."""
    library = case if case in LIBRARY else ""
    config = settings(
        "library" if library else case.split(" ")[0], library=library, optimizer_args=ARGUMENTS.get(case, ""),
        lora_plus_ratio=4.0 if "LoRA+" in case else 1.0, weight_decay=0.0 if "RAdamSchedule" in case else 0.1,
    )
    rate = 1.0 if "rodigy" in case else 0.01
    shapes = MATRICES_ALONE if "Muon" in case else SHAPES

    whole = Network(shapes)
    uncut = RunOptimizer(whole, config)
    take(whole, uncut, range(6), rate)

    first = Network(shapes)
    start = RunOptimizer(first, config)
    take(first, start, range(3), rate)
    torch.save({"parameters": first.parameters, "optimizer": start.state_dict()}, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)

    second = Network(shapes, seed=9)
    resumed = RunOptimizer(second, config)
    second.parameters.copy_(loaded["parameters"])
    resumed.load_state_dict(loaded["optimizer"])
    take(second, resumed, range(3, 6), rate)
    assert torch.equal(second.parameters, whole.parameters)
    assert not torch.equal(second.parameters, first.parameters)
    if uncut.averages:
        averages = [torch.zeros_like(whole.parameters) for _ in range(2)]
        uncut.copy_average(averages[0])
        resumed.copy_average(averages[1])
        assert torch.equal(*averages) and not torch.equal(averages[0], whole.parameters)


def test_taking_the_average_leaves_the_trained_weights_alone():
    for config in (settings("schedule-free"), settings("library", library="schedulefree.AdamWScheduleFree")):
        network = Network()
        optimizer = RunOptimizer(network, config)
        take(network, optimizer, range(4), 0.01)
        before, state = network.parameters.clone(), copy.deepcopy(optimizer.state_dict())
        average = torch.zeros_like(before)
        optimizer.copy_average(average)
        assert torch.equal(network.parameters, before) and not torch.equal(average, before)
        take(network, optimizer, range(4, 6), 0.01)
        after = network.parameters.clone()
        network.parameters.copy_(before)
        optimizer.load_state_dict(state)
        take(network, optimizer, range(4, 6), 0.01)
        assert torch.equal(network.parameters, after)


@pytest.mark.parametrize("name", OURS)
def test_a_step_never_waits_for_the_device(name, monkeypatch):
    """Reading a number back would stop a GPU once a step, or once a layer."""
    network = Network()
    optimizer = RunOptimizer(network, settings(name))
    average = torch.zeros_like(network.parameters)

    def refuse(*arguments):
        raise AssertionError("a value was read back")

    for reading in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, reading, refuse)
    for step in range(3):
        network.gradients.copy_(gradient(step, network.gradients.numel()))
        optimizer.step(0.01)
    if optimizer.averages:
        optimizer.copy_average(average)


# ---- 8 bits ------------------------------------------------------------------


def test_the_codes_are_those_of_bitsandbytes():
    """dynamic exponent, 7 decades: 1.0 is a code, so is 0, and no value of a decade is coded worse than its share."""
    for signed in (True, False):
        codes = dynamic_codes(signed)
        assert len(codes) == 256 and (codes.diff() > 0).all() and codes[-1] == 1 and 0 in codes
        positive = codes[codes > 0]
        assert positive[0] < 1e-6
        # bitsandbytes.functional.create_dynamic_map: the mean of the first pair of 2^i + 1 (or 2^(i+1) + 1) borders.
        assert positive[0] == pytest.approx((0.55 if signed else 0.325) * 1e-6, rel=1e-5)


@pytest.mark.parametrize("grid", [dynamic_codes(True), dynamic_codes(False).square()], ids=["signed", "squares"])
def test_the_table_finds_the_code_that_a_search_finds(grid):
    form = EightBit(grid)
    g = torch.Generator().manual_seed(0)
    values = torch.cat([
        torch.rand(20_000, generator=g), 10 ** (-16 * torch.rand(20_000, generator=g)), grid, grid.nextafter(torch.tensor(2.0)),
        grid.nextafter(torch.tensor(-2.0)), torch.tensor([0.0, 1.0, 1e-40]),
    ]).clamp(grid[0].item(), 1.0)
    if grid[0] < 0:
        values = torch.cat([values, -values]).clamp(-1.0, 1.0)
    searched = (torch.bucketize(values, grid, right=True) - 1).clamp(0, 254)
    assert torch.equal(form.below(values).long(), searched)


def test_rounding_is_right_on_average():
    form = EightBit(dynamic_codes(True))
    values = torch.randn(256, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(256)
    source = torch.Generator().manual_seed(1)
    for _ in range(400):
        total += form.decode(*form.encode(values, torch.rand(256, generator=source)))
    inside = values > -values.abs().max() * 0.99  # the grid ends just above -1
    torch.testing.assert_close((total / 400)[inside], values[inside], rtol=0.02, atol=2e-3)


def test_a_second_moment_never_becomes_zero():
    form = EightBit(dynamic_codes(False).square())
    values = torch.full((256,), 1e-18)
    values[0] = 1.0
    for _ in range(20):
        assert (form.decode(*form.encode(values, torch.rand(256))) > 0).all()


def test_eight_bits_stay_near_adamw():
    count = 1000  # not a whole number of blocks
    a, b = (torch.zeros(count) for _ in range(2))
    plain, small = torch.optim.AdamW([a], lr=1e-2, weight_decay=0.1), AdamW8bitKahan([b], lr=1e-2, weight_decay=0.1)
    wanted = torch.randn(count, generator=torch.Generator().manual_seed(0))
    for step in range(200):
        noise = gradient(step, count)
        for p in (a, b):
            p.grad = (p - wanted) + noise
        plain.step()
        small.step()
    assert (a - b).norm() / a.norm() < 0.05
    held = sum(t.numel() * t.element_size() for t in small.state[b].values())
    assert held / count < 4.2


def test_the_second_moment_follows_a_change_smaller_than_its_spacing():
    """The gradient halves, and its square should sink by 0.5 % a step: rounding to the nearest code would hold it up."""
    p = torch.zeros(256)
    optimizer = AdamW8bitKahan([p], lr=1e-3, betas=(0.9, 0.995))
    sizes = torch.linspace(0.2, 1.0, 256)
    v = torch.zeros(256)
    for step in range(500):
        p.grad = sizes * (1.0 if step < 200 else 0.5)
        p.grad[-1] = 1.0  # the block's scale stays
        v = 0.995 * v + 0.005 * p.grad.square()
        optimizer.step()
    state = optimizer.state[p]
    square = optimizer.squares.decode(state["square"], state["square_scale"])
    assert (square[:-1].sum() / v[:-1].sum() - 1).abs() < 0.03


def test_compensation_keeps_what_bfloat16_would_lose():
    """300 steps of a thousandth of what bfloat16 can add to 1."""
    p = torch.ones(256, dtype=torch.bfloat16)
    optimizer = AdamW8bitKahan([p], lr=1e-5, eps=1e-12)
    for _ in range(300):
        p.grad = torch.full_like(p, -1.0)
        optimizer.step()
    total = p.float() + optimizer.state[p]["compensation"].float()
    assert total.mean().item() == pytest.approx(1.003, abs=2e-4)
    plain = torch.ones(256, dtype=torch.bfloat16)
    for _ in range(300):
        plain += 1e-5
    assert (plain == 1).all()


def test_weight_decay_acts_on_the_weights():
    """No gradient: what is left is (1 - lr wd)^n of the weight, though each step is below bfloat16's spacing."""
    p = torch.full((256,), 3.0, dtype=torch.bfloat16)
    optimizer = AdamW8bitKahan([p], lr=1e-3, weight_decay=0.5)
    for _ in range(400):
        p.grad = torch.zeros_like(p)
        optimizer.step()
    left = p.float() + optimizer.state[p]["compensation"].float()
    assert left.mean().item() == pytest.approx(3.0 * (1 - 5e-4) ** 400, rel=2e-3)


# ---- groups ------------------------------------------------------------------


def test_lora_plus_gives_b_its_own_rate():
    network, plain = Network(MATRICES_ALONE), Network(MATRICES_ALONE)
    starts = [tensor.clone() for tensor in network.tensors]
    for each, ratio in ((network, 8.0), (plain, 1.0)):
        optimizer = RunOptimizer(each, settings("adamw", lora_plus_ratio=ratio, weight_decay=0.0))
        each.gradients.copy_(gradient(0, each.gradients.numel()))
        optimizer.step(1e-3)
    for start, own, other, ratio in zip(starts, network.tensors, plain.tensors, (1.0, 8.0)):
        torch.testing.assert_close(own - start, (other - start) * ratio, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "adamw-8bit-kahan", "came", "schedule-free"])
def test_magnitudes_are_not_decayed_unless_asked(name):
    for asked in (False, True):
        network = Network()
        start = [tensor.clone() for tensor in network.tensors]
        optimizer = RunOptimizer(network, settings(name, decay_magnitudes=asked))
        network.gradients.zero_()
        optimizer.step(0.01)
        for before, after in zip(start, network.tensors):
            assert torch.equal(before, after) == (after.ndim == 1 and not asked)


def test_prodigy_takes_a_groups_own_share_of_the_rate():
    """A text encoder at half the rate: the first step is half as long there, and d is one for both."""
    tensors = [torch.ones(4), torch.ones(4)]
    for p in tensors:
        p.grad = torch.full_like(p, 0.5)
    optimizer = Prodigy([{"params": [tensors[0]], "lr": 1.0}, {"params": [tensors[1]], "lr": 0.5}], d0=0.01)
    optimizer.step()
    torch.testing.assert_close(1 - tensors[1], 0.5 * (1 - tensors[0]), rtol=1e-4, atol=1e-7)
    assert optimizer.scale is not None and len([s for s in optimizer.state.values() if "d" in s]) == 1


def test_one_kind_of_weight_is_one_tensor():
    assert [len(g["params"]) for g in RunOptimizer(Network(MATRICES_ALONE), settings("adamw")).inner.param_groups] == [1]


# ---- by name, and what is refused --------------------------------------------


def test_arguments_are_read_as_what_they_are():
    assert parse("betas=0.9,0.99 d0=1e-6 slice_p=11 amsgrad=True growth_rate=inf beta3=none mode=fast one=(2,)") == {
        "betas": (0.9, 0.99), "d0": 1e-6, "slice_p": 11, "amsgrad": True, "growth_rate": math.inf, "beta3": None, "mode": "fast", "one": (2,),
    }


def test_arguments_reach_the_optimiser():
    made = RunOptimizer(Network(), settings("lion", optimizer_args="betas=0.5,0.6")).inner
    assert made.param_groups[0]["betas"] == (0.5, 0.6)
    made = RunOptimizer(Network(), settings("library", library="torch.optim.RAdam", optimizer_args="decoupled_weight_decay=true")).inner
    assert made.param_groups[0]["decoupled_weight_decay"] is True


@pytest.mark.parametrize("changes, said", [
    ({"name": "adamw", "optimizer_args": "amsgrd=true"}, "no setting 'amsgrd'.*Did you mean 'amsgrad'"),
    ({"name": "lion", "optimizer_args": "betas"}, "not key=value"),
    ({"name": "lion", "optimizer_args": "lr=1"}, "learning_rate in Optimizer Settings"),
    ({"name": "adamw", "optimizer_args": "betas=0.9,0.99"}, "beta1 and beta2"),
    ({"name": "library", "library": "torch.optim.RAdm"}, "Did you mean 'RAdam'"),
    ({"name": "library", "library": "pytorch_optimiser.Lamb"}, "Did you mean 'pytorch_optimizer'"),
    ({"name": "library", "library": "torch.optim.LBFGS"}, "several times a step"),
    ({"name": "library", "library": "torch.optim.Rprop"}, "no weight decay"),
    ({"name": "library", "library": "torch.optim.RAdam", "optimizer_args": "betas=5,5"}, "refuses its settings"),
    ({"name": "adamw-8bit"}, "adamw-8bit-kahan"),
])
def test_what_can_not_be_built_says_why(changes, said):
    with pytest.raises(PistachioError, match=said):
        RunOptimizer(Network(), settings(changes.pop("name"), **changes))


@pytest.mark.parametrize("changes, said", [
    ({"name": "adamm"}, "Did you mean 'adamw'"),
    ({"name": "prodigy"}, "Set learning_rate to 1"),
    ({"name": "prodigy", "learning_rate": 1.0, "lora_plus_ratio": 4.0}, "lora_plus_ratio"),
    ({"name": "schedule-free"}, "Choose schedule 'constant'"),
    ({"name": "schedule-free", "schedule": "constant", "ema_decay": 0.9}, "Set ema_decay to 0"),
    ({"name": "library", "library": "prodigyopt.Prodigy"}, "Set learning_rate to 1"),
    ({"name": "library", "library": "schedulefree.AdamWScheduleFree"}, "Choose schedule 'constant'"),
    ({"name": "lion", "beta2": 0.9}, "optimizer_args"),
    ({"name": "library"}, "give its class"),
    ({"name": "adamw", "library": "torch.optim.RAdam"}, "leave library empty"),
])
def test_settings_that_do_not_go_together_are_refused(changes, said):
    with pytest.raises(PistachioError, match=said):
        OptimizerConfig(**changes)


def test_a_missing_package_is_named(monkeypatch):
    def missing():
        raise ImportError("No module named 'prodigyopt'")

    monkeypatch.setitem(PACKAGES, "prodigyopt", (missing, "prodigyopt"))
    with pytest.raises(PistachioError, match="pip install prodigyopt"):
        optimizer_class("prodigyopt.Prodigy")


def test_lora_plus_needs_b_matrices():
    with pytest.raises(PistachioError, match="no B matrices"):
        RunOptimizer(Network({"one": {"w1": (4, 6)}}), settings("adamw", lora_plus_ratio=2.0))


def test_a_misspelt_setting_says_what_was_meant():
    with pytest.raises(PistachioError, match="'wieght_decay'. Did you mean 'weight_decay'"):
        from_dict(OptimizerConfig, {"wieght_decay": 0.1})
