"""CUDA C++ to machine code with the compiler library that torch ships. Needs no card, no toolkit and no headers.

Knows NVRTC's interface and where torch keeps it on Linux and Windows; knows no kernel.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'")
SPILLS = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (?P<registers>\d+) registers")
SHARED = re.compile(r"(?P<shared>\d+) bytes smem")


class CompilerMissing(RuntimeError):
    """torch has no NVRTC here: a build without CUDA, or an installation that is not whole."""


class CompileFailed(RuntimeError):
    """NVRTC refused a source; the message holds its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """What one entry function takes on one target, as the assembler reports it."""

    entry: str
    registers: int  # a thread
    spill_bytes: int  # stores and loads a thread
    stack_bytes: int
    shared_bytes: int  # static, a block


def _candidates() -> list[str]:
    """Full paths first: a name alone may find another toolkit's library."""
    cuda = torch.version.cuda
    if cuda is None:
        return []
    major, minor = cuda.split(".")[:2]
    inside = Path(torch.__file__).resolve().parent / "lib"
    packages = inside.parents[1] / "nvidia"
    if sys.platform == "win32":
        patterns = [(inside, f"nvrtc64_{major}*_0.dll"), (packages, f"**/nvrtc64_{major}*_0.dll")]
        names = [f"nvrtc64_{major}{minor}_0.dll", f"nvrtc64_{major}0_0.dll"]
    else:
        patterns = [(packages, f"*/lib/libnvrtc.so.{major}*"), (inside, f"libnvrtc*.so.{major}*")]
        names = [f"libnvrtc.so.{major}", "libnvrtc.so"]
    found = [str(path) for folder, pattern in patterns if folder.is_dir() for path in sorted(folder.glob(pattern)) if "builtins" not in path.name and ".alt." not in path.name]
    return found + names


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    tried = _candidates()
    for name in tried:
        try:
            loaded = ctypes.CDLL(name)
            loaded.nvrtcGetErrorString.restype = ctypes.c_char_p
            return loaded
        except (OSError, AttributeError):
            continue
    where = f"tried {', '.join(tried)}" if tried else f"torch {torch.__version__} is built without CUDA"
    raise CompilerMissing(f"NVRTC, the compiler library of CUDA, can't be loaded ({where}).")


@lru_cache(maxsize=1)
def version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@lru_cache(maxsize=1)
def architectures() -> tuple[int, ...]:
    """Compute capabilities without their suffix, e.g. 75, 90, 120."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    values = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(values))
    return tuple(values)


def compile_cubin(source: str, target: str, options: tuple[str, ...] = ()) -> tuple[bytes, tuple[Resources, ...]]:
    """`target`: "sm_90a". Machine code for that card alone, and what each of its entry functions takes."""
    code, log = _compile(source, (f"--gpu-architecture={target}", "--ptxas-options=-v", *options), "CUBIN")
    return code, read_log(log)


def compile_ptx(source: str, target: str, options: tuple[str, ...] = ()) -> str:
    """`target`: "compute_75". The assembly that the machine code is made of, as text."""
    code, _ = _compile(source, (f"--gpu-architecture={target}", *options), "PTX")
    return code.rstrip(b"\0").decode("utf-8")


def read_log(log: str) -> tuple[Resources, ...]:
    found = []
    for part in log.split("Compiling entry function")[1:]:
        name = ENTRY.search("Compiling entry function" + part)
        spills, registers, shared = SPILLS.search(part), REGISTERS.search(part), SHARED.search(part)
        if name is None or registers is None or spills is None:
            raise CompileFailed(f"The assembler's report has another form than expected: {part.strip()[:300]}")
        found.append(Resources(
            entry=name["name"], registers=int(registers["registers"]), spill_bytes=int(spills["stores"]) + int(spills["loads"]),
            stack_bytes=int(spills["stack"]), shared_bytes=int(shared["shared"]) if shared else 0,
        ))
    return tuple(found)


def _compile(source: str, options: tuple[str, ...], kind: str) -> tuple[bytes, str]:
    nvrtc = library()
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode("utf-8"), b"pistachio.cu", 0, None, None))
    try:
        texts = [option.encode("utf-8") for option in ("--std=c++17", *_fewer_features(), *options)]
        status = nvrtc.nvrtcCompileProgram(program, len(texts), (ctypes.c_char_p * len(texts))(*texts))
        log = _read(program, "ProgramLog").rstrip(b"\0").decode("utf-8", "replace")
        if status != 0:
            raise CompileFailed(f"NVRTC {'.'.join(map(str, version()))} ({nvrtc.nvrtcGetErrorString(status).decode()}): {log.strip()[:2000]}")
        return _read(program, kind), log
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fewer_features() -> tuple[str, ...]:
    """Without what no source here uses (textures, the runtime's own functions): a third of what the smallest program takes."""
    return ("-minimal",) if version() >= (13, 0) else ()


def _read(program: ctypes.c_void_p, kind: str) -> bytes:
    nvrtc, size = library(), ctypes.c_size_t()
    _check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer))
    return buffer.raw


def _check(status: int) -> None:
    if status != 0:
        raise CompileFailed(f"NVRTC: {library().nvrtcGetErrorString(status).decode()}")
