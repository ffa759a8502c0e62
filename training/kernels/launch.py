"""Starting a compiled kernel: arguments as the driver wants them, modules loaded once a card, torch's current stream.

`Launcher` is what the kernels' own code sees; `CudaLauncher` is the only thing here that needs a card.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path
from typing import Protocol, Sequence, Union

import torch
from torch import Tensor

from .nvrtc import CompileFailed
from .programs import Program, build, target_of

Argument = Union[Tensor, None, ctypes.c_int, ctypes.c_longlong, ctypes.c_float]
GRID_Y_LIMIT = 65535
UNASKED_SHARED_BYTES = 48 << 10  # a block gets more only where it was asked for
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # of the driver's CUfunction_attribute
# Of the driver's CUresult.
OUT_OF_MEMORY, INVALID_CONTEXT = 2, 201
IMAGE_REFUSED = (200, 209, 218, 222)  # an image, a target or a form of code that it doesn't know


class Launcher(Protocol):
    def launch(self, program: Program, entry: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument], device: torch.device, *, shared_bytes: int = 0) -> None:
        """Run `entry` over `grid` blocks of `threads`. Tensors are given by their address; None is a null pointer.

        `shared_bytes`: of a block's shared memory, beside what the source declares.
        """


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""

    def __init__(self, call: str, status: int, words: str):
        super().__init__(f"{call}: {words} ({status})")
        self.status = status


def as_c(argument: Argument):
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_void_p(None) if argument is None else argument


class CudaLauncher:
    """Compiles for the card at the first use of a kernel; afterwards a launch is one driver call and no allocation."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._functions: dict[tuple[int, Program, str], ctypes.c_void_p] = {}
        self._modules: dict[tuple[int, Program], ctypes.c_void_p] = {}

    def launch(self, program: Program, entry: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument], device: torch.device, *, shared_bytes: int = 0) -> None:
        values = [as_c(argument) for argument in arguments]  # alive until the driver has read them
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        with torch.cuda.device(device):
            index = torch.cuda.current_device()
            function = self._functions.get((index, program, entry)) or self._function(program, entry, index, shared_bytes)
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            call = ("cuLaunchKernel", function, grid[0], grid[1], 1, threads, 1, 1, shared_bytes, stream, pointers, None)
            try:
                _call(*call)
            except DriverError as error:
                if error.status != INVALID_CONTEXT:
                    raise
                _make_current(index)
                _call(*call)

    def _function(self, program: Program, entry: str, index: int, shared_bytes: int) -> ctypes.c_void_p:
        """Compiled, loaded and kept. Raises CompileFailed for whatever the driver has against it."""
        binary = build(program, target_of(*torch.cuda.get_device_capability(index)), self.folder)
        try:
            try:
                function = self._loaded(program, binary.code, entry, index, shared_bytes)
            except DriverError as error:
                if error.status != OUT_OF_MEMORY:
                    raise
                torch.cuda.empty_cache()  # code lies on the card, beside what torch keeps for itself
                function = self._loaded(program, binary.code, entry, index, shared_bytes)
        except DriverError as error:
            older = "the driver is older than the compiler that torch ships: " if error.status in IMAGE_REFUSED else ""
            raise CompileFailed(f"{older}{error}") from error
        self._functions[index, program, entry] = function
        return function

    def _loaded(self, program: Program, code: bytes, entry: str, index: int, shared_bytes: int) -> ctypes.c_void_p:
        """Where the driver loads lazily, an error of the code comes with any of the three calls."""
        if (index, program) not in self._modules:
            _make_current(index)
            module = ctypes.c_void_p()
            _call("cuModuleLoadData", ctypes.byref(module), code)
            self._modules[index, program] = module
        function = ctypes.c_void_p()
        _call("cuModuleGetFunction", ctypes.byref(function), self._modules[index, program], entry.encode("ascii"))
        if shared_bytes > UNASKED_SHARED_BYTES:
            _call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        return function


def _make_current(index: int) -> None:
    """The card's context on this thread. A thread of autograd's may have none: torch takes it with its first call to the card.

    Waits for nothing, so that it may happen while a graph is recorded."""
    card, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(card), index)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), card)
    _call("cuCtxSetCurrent", context)


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _call(name: str, *arguments) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(name, status, (text.value or b"unknown error").decode())
