"""Streamed blocks without a host: the same numbers to the bit, whatever is run in whatever order, and no slot read early or overwritten in use."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pistachio.training.adapted import AdaptedNetwork
from pistachio.training.config import AdapterConfig
from pistachio.training.errors import PistachioError
from pistachio.training.streaming.blocks import block_bytes, copied_bytes, host_bytes, resident_bytes, streamed_indices
from pistachio.training.streaming.context import streamed
from pistachio.training.streaming.device import stream_device
from pistachio.training.streaming.ring import Ring
from pistachio.training.streaming.simulated import OrderError, SimulatedDevice
from pistachio.training.streaming.tensors import leaves, replaced
from support.flow import Block, Flow
from support.stream_watch import Watch


class Deep(Flow):
    """With as many blocks as wanted, and a parameter that autograd keeps for the backward: a norm's scale."""

    def __init__(self, num_blocks):
        super().__init__()
        self.network.blocks = torch.nn.ModuleList(Block(8) for _ in range(num_blocks)).requires_grad_(False)
        for block in self.network.blocks:
            block.norm.weight.uniform_(0.5, 1.5)
            block.register_buffer("steps", torch.arange(3))

    @contextmanager
    def generating(self):
        """As a host samples: it moves its weights to other memory, and runs the network."""
        for tensor in (*self.network.parameters(), *self.network.buffers()):
            tensor.data = tensor.data.clone()
        yield


X, NOISE = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
SIGMA = torch.tensor([0.3, 0.7])


class Stop(BaseException):
    """As the host's interrupt is."""


def run(model, network, script, computing=None):
    """The numbers of a script of passes."""
    found = []
    for name, place in script:
        network.gradients.zero_()
        try:
            with computing() if computing and name != "sample" else nullcontext():
                if name == "sample":
                    with model.generating(), torch.inference_mode():
                        found.append(model.network(torch.ones(1, 5, 4, 4)))
                elif name == "measure":
                    with torch.no_grad():
                        found.append(model.predict(X, SIGMA, [1.0, 0.0]))
                else:
                    for _ in range(place if name == "train" else 1):
                        if name == "prior":
                            with torch.no_grad(), network.disabled():
                                found.append(model.predict(X, SIGMA, [0.0, 0.0]))
                        with stopping(model, network, name, place):
                            loss(model).backward()
        except Stop:
            found.append(torch.tensor(float(place)))
        found.append(network.gradients.clone())
    return found


def loss(model):
    return (model.predict(model.add_noise(X, NOISE, SIGMA), SIGMA, [1.0, -1.0]) - X).square().mean()


@contextmanager
def stopping(model, network, name, place):
    """An interrupt as the block numbered `place` is reached, forward or backward."""
    handles = []
    block = model.network.blocks[place % len(model.network.blocks)]

    def stop(*_):
        raise Stop

    if name == "stop forward":
        handles.append(block.down.register_forward_pre_hook(stop))
    elif name == "stop backward":
        handles.append(block.register_forward_hook(lambda module, args, out: out.register_hook(stop) and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


passes = st.tuples(st.sampled_from(["train", "train", "measure", "prior", "stop forward", "stop backward", "sample"]), st.integers(1, 3))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    num_blocks=st.integers(1, 6), count=st.integers(1, 6), slots=st.sampled_from([2, 3]), keep=st.sampled_from(["everything", "blocks"]),
    script=st.lists(passes, min_size=1, max_size=6),
)
def test_streamed_numbers_are_the_resident_ones_and_no_slot_is_read_or_written_too_early(num_blocks, count, slots, keep, script):
    count = min(count, num_blocks)
    config = AdapterConfig(rank=2, alpha=2, targets="all-linear+conv")

    def away(network):
        with torch.no_grad():
            network.parameters.copy_(0.3 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3)))

    plain, model, device = Deep(num_blocks), Deep(num_blocks), SimulatedDevice()
    with AdaptedNetwork(plain, config, seed=0, keep=keep) as network:
        away(network)
        expected = run(plain, network, script)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in (*model.network.named_parameters(), *model.network.named_buffers())}
    with streamed(model, count, slots=slots, device=device) as ring, AdaptedNetwork(model, config, seed=0, keep=keep) as network:
        away(network)
        watches = []

        def computing():
            watches.append(Watch(ring))
            return watches[-1]

        found = run(model, network, script, computing)
        assert sum(watch.reads for watch in watches) > 0 or not watches
    assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))
    after = {name: (id(tensor), tensor) for name, tensor in (*model.network.named_parameters(), *model.network.named_buffers())}
    assert all(after[name][0] == before[name][0] and torch.equal(after[name][1], before[name][1]) for name in before)
    assert "forward" not in vars(model.network.blocks[0]) and "weight_for_backward" not in vars(model)


# ---- what the checks are worth -------------------------------------------


def trained(num_blocks=4, slots=2, keep="everything", count=None, passes=2):
    model = Deep(num_blocks)
    with streamed(model, num_blocks if count is None else count, slots=slots, device=SimulatedDevice()) as ring:
        with AdaptedNetwork(model, AdapterConfig(rank=2, alpha=2, targets="all-linear+conv"), seed=0, keep=keep) as network:
            with torch.no_grad():
                network.parameters.add_(0.3)
            seen = []
            for _ in range(passes):
                before = (ring.counts.late, ring.counts.copied_bytes)
                with Watch(ring):
                    loss(model).backward()
                seen.append((ring.counts.late - before[0], ring.counts.copied_bytes - before[1]))
            return seen


def test_a_slot_that_is_read_before_its_copy_is_done_is_seen(monkeypatch):
    def show_at_once(self, slot, index):
        if not self.images[index].is_attached:
            self.images[index].attach()

    monkeypatch.setattr(Ring, "_show", show_at_once)
    with pytest.raises(OrderError, match="before its copy"):
        trained()


def test_a_slot_that_is_written_in_use_is_seen(monkeypatch):
    computed = SimulatedDevice.computed
    monkeypatch.setattr(SimulatedDevice, "computed", lambda self: computed(self) - 1)  # of the block before
    with pytest.raises(OrderError, match="overwritten"):
        trained()


def test_a_backward_that_does_not_call_its_block_is_seen(monkeypatch):
    monkeypatch.setattr(Ring, "use", lambda self, index, use=Ring.use: None if torch._C._current_graph_task_id() != -1 else use(self, index))
    with pytest.raises(OrderError):
        trained()


# ---- copies --------------------------------------------------------------


@pytest.mark.parametrize("keep", ["everything", "blocks"])
@pytest.mark.parametrize("num_blocks, slots", [(5, 2), (5, 3), (4, 3), (2, 2), (1, 2)])
def test_each_step_copies_the_least_and_ahead_of_its_use(num_blocks, slots, keep):
    """One copy serves a block's recompute and its gradients, and the turning points need none."""
    first, *later = trained(num_blocks, slots, keep, passes=3)
    sizes = block_bytes(Deep(num_blocks))
    assert first[0] == 1  # the very first block: nobody knew
    assert later == [(0, copied_bytes(sizes, num_blocks, slots))] * 2


def test_sizes_for_a_planner():
    assert [streamed_indices(8, count) for count in (0, 1, 4, 8)] == [(), (4,), (1, 3, 5, 7), tuple(range(8))]
    sizes = (10, 20, 30, 40)
    assert resident_bytes(sizes, 0, 2) == 100
    assert resident_bytes(sizes, 2, 2) == 10 + 30 + 2 * 40  # blocks 1 and 3 pass through slots of 40
    assert resident_bytes(sizes, 4, 3) == 3 * 40 and resident_bytes(sizes, 1, 3) == 10 + 20 + 40 + 30
    assert host_bytes(sizes, 2) == 60 and copied_bytes(sizes, 4, 2) == (30 + 40) + (10 + 20)
    with pytest.raises(PistachioError, match="5 blocks can't be streamed: the model has 4"):
        streamed_indices(4, 5)
    model = Deep(3)
    with streamed(model, 2, slots=2, device=SimulatedDevice()) as ring:
        assert sum(slot.memory.numel() for slot in ring.slots) + block_bytes(Deep(3))[0] == resident_bytes(block_bytes(Deep(3)), 2, 2)


def test_nothing_is_changed_where_nothing_is_streamed():
    model = Deep(2)
    with streamed(model, 0) as ring:
        assert ring is None and "forward" not in vars(model.network.blocks[0])


def test_other_devices_are_refused():
    with pytest.raises(PistachioError, match="not to 'mps'"):
        stream_device(torch.device("mps"))


# ---- weights that are several tensors ------------------------------------


class Coded(torch.Tensor):
    """As GGUF's weights are: a tensor with attributes."""


@dataclass(frozen=True, slots=True)
class Packed:
    codes: torch.Tensor
    scale: torch.Tensor
    bits: int


class State:
    """As bitsandbytes' states are: a record that can be moved, nested."""

    def __init__(self, absmax, inner=None):
        self.absmax, self.inner = absmax, inner

    def to(self, device):
        raise AssertionError("streaming moves tensors by itself")


def test_every_tensor_of_a_value_is_found_and_replaced():
    coded = torch.arange(4.0).as_subclass(Coded)
    coded.scale, coded.kind = torch.ones(2), "q4"
    state = State(torch.full((2,), 2.0), State(torch.full((1,), 3.0)))
    values = [torch.zeros(3), torch.nn.Parameter(torch.ones(2)), coded, Packed(torch.ones(2, dtype=torch.int8), torch.ones(1), 8), state, (state, "text"), None]
    assert [tuple(leaf.shape) for leaf in leaves(values)] == [(3,), (2,), (4,), (2,), (2,), (1,), (2,), (1,)]
    made = replaced(values, lambda leaf: leaf + 1, {})
    assert type(made[2]) is Coded and made[2].tolist() == [1, 2, 3, 4] and made[2].scale.tolist() == [2, 2] and made[2].kind == "q4"
    assert made[3].codes.tolist() == [2, 2] and made[3].bits == 8
    assert made[4].inner.absmax.tolist() == [4] and made[5][0] is made[4]  # one state, wherever it stands
    assert state.absmax.tolist() == [2, 2] and coded.scale.tolist() == [1, 1]
    same = replaced(values, lambda leaf: leaf, {})
    assert all(a is b for a, b in zip(same, values))


def test_a_4_bit_layer_of_bitsandbytes_streams():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32) for _ in range(3)).requires_grad_(False)
    blocks.to("cpu")  # packs the weights
    x = torch.randn(2, 64)
    expected = [block(x) for block in blocks]
    ring = Ring(blocks, SimulatedDevice(), slots=2)
    packed = [block.weight for block in blocks]
    for index, block in enumerate(blocks):
        ring.use(index)
        assert block.weight is not packed[index] and block.weight.data_ptr() == ring.slots[index % 2].memory.data_ptr()
        assert torch.equal(block(x), expected[index])
    ring.close()
    assert all(block.weight is weight for block, weight in zip(blocks, packed))


# ---- CUDA's own order, on a recorder of streams and events ----------------


class Recorder:
    """What CUDA was asked for; the copy itself is made at once."""

    def __init__(self):
        self.calls, self.current = [], "computing"

    class _Event:
        def __init__(self, recorder, timing):
            self.recorder, self.timing = recorder, timing

        def record(self, stream):
            self.recorder.calls.append(("record", stream.name, self))

        def query(self):
            return True

        def elapsed_time(self, other):
            assert self.timing and other.timing
            return 250.0

    class _Stream:
        def __init__(self, recorder, name):
            self.recorder, self.name = recorder, name

        def wait_event(self, event):
            self.recorder.calls.append(("wait", self.name, event))

    def install(self, monkeypatch, register_code=0):
        cuda = torch.cuda
        computing, copies = self._Stream(self, "computing"), self._Stream(self, "copies")
        monkeypatch.setattr(cuda, "Stream", lambda device: copies)
        monkeypatch.setattr(cuda, "Event", lambda enable_timing=False: self._Event(self, enable_timing))
        monkeypatch.setattr(cuda, "current_stream", lambda device: computing)
        monkeypatch.setattr(cuda, "synchronize", lambda device: self.calls.append(("synchronize",)))

        @contextmanager
        def stream(used):
            self.current = used.name
            yield
            self.current = "computing"

        monkeypatch.setattr(cuda, "stream", stream)
        recorder = self

        class Runtime:
            @staticmethod
            def cudaHostRegister(address, size_bytes, flags):
                recorder.calls.append(("pin", size_bytes))
                return register_code

            @staticmethod
            def cudaHostUnregister(address):
                recorder.calls.append(("unpin",))

        monkeypatch.setattr(cuda, "cudart", lambda: Runtime)


def test_cuda_copies_wait_for_the_computing_and_the_computing_for_the_copies(monkeypatch):
    from pistachio.training.streaming.device import CudaDevice

    recorder = Recorder()
    recorder.install(monkeypatch)
    device = CudaDevice(torch.device("cpu"))
    slot, source = device.slot(8), device.pin(4)
    source.fill_(7)
    computed = device.computed()
    copied = device.copy(slot, source, after=computed)
    device.wait(copied)
    assert slot[:4].tolist() == [7] * 4 and device.resident(source) is source
    kinds = [call[:2] for call in recorder.calls[1:]]
    assert kinds == [("record", "computing"), ("wait", "copies"), ("record", "copies"), ("record", "computing"), ("wait", "computing"), ("record", "computing")]
    assert recorder.calls[2][2] is computed and recorder.calls[5][2] is copied
    assert device.stall_seconds() == 0.25 == device.stall_seconds()
    device.close()
    assert recorder.calls[-2:] == [("synchronize",), ("unpin",)]


def test_memory_that_cannot_be_pinned_is_told(monkeypatch):
    from pistachio.training.streaming.device import CudaDevice

    recorder = Recorder()
    recorder.install(monkeypatch, register_code=2)

    def synchronize(device):
        recorder.calls.append(("synchronize",))
        raise RuntimeError("CUDA error: out of memory")  # what the refused call left behind

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    device = CudaDevice(torch.device("cpu"))
    device.pin(4), device.pin(4)
    assert len(device.notes) == 1 and "could not be pinned (CUDA error 2)" in device.notes[0]
    # The error is taken at once: the next kernel would be blamed for it.
    assert recorder.calls == [("pin", 4), ("synchronize",)] * 2


def test_a_whole_run_is_the_resident_one_and_its_report_says_what_was_copied(tmp_path):
    from pistachio.training.config import EvaluationConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
    from pistachio.training.loop import RunInfo, train
    from pistachio.training.run import RunFolder
    from support.flow import eval_items, train_items

    config = TrainConfig(
        num_steps=6, batch_size=2, seed=1, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear"), optimizer=OptimizerConfig(learning_rate=1e-2),
        objective=ObjectiveConfig(timestep_distribution="uniform", prior_fraction=0.5), evaluation=EvaluationConfig(num_evaluations=2, timesteps_per_image=2),
    )

    def run(name, model, ring=None):
        train(model, train_items(), eval_items(), config, RunFolder(tmp_path / name), RunInfo(name=name), ring=ring)
        return RunFolder(tmp_path / name)

    resident, model = run("resident", Deep(4)), Deep(4)
    with streamed(model, 3, slots=2, device=SimulatedDevice()) as ring:
        ring.device.notes.append("Something of the device.")
        found = run("streamed", model, ring)
    assert torch.equal(found.load_state()["average"], resident.load_state()["average"])
    notes = found.report()["notes"]
    assert "Something of the device." in notes
    assert any("3 blocks were streamed through 2 slots on a simulated device" in note and "Computing waited" in note for note in notes)
