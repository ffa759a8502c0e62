"""The folder of compiled kernels between processes, on a disk that refuses, and where NVRTC lies in the wheels of each system."""

import logging
import multiprocessing
from pathlib import Path

import pytest
import torch
from pistachio.training.kernels import nvrtc, programs
from pistachio.training.kernels.programs import build, key_of, program

from support.compiler import needs_compiler

SMALL = program("gate", DTYPE=0, MDTYPE=0, VECTOR=0, THREADS=32)


# ---- two processes -------------------------------------------------------


def _race(folder, start, ends, turns):
    """One ComfyUI: builds the kernel again and again, while the other one removes and tears the file."""
    start.wait()
    path = folder / f"{key_of(SMALL, 'sm_90')}.kernel"
    told = set()
    for turn in range(turns):
        told.add(build(SMALL, "sm_90", folder).code)
        if turn % 3 == 0:
            path.unlink(missing_ok=True)
        elif turn % 3 == 1 and path.exists():
            path.write_bytes(path.read_bytes()[: 100 + turn])  # as a machine that lost its power leaves it
    ends.put(told)


@needs_compiler
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="two processes are made by fork here")
def test_two_processes_share_the_folder(tmp_path):
    whole = build(SMALL, "sm_90", None).code
    processes = multiprocessing.get_context("fork")
    start, ends = processes.Barrier(2), processes.Queue()
    racers = [processes.Process(target=_race, args=(tmp_path, start, ends, 12)) for _ in range(2)]
    for racer in racers:
        racer.start()
    told = [ends.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(timeout=60)
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert told == [{whole}, {whole}]  # never half a file, never another's
    assert build(SMALL, "sm_90", tmp_path).code == whole
    assert [path.suffix for path in tmp_path.iterdir()] == [".kernel"]  # and nothing left beside it


@needs_compiler
def test_a_folder_that_can_not_be_written_costs_a_line(tmp_path, caplog, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING, logger="pistachio"):
        found = build(SMALL, "sm_90", tmp_path / "file" / "kernels")
    assert found.code[:4] == b"\x7fELF" and not found.from_cache
    assert len(caplog.records) == 1 and "can't be kept" in caplog.records[0].message

    def refuse(*arguments):
        raise PermissionError(13, "another process holds the file")  # as Windows says it

    monkeypatch.setattr(programs.Path, "read_bytes", refuse)
    assert not build(SMALL, "sm_90", tmp_path).from_cache


# ---- where NVRTC is ------------------------------------------------------

# As the wheels lay them down: torch for Windows holds the library itself, torch for Linux has packages of NVIDIA beside it.
WHEELS = {
    "Windows, CUDA 13.0": ("win32", "13.0", "torch/lib/nvrtc64_130_0.dll", ("torch/lib/nvrtc-builtins64_130.dll", "torch/lib/nvrtc64_130_0.alt.dll")),
    "Windows, CUDA 12.8": ("win32", "12.8", "torch/lib/nvrtc64_120_0.dll", ("torch/lib/nvrtc-builtins64_128.dll", "torch/lib/cudart64_12.dll")),
    "Windows, a package of NVIDIA": ("win32", "12.8", "nvidia/cuda_nvrtc/bin/nvrtc64_120_0.dll", ("nvidia/cuda_nvrtc/bin/nvrtc-builtins64_128.dll",)),
    "Linux, CUDA 13.0": ("linux", "13.0", "nvidia/cu13/lib/libnvrtc.so.13", ("nvidia/cu13/lib/libnvrtc-builtins.so.13.0", "nvidia/cu13/lib/libnvrtc.alt.so.13")),
    "Linux, CUDA 12.8": ("linux", "12.8", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", ("nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.8",)),
    "Linux, whole": ("linux", "12.8", "torch/lib/libnvrtc-b51b459d.so.12", ("torch/lib/libnvrtc-builtins.so.12.8",)),
}


@pytest.mark.parametrize("wheel", WHEELS)
def test_the_library_is_found_in_the_wheel(wheel, tmp_path, monkeypatch):
    platform, cuda, library, others = WHEELS[wheel]
    for name in (library, *others, "torch/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.setattr(nvrtc.sys, "platform", platform)
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found = nvrtc._candidates()
    assert Path(found[0]) == tmp_path / library
    whole_paths = [Path(name).name for name in found if Path(name).is_absolute()]
    assert whole_paths == [Path(library).name]  # neither its built-ins nor the slower twin
    # Without its file in the wheel the system's own is asked for by name.
    assert found[1:] and all(not Path(name).is_absolute() for name in found[1:])
    assert (f"nvrtc64_{cuda.split('.')[0]}0_0.dll" if platform == "win32" else f"libnvrtc.so.{cuda.split('.')[0]}") in found[1:]


def test_a_torch_without_cuda_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    nvrtc.library.cache_clear()
    try:
        with pytest.raises(nvrtc.CompilerMissing, match="is built without CUDA"):
            nvrtc.library()
    finally:
        nvrtc.library.cache_clear()
