"""What reaches the driver when a kernel is started: a driver of C callbacks stands where a card's would, and reads its arguments."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
import torch
from pistachio.training.kernels import launch
from pistachio.training.kernels.door import Door
from pistachio.training.kernels.launch import CudaLauncher, DriverError
from pistachio.training.kernels.table import OPERATIONS

from support.compiler import needs_compiler

POINTER, INT = ctypes.c_void_p, ctypes.c_int
LAUNCH = ctypes.CFUNCTYPE(INT, POINTER, *[ctypes.c_uint] * 7, POINTER, ctypes.POINTER(POINTER), POINTER)
STREAM, MODULE, FUNCTION = 0x51, 0x62, 0x73


pytestmark = needs_compiler


class Driver:
    """The four calls, through ctypes as the real library's."""

    def __init__(self, *, loads=0, starts=0):
        self.launches, self.images, self.names, self.loads, self.starts = [], [], [], loads, starts
        self.cuLaunchKernel = LAUNCH(self._launch)
        self.cuModuleLoadData = ctypes.CFUNCTYPE(INT, ctypes.POINTER(POINTER), POINTER)(self._load)
        self.cuModuleGetFunction = ctypes.CFUNCTYPE(INT, ctypes.POINTER(POINTER), POINTER, ctypes.c_char_p)(self._get)
        self.cuGetErrorString = ctypes.CFUNCTYPE(INT, INT, ctypes.POINTER(ctypes.c_char_p))(self._words)

    def _launch(self, function, gx, gy, gz, bx, by, bz, shared, stream, arguments, extra):
        # y of the transposition: x, y, rows, cols
        x, y = (ctypes.cast(arguments[i], ctypes.POINTER(POINTER))[0] for i in (0, 1))
        rows, cols = (ctypes.cast(arguments[i], ctypes.POINTER(ctypes.c_longlong))[0] for i in (2, 3))
        self.launches.append(((function, stream, shared, extra), (gx, gy, gz), (bx, by, bz), (x, y, rows, cols)))
        return self.starts

    def _load(self, module, image):
        self.images.append(ctypes.string_at(image, 4))
        module[0] = MODULE
        return self.loads

    def _get(self, function, module, name):
        assert module == MODULE
        self.names.append(name)
        function[0] = FUNCTION
        return 0

    def _words(self, status, text):
        text[0] = b"a device kernel image is invalid"
        return 0


@pytest.fixture
def card(monkeypatch):
    """One Hopper, as far as torch is asked; `card(driver)` puts the driver in place."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM, synchronize=lambda: None))

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


def test_an_old_driver_is_told_and_torch_goes_on(card, tmp_path):
    card(Driver(loads=218))
    door = Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path))
    x = torch.arange(6, dtype=torch.int8).view(2, 3)
    assert torch.equal(door.call("transpose_bytes", x), x.t())
    assert len(door.notes) == 1 and "driver is older than the compiler" in door.notes[0] and "kernel image is invalid" in door.notes[0]


def test_a_launch_that_fails_is_not_hidden(card, tmp_path):
    card(Driver(starts=1))
    with pytest.raises(DriverError, match="cuLaunchKernel"):
        Door("cuda", torch.device("cpu"), launcher=CudaLauncher(tmp_path)).call("transpose_bytes", torch.zeros(2, 3, dtype=torch.int8))
