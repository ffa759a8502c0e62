"""What the kernels take on each card, from the assembler: registers, spills, shared memory. Needs no card.

Holds the list of programs that stand for all: the widths of Wan-14B (5120, MLP 13824) and Flux (3072, heads of 128) in
bfloat16, the widest rows that a block keeps, and the flat optimisers.
"""

from __future__ import annotations

from dataclasses import asdict

from . import gemm, nvrtc
from .activation import GEGLU, SWIGLU
from .glue import MAX_COLUMNS, code_block, column_blocks, row_block
from .programs import Program, program

# `a`: with what Hopper and consumer Blackwell have alone. No source uses that, but it must compile for it.
TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_103", "sm_120", "sm_120a")
MAX_SPILL_BYTES = 0
MAX_SHARED_BYTES = 8192  # a block: never what limits how many blocks a multiprocessor holds
# A multiprocessor has 65536 registers, and a thread's are handed out by eight: this many leave room for 512 threads.
MAX_REGISTERS = 128
# The product's results live in registers: one block of 256 threads has a multiprocessor to itself.
MAX_GEMM_REGISTERS = 255
# What a source needs: the oldest target's number.
LEAST_TARGET = {("gemm", 0): 80, ("gemm", 1): 89}  # (source, FORMAT)

BF16 = 1


def _rows(source: str, cols: int, **constants: int) -> Program:
    threads, chunks = row_block(cols)
    return program(source, DTYPE=BF16, VECTOR=1, THREADS=threads, CHUNKS=chunks, **constants)


def _coded(cols: int, **constants: int) -> Program:
    _, most, chunks = code_block(cols)
    return program("quantise", DTYPE=BF16, VECTOR=1, MOST_THREADS=most, CHUNKS=chunks, **constants)


def _columns(source: str, cols: int, **constants: int) -> Program:
    return program(source, VECTOR=1, THREADS=column_blocks(cols)[1], **constants)


def programs(*, wide: bool = True) -> tuple[Program, ...]:
    """Every source. `wide`: with the rows of the models, and the widest that is taken, which need most registers; else narrow ones."""
    found = (
        _rows("norm", 5120 if wide else 2048, MDTYPE=BF16),
        program("columns", DTYPE=BF16, MDTYPE=BF16, VECTOR=0, THREADS=256),
        _columns("gate", 5120, DTYPE=BF16, MDTYPE=BF16),
        *(_columns("activation", 13824, DTYPE=BF16, FORM=form) for form in (1, SWIGLU, GEGLU)),
        program("rope", DTYPE=BF16, MDTYPE=BF16, VECTOR=1, THREADS=128, WARPS=1, ROWS=4, CHUNKS=1, WIDTH=128),
        _coded(5120 if wide else 2048, FORMAT=0),
        _columns("rescale", 5120, DTYPE=BF16, SOURCE=0),
        program("transpose", THREADS=256, VECTOR=1),
        *(program("adamw", THREADS=256, VECTOR=1, CODES=codes) for codes in (0, 1)),
        gemm.plan(tiles=4, out_code=BF16, vector=True, fp8=False),
        gemm.plan(tiles=4 if wide else 2, out_code=BF16, vector=True, fp8=True),
    )
    if not wide:
        return found
    return found + (
        gemm.plan(tiles=2, out_code=BF16, vector=True, fp8=True),
        _rows("norm", 5120, MDTYPE=BF16, FORMAT=0),
        program("rope", DTYPE=BF16, MDTYPE=BF16, VECTOR=1, THREADS=320, WARPS=10, ROWS=1, CHUNKS=2, WIDTH=128),
        _coded(5120, FORMAT=1),
        _columns("activation", 13824, DTYPE=BF16, FORM=0),
        _rows("norm", MAX_COLUMNS, MDTYPE=BF16),
    )


def known_targets() -> tuple[str, ...]:
    """Of TARGETS, those that the compiler here knows."""
    known = nvrtc.architectures()
    return tuple(target for target in TARGETS if int(target.removeprefix("sm_").rstrip("a")) in known)


def is_for(one: Program, target: str) -> bool:
    number, constants = int(target.removeprefix("sm_").rstrip("a")), dict(one.constants)
    if one.source == "gemm" and constants["MT"] > gemm.tiles_of(bool(constants["FORMAT"]), number // 10):
        return False
    return number >= LEAST_TARGET.get((one.source, constants.get("FORMAT")), 75)


def most_registers(source: str) -> int:
    return MAX_GEMM_REGISTERS if source == "gemm" else MAX_REGISTERS


def given_bytes(one: Program) -> int:
    """Shared memory that a block is given at its start, beside what the source declares."""
    return gemm.pool_bytes(dict(one.constants)["MT"]) if one.source == "gemm" else 0


def measure(target: str, wanted: tuple[Program, ...] | None = None) -> list[dict]:
    """A row for each kernel of each program that the target can run: {source, constants, target, entry, registers, given_bytes, ...}."""
    return [
        {"source": one.source, "constants": dict(one.constants), "target": target, "given_bytes": given_bytes(one), **asdict(resources)}
        for one in (wanted or programs()) if is_for(one, target) for resources in nvrtc.compile_cubin(one.text, target, one.options)[1]
    ]
