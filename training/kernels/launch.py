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


class Launcher(Protocol):
    def launch(self, program: Program, entry: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument], device: torch.device, *, shared_bytes: int = 0) -> None:
        """Run `entry` over `grid` blocks of `threads`. Tensors are given by their address; None is a null pointer.

        `shared_bytes`: of a block's shared memory, beside what the source declares.
        """


class DriverError(RuntimeError):
    """The CUDA driver refused a call."""


def as_c(argument: Argument):
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return argument


class CudaLauncher:
    """Compiles for the card at the first use of a kernel; afterwards a launch is one driver call and no allocation."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._functions: dict[tuple[int, Program, str], ctypes.c_void_p] = {}
        self._modules: dict[tuple[int, Program], ctypes.c_void_p] = {}

    def launch(self, program: Program, entry: str, grid: tuple[int, int], threads: int, arguments: Sequence[Argument], device: torch.device, *, shared_bytes: int = 0) -> None:
        values = [as_c(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values])
        with torch.cuda.device(device):
            function = self._function(program, entry, torch.cuda.current_device(), shared_bytes)
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            _call("cuLaunchKernel", function, grid[0], grid[1], 1, threads, 1, 1, shared_bytes, stream, pointers, None)

    def _function(self, program: Program, entry: str, index: int, shared_bytes: int) -> ctypes.c_void_p:
        key = (index, program, entry)
        if key not in self._functions:
            function = ctypes.c_void_p()
            _call("cuModuleGetFunction", ctypes.byref(function), self._module(program, index), entry.encode("ascii"))
            if shared_bytes > UNASKED_SHARED_BYTES:
                _call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
            self._functions[key] = function
        return self._functions[key]

    def _module(self, program: Program, index: int) -> ctypes.c_void_p:
        key = (index, program)
        if key not in self._modules:
            binary = build(program, target_of(*torch.cuda.get_device_capability(index)), self.folder)
            torch.cuda.current_stream().synchronize()  # also makes the card's context current on this thread
            module = ctypes.c_void_p()
            try:
                _call("cuModuleLoadData", ctypes.byref(module), binary.code)
            except DriverError as error:
                raise CompileFailed(f"the driver is older than the compiler that torch ships ({error})") from error
            self._modules[key] = module
        return self._modules[key]


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _call(name: str, *arguments) -> None:
    status = getattr(_driver(), name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"{name}: {(text.value or b'unknown error').decode()} ({status})")
