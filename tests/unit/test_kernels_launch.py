"""What reaches the driver when a kernel is started: a driver of C callbacks stands where a card's would, and reads its arguments."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
import torch
from pistachio.training.kernels import launch
from pistachio.training.kernels.door import Door
from pistachio.training.kernels.launch import CudaLauncher, DriverError
from pistachio.training.kernels.nvrtc import CompileFailed
from pistachio.training.kernels.programs import program
from pistachio.training.kernels.table import OPERATIONS

from support.compiler import needs_compiler

POINTER, INT = ctypes.c_void_p, ctypes.c_int
LAUNCH = ctypes.CFUNCTYPE(INT, POINTER, *[ctypes.c_uint] * 7, POINTER, ctypes.POINTER(POINTER), POINTER)
STREAM, MODULE, FUNCTION, CONTEXT = 0x51, 0x62, 0x73, 0x84
TO_CURRENT = [("cuDeviceGet", 0), ("cuDevicePrimaryCtxRetain", 0), ("cuCtxSetCurrent", CONTEXT)]


pytestmark = needs_compiler


class Driver:
    """The calls, through ctypes as the real library's. `fails`: a call's name -> the statuses that it gives, one after the other."""

    def __init__(self, **fails):
        self.launches, self.images, self.names, self.asked, self.fails = [], [], [], [], fails
        self.cuLaunchKernel = LAUNCH(self._launch)
        self.cuModuleLoadData = ctypes.CFUNCTYPE(INT, ctypes.POINTER(POINTER), POINTER)(self._load)
        self.cuModuleGetFunction = ctypes.CFUNCTYPE(INT, ctypes.POINTER(POINTER), POINTER, ctypes.c_char_p)(self._get)
        self.cuFuncSetAttribute = ctypes.CFUNCTYPE(INT, POINTER, INT, INT)(lambda function, which, value: self._status("cuFuncSetAttribute"))
        self.cuDeviceGet = ctypes.CFUNCTYPE(INT, ctypes.POINTER(INT), INT)(self._card)
        self.cuDevicePrimaryCtxRetain = ctypes.CFUNCTYPE(INT, ctypes.POINTER(POINTER), INT)(self._retain)
        self.cuCtxSetCurrent = ctypes.CFUNCTYPE(INT, POINTER)(lambda context: self._status("cuCtxSetCurrent", context))
        self.cuGetErrorString = ctypes.CFUNCTYPE(INT, INT, ctypes.POINTER(ctypes.c_char_p))(self._words)

    def _status(self, call, *told):
        self.asked.append((call, *told))
        left = self.fails.get(call, [])
        return left.pop(0) if left else 0

    def _launch(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        # y of the transposition: x, y, rows, cols
        x, y = (ctypes.cast(arguments[i], ctypes.POINTER(POINTER))[0] for i in (0, 1))
        rows, cols = (ctypes.cast(arguments[i], ctypes.POINTER(ctypes.c_longlong))[0] for i in (2, 3))
        self.launches.append(((function, stream, shared, extra), (gx, gy, gz), (bx, by, bz), (x, y, rows, cols)))
        return self._status("cuLaunchKernel")

    def _load(self, module, image):
        self.images.append(ctypes.string_at(image, 4))
        module[0] = MODULE
        return self._status("cuModuleLoadData")

    def _get(self, function, module, name):
        assert module == MODULE
        self.names.append(name)
        function[0] = FUNCTION
        return self._status("cuModuleGetFunction")

    def _card(self, card, index):
        card[0] = index
        return self._status("cuDeviceGet", index)

    def _retain(self, context, card):
        context[0] = CONTEXT
        return self._status("cuDevicePrimaryCtxRetain", card)

    def _words(self, status, text):
        text[0] = b"words for %d" % status
        return 0


@pytest.fixture
def card(monkeypatch):
    """One Hopper, as far as torch is asked; `card(driver)` puts the driver in place."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM))

    def place(driver):
        monkeypatch.setattr(launch, "_driver", lambda: driver)
        return driver

    return place


def test_the_driver_gets_the_arguments_and_each_module_once(card, tmp_path):
    driver, launcher = card(Driver()), CudaLauncher(tmp_path)
    x = torch.zeros(70, 130, dtype=torch.int8)
    results = [OPERATIONS["transpose_bytes"].cuda(launcher, x) for _ in range(2)]
    assert driver.images == [b"\x7fELF"] and driver.names == [b"transpose_bytes"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".kernel"]
    for (handles, grid, block, arguments), y in zip(driver.launches, results, strict=True):
        assert handles == (FUNCTION, STREAM, 0, None) and grid == (3, 2, 1) and block == (256, 1, 1)
        assert arguments == (x.data_ptr(), y.data_ptr(), 70, 130)


@pytest.mark.parametrize("call", ["cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute"])
def test_code_that_the_driver_refuses_is_told_and_torch_goes_on(card, tmp_path, call):
    driver = card(Driver(**{call: [218]}))
    door = Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path))
    if call == "cuFuncSetAttribute":  # which is asked of kernels with much shared memory alone
        with pytest.raises(CompileFailed, match="cuFuncSetAttribute: words for 218"):
            door.launcher.launch(program("transpose", THREADS=256, VECTOR=0), "transpose_bytes", (1, 1), 256, (), torch.device("cpu"), shared_bytes=launch.UNASKED_SHARED_BYTES + 1)
        assert driver.launches == []
        return
    x = torch.arange(6, dtype=torch.int8).view(2, 3)
    assert torch.equal(door.call("transpose_bytes", x), x.t())
    assert len(door.notes) == 1 and f"driver is older than the compiler that torch ships: {call}: words for 218 (218)" in door.notes[0]


def test_any_other_refusal_is_in_the_drivers_own_words(card, tmp_path):
    card(Driver(cuModuleLoadData=[999]))
    door = Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path))
    door.call("transpose_bytes", torch.zeros(2, 3, dtype=torch.int8))
    assert door.choices["transpose_bytes"].reason == "cuda: cuModuleLoadData: words for 999 (999)"


@pytest.mark.parametrize("statuses, launches", [([2], 1), ([2, 2], 0)])
def test_a_full_card_is_emptied_once_for_the_code(card, tmp_path, monkeypatch, statuses, launches):
    driver, emptied = card(Driver(cuModuleLoadData=list(statuses))), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    door = Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path))
    door.call("transpose_bytes", torch.zeros(2, 3, dtype=torch.int8))
    assert len(emptied) == 1 and len(driver.launches) == launches
    assert door.notes == ([] if launches else ["Kernel transpose_bytes can't be used here, torch runs it: cuModuleLoadData: words for 2 (2)"])


def test_a_thread_without_a_context_is_given_one(card, tmp_path):
    """As a thread of autograd's: its first call to the card may be a kernel's start."""
    driver, launcher = card(Driver(cuLaunchKernel=[0, 201])), CudaLauncher(tmp_path)
    x = torch.zeros(2, 3, dtype=torch.int8)
    OPERATIONS["transpose_bytes"].cuda(launcher, x)
    driver.asked.clear()
    OPERATIONS["transpose_bytes"].cuda(launcher, x)
    assert driver.asked == [("cuLaunchKernel",), *TO_CURRENT, ("cuLaunchKernel",)]
    assert driver.launches[1][3][0] == driver.launches[2][3][0] == x.data_ptr()


@pytest.mark.parametrize("statuses", [[1], [201, 201]])
def test_a_launch_that_fails_is_not_hidden(card, tmp_path, statuses):
    driver = card(Driver(cuLaunchKernel=list(statuses)))
    with pytest.raises(DriverError, match="cuLaunchKernel"):
        Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path)).call("transpose_bytes", torch.zeros(2, 3, dtype=torch.int8))
    assert len(driver.launches) == len(statuses)


def test_a_card_newer_than_the_compiler_gets_the_code_of_its_generation(card, tmp_path, monkeypatch):
    driver = card(Driver())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 7))
    OPERATIONS["transpose_bytes"].cuda(CudaLauncher(tmp_path), torch.zeros(2, 3, dtype=torch.int8))
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["sm_90"] and len(driver.launches) == 1
