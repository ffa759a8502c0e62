"""What blocks keep for their backward: the same gradients at every level, the bytes that each level keeps, RAM, and errors said aloud."""

import functools
import gc
import logging
from contextlib import contextmanager

import pytest
import torch
from pistachio.training import adapted as adapted_module
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.config import AdapterConfig
from pistachio.training.errors import PistachioError
from pistachio.training.memory.counting import LiveStorage
from pistachio.training.saving import KEEPS, Thrift, saved_blocks
from pistachio.training.saving.ram import Copies, Store
from pistachio.training.saving.values import Value
from support.flow import Flow

NOTHING_IS_SMALL = Thrift(block_input_bytes=0, tensor_bytes=0, product_flops_per_byte=1.0)
WIDTH, TOKENS = 16, 12


class OddBlock(torch.nn.Module):
    """What real blocks do and records must follow: branches, writes in place, views, complex numbers, chance, attention."""

    def __init__(self):
        super().__init__()
        self.norm, self.narrow = torch.nn.LayerNorm(WIDTH), torch.nn.Linear(WIDTH, WIDTH // 2)
        self.qkv, self.out = torch.nn.Linear(WIDTH, 3 * WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.up, self.down = torch.nn.Linear(WIDTH, 4 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, gate, *, turn, options=None):
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        turned = torch.view_as_real(torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2)) * turn).flatten(-2).to(q.dtype)
        turned = turned.clone()
        turned[:, : TOKENS // 2] *= 2.0
        heads = [t.view(t.shape[0], -1, 2, WIDTH // 2).transpose(1, 2) for t in (turned, torch.nn.functional.rms_norm(k, (WIDTH,)), v)]
        attended = torch.nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape)
        x += self.out(attended) * gate
        if options["branch"] and x.mean() > -1e9:  # control flow by data
            x = torch.cat([x[:, :3], x[:, 3:] + torch.nn.functional.pad(self.narrow(x[:, 3:]), (0, WIDTH // 2))], dim=1)
        a, b = self.up(x).chunk(2, dim=-1)
        hidden = torch.nn.functional.dropout(torch.nn.functional.silu(a) * b, 0.25)
        x = torch.addcmul(x, self.down(hidden), gate)
        x[:, 0].mul_(0.5)
        return x


class Odd:
    family, key_prefix, device = "odd", "diffusion_model.", torch.device("cpu")

    def __init__(self, dtype=torch.float64, blocks=3):
        torch.manual_seed(0)
        self.network = torch.nn.Module()
        self.network.enter = torch.nn.Linear(4, WIDTH)
        self.network.blocks = torch.nn.ModuleList(OddBlock() for _ in range(blocks))
        self.network.to(dtype).requires_grad_(False)
        self.dtype, self.calls = dtype, []

    def blocks(self):
        return [(f"blocks.{i}", block) for i, block in enumerate(self.network.blocks)]

    def is_linear(self, module):
        return isinstance(module, torch.nn.Linear)

    def is_conv(self, module):
        return False

    @contextmanager
    def weight_for_backward(self, module, like):
        self.calls.append(next(path for path, each in self.network.named_modules() if each is module))
        yield module.weight.to(like.dtype)

    def loss(self):
        torch.manual_seed(5)  # for the blocks' own dropout
        x = torch.randn(2, TOKENS, 4, dtype=self.dtype)
        gate = torch.randn(2, 1, WIDTH, dtype=self.dtype)
        turn = torch.polar(torch.ones(TOKENS, WIDTH // 2), torch.linspace(0, 1, TOKENS * WIDTH // 2).view(TOKENS, -1))
        h = self.network.enter(x)
        for i, block in enumerate(self.network.blocks):
            h = block(h, gate, turn=turn, options={"branch": i != 1})
        return h.square().mean()


@pytest.fixture(autouse=True)
def thrifty(monkeypatch):
    """Every tensor counts, however small; the tests' tensors are."""
    monkeypatch.setattr(adapted_module, "saved_blocks", functools.partial(saved_blocks, thrift=NOTHING_IS_SMALL, worth_copying_bytes=0))


def network(model, **options):
    keep = {name: options.pop(name) for name in ("keep", "keep_in_ram") if name in options}
    made = AdaptedNetwork(model, AdapterConfig(**{"rank": 3, "alpha": 2, "targets": "all-linear", **options}), seed=0, **keep)
    with torch.no_grad():
        made.parameters.add_(0.3 * torch.randn(made.parameters.shape, generator=torch.Generator().manual_seed(1)))
    return made


def gradient(model, made):
    made.gradients.zero_()
    with made, made.training_pass(2, 0):
        model.loss().backward()
    return made.gradients.clone()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def reference():
    """Without any record: what autograd keeps by itself."""
    found = {}

    def of(kind, dropout):
        if (kind, dropout) not in found:
            model = Odd()
            plain = network(model, kind=kind, dropout=dropout)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(adapted_module, "saved_blocks", functools.partial(saved_blocks, thrift=Thrift()))
                found[kind, dropout] = gradient(model, plain)
        return found[kind, dropout]

    return of


@pytest.mark.parametrize("in_ram", [False, True], ids=["device", "ram"])
@pytest.mark.parametrize("kind, dropout", [("lora", 0.0), ("lora", 0.3), ("dora", 0.3), ("lokr", 0.0), ("loha", 0.0)])
@pytest.mark.parametrize("keep", ["everything", "products", "attention"])
def test_gradients_are_those_without_a_record(reference, keep, kind, dropout, in_ram):
    model = Odd()
    assert relative(gradient(model, network(model, kind=kind, dropout=dropout, keep=keep, keep_in_ram=in_ram)), reference(kind, dropout)) < 1e-9


def test_blocks_in_ram_too():
    """Flow draws no random numbers, which "blocks" would draw anew."""
    model = Flow(torch.float64)
    made = {in_ram: network(model, targets="all-linear+conv", keep="blocks", keep_in_ram=in_ram) for in_ram in (False, True)}
    for each in made.values():
        with each:
            x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            model.predict(x, torch.tensor([0.4, 0.6], dtype=torch.float64), [1.0, -1.0]).square().mean().backward()
    assert made[False].gradients.norm() > 0 and torch.equal(made[True].gradients, made[False].gradients)


def _live_values():
    return sum(type(each) is Value for each in gc.get_objects())


def test_no_product_runs_twice_where_everything_is_kept_and_more_do_as_less_is():
    runs = {}
    for keep in KEEPS:
        model = Odd()
        counts = []
        handles = []
        for module in model.network.modules():
            if isinstance(module, torch.nn.Linear):
                original = module.forward
                module.forward = lambda x, original=original: counts.append(1) or original(x)
                handles.append(module)
        gradient(model, network(model, keep=keep))
        runs[keep] = len(counts)
    linears = 1 + 3 * 5 - 1  # one block skips its branch
    assert runs["everything"] == linears
    assert linears < runs["products"] < runs["attention"] <= runs["blocks"] <= 2 * linears


def test_nothing_of_a_record_outlives_its_backward():
    """And none of it waits for the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        before = _live_values()
        for keep in ("everything", "products", "attention"):
            model = Odd()
            made = network(model, keep=keep, keep_in_ram=True)
            gradient(model, made)
        assert _live_values() == before
    finally:
        gc.enable()


def test_a_forward_without_a_backward_lets_go_too():
    before = _live_values()
    model = Odd()
    with network(model, keep="attention"):
        loss = model.loss()
        assert _live_values() > before
        del loss
        assert _live_values() == before


class Double(torch.nn.Module):
    def forward(self, x):
        return x.square()


class Plain:
    family, device = "plain", torch.device("cpu")

    def __init__(self):
        self.block = Double()

    def blocks(self):
        return [("block", self.block)]


@pytest.mark.parametrize("keep", ["everything", "attention"])
def test_memory_that_is_changed_behind_a_blocks_back_is_an_error_not_a_wrong_gradient(keep):
    model = Plain()
    leaf = torch.ones(4, requires_grad=True)
    with saved_blocks(model, keep, thrift=NOTHING_IS_SMALL):
        x = leaf * 2
        y = model.block(x)
        x.detach().add_(1)
        with pytest.raises(PistachioError, match="changed in place"):
            y.sum().backward()


class Watched(Copies):
    def __init__(self):
        self.log, self.made = [], 0

    def out(self, source, target):
        self.log.append("out")
        return super().out(source, target)

    def back(self, source, after, device):
        self.log.append("back")
        return super().back(source, after, device)

    def wait(self, done, tensor):
        self.log.append("read")

    def buffer(self, size_bytes):
        self.made += 1
        return super().buffer(size_bytes)


def test_ram_is_filled_block_by_block_emptied_ahead_and_used_again(monkeypatch):
    watched = Watched()
    monkeypatch.setattr("pistachio.training.saving.ram.copies_for", lambda device: watched)
    model = Odd()
    made = network(model, keep="attention", keep_in_ram=True)
    with made:
        for step in range(3):
            watched.log.clear()
            loss = model.loss()
            outs = len(watched.log)
            assert watched.log == ["out"] * outs and outs > 3
            loss.backward()
            after = watched.log[outs:]
            assert after.count("back") <= outs  # each at most once
            # The backward's first read comes when that block's memory and the block's before it have set out.
            first = after.index("read")
            assert after[:first].count("back") > 1
            buffers = watched.made if step == 0 else buffers
            del loss
    assert watched.made == buffers  # later steps pin nothing anew


def test_a_models_shadow_keeps_nothing_on_its_device_either():
    """On tensors without memory, by which a run is planned."""
    held = {}
    for in_ram in (False, True):
        model = Plain()
        model.device = torch.device("meta")
        leaf = torch.empty(1024, device="meta", requires_grad=True)
        with LiveStorage(model.device) as live, saved_blocks(model, "everything", in_ram=in_ram, thrift=NOTHING_IS_SMALL, worth_copying_bytes=0):
            y = model.block(leaf * 2)
            held[in_ram] = live.live_bytes
            y.sum().backward()
        assert leaf.grad.shape == leaf.shape
    assert held == {False: 2 * 4096, True: 4096}  # the block's input is away


def test_what_several_blocks_read_is_copied_once():
    store = Store(torch.device("cpu"), worth_copying_bytes=0)
    shared = torch.randn(8)
    first = store.parcel(shared)
    assert store.parcel(shared.view(2, 4)) is first
    shared.add_(1)  # other numbers now
    assert store.parcel(shared) is not first


def test_a_model_without_known_blocks_keeps_everything_and_says_so(caplog):
    model = Odd()
    model.blocks = lambda: []
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        made = network(model, keep="attention")
    assert made.keep == "everything"
    sentence = "odd has no known blocks, so everything is kept on the device for the backward, and not 'attention' as planned."
    assert sentence in made.notes and sentence in caplog.text
    assert not [note for note in network(model, keep="everything").notes if "blocks" in note]
    with pytest.raises(PistachioError, match="can't keep 'some'. Choose one of blocks, attention, products, everything"):
        network(model, keep="some")


def test_small_blocks_are_not_recorded(monkeypatch):
    """A record of a small block would cost more than it saves: below the size a default run is what it was."""
    monkeypatch.setattr(adapted_module, "saved_blocks", saved_blocks)
    monkeypatch.setattr("pistachio.training.saving.blocks.Tape", None)  # would fail
    model = Odd()
    assert gradient(model, network(model, keep="everything")).norm() > 0


@pytest.mark.parametrize("keep", KEEPS)
def test_no_gradient_is_computed_below_the_first_adapter_or_for_what_none_needs(keep):
    """`weight_for_backward` is asked once for each product of the backward with a frozen weight."""
    model = Odd()
    made = network(model, keep=keep, include=r"blocks\.1\.(qkv|up)|blocks\.2\.out")
    gradient(model, made)
    assert sorted(made.adapters) == ["blocks.1.qkv", "blocks.1.up", "blocks.2.out"]
    # Not below blocks.1.qkv, nor through that layer itself: no adapter is before it.
    needed = ["blocks.1.out", "blocks.1.up", "blocks.1.down", "blocks.2.qkv", "blocks.2.out", "blocks.2.narrow", "blocks.2.up", "blocks.2.down"]
    assert sorted(model.calls) == sorted(needed)
