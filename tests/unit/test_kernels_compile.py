"""Every source for every card, without one: it compiles, spills nothing and stays within the bounds; and the folder it is kept in."""

import threading

import pytest
from pistachio.training.kernels import nvrtc, programs
from pistachio.training.kernels.nvrtc import CompileFailed, read_log
from pistachio.training.kernels.programs import SOURCES, build, key_of, program
from pistachio.training.kernels.resources import MAX_SHARED_BYTES, MAX_SPILL_BYTES, TARGETS, is_for, known_targets, measure, most_registers
from pistachio.training.kernels.resources import programs as all_programs

from support.compiler import needs_compiler

pytestmark = needs_compiler

# Wide rows take most of the compiler's time: for the oldest, the middle and the newest card.
WIDE = ("sm_75", "sm_90", "sm_120a")


def test_the_compiler_of_this_torch_knows_every_target():
    assert known_targets() == TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_within_its_bounds(target):
    if target not in known_targets():
        pytest.skip(f"NVRTC {nvrtc.version()} doesn't know {target}")
    wanted = all_programs(wide=target in WIDE)
    rows = measure(target, wanted)
    assert {one.source for one in wanted} == {path.stem for path in SOURCES.glob("*.cu")} - {"common"}
    assert {one.source for one in wanted} - {row["source"] for row in rows} == ({"gemm"} if target == "sm_75" else set())
    assert all(is_for(one, target) for one in wanted) == (int(target[3:5].rstrip("a")) >= 89 or len(target.rstrip("a")) > 5)
    for row in rows:
        print(f"{target} {row['entry']} {row['constants']}: {row['registers']} registers, {row['spill_bytes']} bytes spilled, {row['shared_bytes'] + row['given_bytes']} bytes shared")
        assert 0 < row["registers"] <= most_registers(row["source"]), row
        assert row["spill_bytes"] <= MAX_SPILL_BYTES and row["stack_bytes"] == 0, row
        assert row["shared_bytes"] <= MAX_SHARED_BYTES and row["given_bytes"] <= 99 * 1024, row
        threads = row["constants"].get("THREADS") or row["constants"]["MOST_THREADS"]
        assert threads * (-(-row["registers"] // 8) * 8) <= 65536, row  # a block fits a multiprocessor


def test_a_spill_is_seen():
    # Two hundred values that all live at once, with room for 32 registers.
    source = """extern "C" __global__ void __launch_bounds__(1024, 2) k(float* x) {
        float v[200];
    #pragma unroll
        for (int i = 0; i < 200; ++i) v[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
    #pragma unroll
        for (int i = 0; i < 200; ++i) x[i * 1024 + threadIdx.x] = v[199 - i] * v[(i * 7) % 200];
    }"""
    (found,) = nvrtc.compile_cubin(source, "sm_90")[1]
    assert found.entry == "k" and found.spill_bytes > 0 and found.registers <= 32


def test_sources_need_no_header():
    for path in SOURCES.glob("*.cu"):
        assert "#include" not in path.read_text(encoding="utf-8"), path.name


def test_what_does_not_compile_says_where():
    with pytest.raises(CompileFailed, match="undefined"):
        nvrtc.compile_cubin('extern "C" __global__ void k() { missing(); }', "sm_90")
    with pytest.raises(CompileFailed, match="another form"):
        read_log("ptxas info : Compiling entry function 'k' for 'sm_90'\nnothing else")


SMALL = program("gate", DTYPE=0, MDTYPE=0, VECTOR=0, THREADS=32)


def test_a_compiled_kernel_is_kept(tmp_path):
    first, second = (build(SMALL, "sm_90", tmp_path) for _ in range(2))
    assert not first.from_cache and second.from_cache
    assert second.code == first.code and second.code[:4] == b"\x7fELF" and second.resources == first.resources
    assert [path.name for path in tmp_path.iterdir()] == [f"{key_of(SMALL, 'sm_90')}.kernel"]


def test_the_name_is_all_that_decides_the_content(monkeypatch):
    names = {key_of(SMALL, "sm_90"), key_of(SMALL, "sm_80"), key_of(program("gate", DTYPE=1, MDTYPE=0, VECTOR=0, THREADS=32), "sm_90")}
    monkeypatch.setattr(nvrtc, "version", lambda: (1, 2))
    names.add(key_of(SMALL, "sm_90"))
    texts = {"common": "// other", "gate": "// source"}
    monkeypatch.setattr(programs, "source_text", texts.__getitem__)
    names.add(key_of(SMALL, "sm_90"))
    assert len(names) == 5


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + b"\x00\x01", lambda data: b"", lambda data: b"{}\n"])
def test_a_broken_file_is_compiled_again(tmp_path, damage):
    whole = build(SMALL, "sm_90", tmp_path).code
    (path,) = tmp_path.iterdir()
    kept = path.read_bytes()
    path.write_bytes(damage(kept))
    again = build(SMALL, "sm_90", tmp_path)
    assert not again.from_cache and again.code == whole and path.read_bytes() == kept


def test_two_hosts_may_compile_at_once(tmp_path):
    found, gate = [], threading.Barrier(4)

    def compile_it():
        gate.wait()
        found.append(build(SMALL, "sm_90", tmp_path).code)

    threads = [threading.Thread(target=compile_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert len(list(tmp_path.iterdir())) == 1 and build(SMALL, "sm_90", tmp_path).from_cache
