"""Runs the assembly (PTX) that NVRTC makes of a kernel, thread by thread, on the CPU.

Every thread of every block is a lane of numpy arrays. A lane that has fallen behind runs first, so that warps meet again where
a card's would. Wrong use is an error, not a wrong number: addresses outside the tensors given, vectors that are not aligned,
shuffles from a lane that is elsewhere, barriers that not all reach, shared memory that two threads use between two barriers
when one of them writes. Shared memory begins as NaN.
"""

from __future__ import annotations

import ctypes
import re
import struct
from functools import lru_cache

import numpy as np
import torch
from pistachio.training.kernels import nvrtc
from pistachio.training.kernels.programs import Program

from .ptx_matrix import Fault, MatrixInstructions

TYPES = {
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64, "s8": np.int8, "s16": np.int16, "s32": np.int32,
    "s64": np.int64, "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64, "f16": np.float16, "f32": np.float32,
    "f64": np.float64, "pred": np.bool_,
}
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}
MODIFIERS = {"rn", "rni", "rzi", "approx", "ftz", "sat", "satfinite", "uni", "sync", "global", "shared", "param", "lo", "relaxed"}


class Memory:
    """The tensors that a launch was given, by address."""

    def __init__(self, tensors):
        spans = sorted({(t.data_ptr(), t.data_ptr() + _span_bytes(t)) for t in tensors if t.numel()})
        merged = []
        for low, high in spans:  # views of one storage
            if merged and low < merged[-1][1]:
                merged[-1][1] = max(high, merged[-1][1])
            else:
                merged.append([low, high])
        self.low = np.array([low for low, _ in merged], np.uint64)
        self.high = np.array([high for _, high in merged], np.uint64)
        self.base = [low & ~63 for low, _ in merged]
        self.bytes = [
            np.frombuffer((ctypes.c_uint8 * (((high + 63) & ~63) - base)).from_address(base), np.uint8)
            for base, (_, high) in zip(self.base, merged)
        ]

    def parts(self, addresses, size, what):
        """(buffer, which lanes, their positions in units of `size`)"""
        if (addresses % np.uint64(size)).any():
            raise Fault(f"{what}: an address that is no multiple of {size}")
        if not len(self.low):
            raise Fault(f"{what}: no tensor holds anything")
        which = np.searchsorted(self.low, addresses, side="right").astype(np.int64) - 1
        if (which < 0).any() or (addresses + np.uint64(size) > self.high[which]).any():
            raise Fault(f"{what}: outside every tensor that the kernel was given")
        for buffer in np.unique(which):
            lanes = which == buffer
            at = (addresses[lanes] - np.uint64(self.base[buffer])).astype(np.int64)
            yield self.bytes[buffer], lanes, at // size


def _span_bytes(tensor) -> int:
    return (sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride())) + 1) * tensor.element_size()


class Interpreter:
    """A launcher (training/kernels/launch.py) without a card. `target`: the virtual architecture compiled for."""

    def __init__(self, target: str = "compute_75"):
        self.target = target
        self.launched: list[str] = []

    def launch(self, program, entry, grid, threads, arguments, device, *, shared_bytes=0) -> None:
        assert device.type == "cpu"
        self.launched.append(entry)
        if grid[0] * grid[1] == 0:
            raise Fault(f"{entry}: a grid of {grid} is refused by the driver")
        constants = dict(program.constants)
        limit, most = constants.get("THREADS", threads), constants.get("MOST_THREADS", threads)
        if threads != limit or threads > most or threads % 32:
            raise Fault(f"{entry}: {threads} threads, compiled for {constants.get('THREADS') or most}")
        kernel = parsed(program, self.target)[entry]
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        values = []
        for argument, size in zip(arguments, kernel.sizes, strict=True):
            if argument is None or isinstance(argument, torch.Tensor):
                raw = struct.pack("Q", 0 if argument is None else argument.data_ptr())
            else:
                raw = bytes(argument)
            if len(raw) != size:
                raise Fault(f"{entry}: an argument of {len(raw)} bytes where the kernel takes {size}")
            values.append(raw)
        with np.errstate(all="ignore"):
            Launch(kernel, Memory(tensors), values, grid, threads, shared_bytes).run()


class Kernel:
    def __init__(self, entry: str, parameters: list[tuple[str, int]], body: str, outside: tuple[str, ...] = ()):
        """`outside`: names of shared memory whose size is given at the launch."""
        self.entry = entry
        self.names = {name: i for i, (name, _) in enumerate(parameters)}
        self.sizes = [size for _, size in parameters]
        self.shared, self.shared_bytes, self.labels, self.code = {}, 0, {}, []
        for align, name, size in re.findall(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];", body):
            self.shared_bytes = -(-self.shared_bytes // int(align)) * int(align)
            self.shared[name] = self.shared_bytes
            self.shared_bytes += int(size)
        self.shared_bytes = -(-self.shared_bytes // 128) * 128
        self.shared.update(dict.fromkeys(outside, self.shared_bytes))
        body = re.sub(r"//[^\n]*|^\s*\.(reg|shared|pragma|loc)[^;]*;|^\s*[{}]\s*$", "", body, flags=re.M)
        for line in re.split(r";|(?<=:)\s", body):
            line = line.strip().strip("{}").strip() if not re.search(r"\{.*\}", line, re.S) else line.strip()
            if line.endswith(":"):
                self.labels[line[:-1]] = len(self.code)
            elif line:
                self.code.append(_instruction(line))
        ends = {i + 1 for i, (_, op, _) in enumerate(self.code) if op[0] in ("bra", "ret", "bar", "exit")}
        self.leaders = sorted({0, len(self.code), *ends, *self.labels.values()})
        self.block_end = dict(zip(self.leaders, self.leaders[1:]))


def _instruction(line: str):
    match = re.match(r"(?:@(!?%\w+)\s+)?([\w.]+)\s*(.*)$", line, re.S)
    predicate, op, rest = match.groups()
    operands = [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", rest) if part.strip()]
    return predicate, op.split("."), operands


@lru_cache(maxsize=None)
def parsed(program: Program, target: str) -> dict[str, Kernel]:
    text = nvrtc.compile_ptx(program.text, target, program.options)
    found, outside = {}, tuple(re.findall(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\];", text))
    for entry, parameters, body in re.findall(r"\.visible \.entry (\w+)\((.*?)\)[^{]*\{(.*?)\n\}", text, re.S):
        names = [(name, TYPES[kind]().nbytes) for kind, name in re.findall(r"\.param \.(\w+)(?: \.ptr[^,]*?)? (\w+)", parameters)]
        found[entry] = Kernel(entry, names, body, outside)
    return found


class Launch(MatrixInstructions):
    def __init__(self, kernel: Kernel, memory: Memory, values, grid, threads, shared_bytes=0):
        self.kernel, self.memory, self.values = kernel, memory, values
        blocks = grid[0] * grid[1]
        self.lanes = np.arange(blocks * threads, dtype=np.int64)
        block = self.lanes // threads
        self.block, self.blocks = block, blocks
        wide = lambda x: x.astype(np.uint32)
        fixed = lambda x: np.full(len(self.lanes), x, np.uint32)
        self.registers = {
            "%tid.x": wide(self.lanes % threads), "%ntid.x": fixed(threads), "%ctaid.x": wide(block % grid[0]),
            "%ctaid.y": wide(block // grid[0]), "%nctaid.x": fixed(grid[0]), "%nctaid.y": fixed(grid[1]),
        }
        size = -(-max(kernel.shared_bytes + shared_bytes, 8) // 16) * 16
        self.shared = np.full(blocks * size, 0xFF, np.uint8)
        self.shared_start = block * size
        self.shared_size = size
        # Of each byte: who wrote and who read it last, and between which barriers of its block.
        self.epoch = np.zeros(blocks, np.int64)
        self.written, self.seen = (np.full((2, len(self.shared)), -1, np.int64) for _ in range(2))
        self.begin_copies()

    def run(self) -> None:
        kernel = self.kernel
        pc = np.zeros(len(self.lanes), np.int64)
        done = np.zeros(len(self.lanes), bool)
        waiting = np.zeros(len(self.lanes), bool)
        while True:
            ready = ~done & ~waiting
            if not ready.any():
                if done.all():
                    return
                self.epoch[self.block[waiting]] = self.epoch[self.block[waiting]] + 1
                waiting[:] = False  # every lane that has not left stands at a barrier
                continue
            current = pc[ready].min()
            mask = ready & (pc == current)
            end = kernel.block_end[int(current)]
            self.mask, self.all = mask, bool(mask.all())
            for index in range(int(current), end):
                predicate, op, operands = kernel.code[index]
                if op[0] == "bra":
                    taken = mask & self._predicate(predicate) if predicate else mask
                    pc[mask] = end
                    pc[taken] = kernel.labels[operands[0]]
                    break
                if op[0] in ("ret", "exit"):
                    left = mask & self._predicate(predicate) if predicate else mask
                    done |= left
                    pc[mask] = end
                    break
                if op[0] == "bar":
                    waiting |= mask
                    pc[mask] = end
                    self._check_barrier(pc, done, waiting, ready, mask)
                    break
                if predicate:
                    self.mask, self.all = mask & self._predicate(predicate), False
                    self.step(op, operands)
                    self.mask, self.all = mask, bool(mask.all())
                else:
                    self.step(op, operands)
            else:
                pc[mask] = end

    def _check_barrier(self, pc, done, waiting, ready, mask) -> None:
        at = pc[waiting]
        for block in np.unique(self.block[mask]):
            places = np.unique(pc[waiting & (self.block == block)])
            if len(places) > 1:
                raise Fault(f"{self.kernel.entry}: threads of one block stand at different barriers")
        assert len(at)

    def _predicate(self, text: str):
        return ~self.registers[text[1:]] if text.startswith("!") else self.registers[text]

    # ---- operands --------------------------------------------------------

    def read(self, operand: str, kind: str):
        dtype = TYPES[kind]
        if operand.startswith("%"):
            value = self.registers[operand]
            if value.dtype == dtype:
                return value
            size = np.dtype(dtype).itemsize
            if value.itemsize == size:
                return value.view(dtype)
            return value.view(UNSIGNED[value.itemsize]).astype(UNSIGNED[size]).view(dtype)
        if operand.startswith("0f"):
            return np.array(int(operand[2:], 16), np.uint32).view(np.float32).astype(dtype)
        if operand in self.kernel.shared:
            return np.array(self.kernel.shared[operand], dtype)
        number = int(operand, 0)
        size = np.dtype(dtype).itemsize
        return np.array(number % (1 << 8 * size), UNSIGNED[size]).view(dtype) if dtype is not np.bool_ else np.array(bool(number))

    def write(self, name: str, value) -> None:
        width = {"p": 1, "f": 4, "r": 4, "d": 8, "s": 2}[re.match(r"%(p|f|rd|rs|r)", name)[1][-1]] if not name.startswith("%fd") else 8
        if value.dtype != np.bool_ and value.itemsize < width:
            signed = np.issubdtype(value.dtype, np.signedinteger)
            value = value.astype({4: np.int32, 8: np.int64, 2: np.int16}[width] if signed else UNSIGNED[width])
        if value.dtype != np.bool_:
            value = value.view(UNSIGNED[value.itemsize])
        if value.ndim == 0 or len(value) != len(self.lanes):
            value = np.broadcast_to(value, len(self.lanes))
        if self.all:
            self.registers[name] = np.ascontiguousarray(value)
            return
        old = self.registers.get(name)
        kept = np.zeros(len(self.lanes), value.dtype) if old is None else old.view(value.dtype).copy()
        np.copyto(kept, value, where=self.mask)
        self.registers[name] = kept

    def _names(self, operand: str) -> list[str]:
        return [part.strip() for part in operand.strip("{}").split(",")]

    # ---- instructions ----------------------------------------------------

    def step(self, op: list[str], operands: list[str]) -> None:
        handler = getattr(self, f"op_{op[0]}", None)
        if handler is None:
            raise NotImplementedError(f"{'.'.join(op)} {operands}")
        handler(op, operands)

    def _places(self, operand: str):
        """Addresses of the active lanes."""
        base, _, offset = operand.strip("[]").partition("+")
        value = np.broadcast_to(self.read(base.strip(), "u64"), len(self.lanes))[self.mask]
        return value + np.uint64(int(offset or 0) % (1 << 64))

    def _cells(self, op, operand, size, count):
        """Parts of memory, each with the active lanes that mean it and their positions in units of `size`."""
        addresses = self._places(operand)
        what = f"{self.kernel.entry}, {'.'.join(op)}"
        if "shared" in op:
            if (addresses % np.uint64(size * count)).any() or (addresses + np.uint64(size * count) > self.shared_size).any():
                raise Fault(f"{what}: outside shared memory, or not aligned")
            place = addresses.astype(np.int64) + self.shared_start[self.mask]
            self._check_race(what, (place[:, None] + np.arange(size * count)).ravel(), np.repeat(self.lanes[self.mask], size * count), "st" in op)
            at = place // size
            return [(self.shared, np.ones(len(at), bool), at)]
        return [(buffer, lanes, at * count) for buffer, lanes, at in self.memory.parts(addresses, size * count, what)]

    def _check_race(self, what: str, places, lanes, writes: bool) -> None:
        self.check_arrived(what, places)
        epoch = self.epoch[self.block[lanes]]
        for owners, epochs in (self.written, self.seen) if writes else (self.written,):
            if ((owners[places] != lanes) & (owners[places] >= 0) & (epochs[places] == epoch)).any():
                raise Fault(f"{what}: another thread uses these bytes of shared memory since the last barrier")
        if writes and len(np.unique(places)) < len(places):
            raise Fault(f"{what}: two threads write the same bytes of shared memory")
        owners, epochs = self.written if writes else self.seen
        owners[places], epochs[places] = lanes, epoch

    def op_ld(self, op, operands) -> None:
        dtype = TYPES[op[-1]]
        if "param" in op:
            name, _, offset = operands[1].strip("[]").partition("+")
            raw = self.values[self.kernel.names[name]][int(offset or 0):]
            self.write(operands[0], np.frombuffer(raw[: np.dtype(dtype).itemsize], dtype)[0:1].reshape(()))
            return
        targets = self._names(operands[0])
        size = np.dtype(dtype).itemsize
        cells = self._cells(op, operands[1], size, len(targets))
        for i, target in enumerate(targets):
            got = np.zeros(int(self.mask.sum()), dtype)
            for buffer, lanes, at in cells:
                got[lanes] = buffer.view(dtype)[at + i]
            value = np.zeros(len(self.lanes), dtype)
            value[self.mask] = got
            self.write(target, value)

    def op_st(self, op, operands) -> None:
        dtype = TYPES[op[-1]]
        sources = self._names(operands[1])
        for buffer, lanes, at in self._cells(op, operands[0], np.dtype(dtype).itemsize, len(sources)):
            for i, source in enumerate(sources):
                value = np.broadcast_to(self.read(source, op[-1]), len(self.lanes))[self.mask][lanes]
                buffer.view(dtype)[at + i] = value

    def op_mov(self, op, operands) -> None:
        target, source = operands
        if target.startswith("{"):
            names = self._names(target)
            whole = np.atleast_1d(self.read(source, op[-1]))
            size = whole.itemsize // len(names)
            parts = np.ascontiguousarray(np.broadcast_to(whole, len(self.lanes))).view(UNSIGNED[size]).reshape(-1, len(names))
            for i, name in enumerate(names):
                self.write(name, np.ascontiguousarray(parts[:, i]))
        elif source.startswith("{"):
            names = self._names(source)
            size = np.dtype(TYPES[op[-1]]).itemsize // len(names)
            kind = {1: "u8", 2: "u16", 4: "u32"}[size]
            parts = np.stack([np.broadcast_to(self.read(name, kind), len(self.lanes)) for name in names], 1)
            self.write(target, np.ascontiguousarray(parts).view(TYPES[op[-1]])[:, 0])
        else:
            self.write(target, self.read(source, op[-1]))

    def op_cvta(self, op, operands) -> None:
        self.write(operands[0], self.read(operands[1], "u64"))

    def op_cvt(self, op, operands) -> None:
        kinds = [part for part in op[1:] if part not in MODIFIERS]
        if kinds[0] == "e4m3x2":
            high, low = (_e4m3(np.broadcast_to(self.read(name, "f32"), len(self.lanes))) for name in operands[1:])
            self.write(operands[0], high.astype(np.uint16) << np.uint16(8) | low)
            return
        if kinds[0] == "bf16x2":
            high, low = (_bf16(np.broadcast_to(self.read(name, "f32"), len(self.lanes))) for name in operands[1:])
            self.write(operands[0], high.astype(np.uint32) << np.uint32(16) | low)
            return
        if kinds[0] == "bf16":
            self.write(operands[0], _bf16(self.read(operands[1], "f32")))
            return
        source, target = self.read(operands[1], kinds[1]), TYPES[kinds[0]]
        if np.issubdtype(source.dtype, np.floating) and np.issubdtype(target, np.integer):
            whole = np.rint(source.astype(np.float64)) if "rni" in op else np.trunc(source.astype(np.float64))
            info = np.iinfo(target)
            self.write(operands[0], np.clip(np.nan_to_num(whole, nan=0.0), info.min, info.max).astype(target))
        else:
            self.write(operands[0], source.astype(target))

    def op_shfl(self, op, operands) -> None:
        target = operands[0].split("|")[0]
        assert op[2] == "bfly", op
        step = np.broadcast_to(self.read(operands[2], "u32"), len(self.lanes)).astype(np.int64)
        partner = self.lanes ^ step
        if not self.mask[partner[self.mask]].all():
            raise Fault(f"{self.kernel.entry}: a shuffle from a lane that is not there")
        self.write(target, np.broadcast_to(self.read(operands[1], "u32"), len(self.lanes))[partner])

    def op_setp(self, op, operands) -> None:
        a, b = (self.read(name, op[-1]) for name in operands[1:3])
        name = op[1]
        if name in ("nan", "num"):
            unordered = np.isnan(a) | np.isnan(b)
            self.write(operands[0], unordered if name == "nan" else ~unordered)
        elif op[-1] == "f32" and name.endswith("u") and name != "u":
            self.write(operands[0], COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b))
        else:
            result = COMPARE[name](a, b)
            if op[-1] == "f32" and name == "ne":
                result = result & ~np.isnan(a) & ~np.isnan(b)
            self.write(operands[0], result)

    def op_selp(self, op, operands) -> None:
        self.write(operands[0], np.where(self.registers[operands[3]], self.read(operands[1], op[-1]), self.read(operands[2], op[-1])))

    def op_prmt(self, op, operands) -> None:
        a, b, selector = (np.broadcast_to(self.read(name, "u32"), len(self.lanes)) for name in operands[1:4])
        pool = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
        result = np.zeros(len(self.lanes), np.uint32)
        for i in range(4):
            choice = selector >> np.uint32(4 * i) & np.uint32(15)
            byte = (pool >> (np.uint64(8) * (choice & np.uint32(7)).astype(np.uint64)) & np.uint64(255)).astype(np.uint32)
            byte = np.where(choice & np.uint32(8), np.where(byte & 128, 255, 0).astype(np.uint32), byte)
            result |= byte << np.uint32(8 * i)
        self.write(operands[0], result)

    def op_bfi(self, op, operands) -> None:
        value, into = (self.read(name, op[-1]) for name in operands[1:3])
        start, count = (np.uint32(int(name)) for name in operands[3:5])
        bits = np.uint32(((1 << int(count)) - 1) << int(start))
        self.write(operands[0], into & ~bits | value << start & bits)

    def op_mul(self, op, operands) -> None:
        a, b = (self.read(name, op[-1]) for name in operands[1:3])
        if "wide" in op:
            wide = {2: {"u": np.uint32, "s": np.int32}, 4: {"u": np.uint64, "s": np.int64}}[a.itemsize][op[-1][0]]
            a, b = a.astype(wide), b.astype(wide)
        self.write(operands[0], a * b)

    def op_mad(self, op, operands) -> None:
        a, b, c = (self.read(name, op[-1]) for name in operands[1:4])
        self.write(operands[0], a * b + c)

    def op_fma(self, op, operands) -> None:
        a, b, c = (self.read(name, "f32").astype(np.float64) for name in operands[1:4])
        self.write(operands[0], (a * b + c).astype(np.float32))

    def op_div(self, op, operands) -> None:
        a, b = (self.read(name, op[-1]) for name in operands[1:3])
        if op[-1].startswith("f"):
            self.write(operands[0], a / b)
            return
        a, b = np.broadcast_arrays(a, b)
        if (b[self.mask] == 0).any() if b.ndim else b == 0:
            raise Fault(f"{self.kernel.entry}: division by zero")
        safe = np.where(b == 0, np.ones_like(b), b)
        quotient = a // safe
        if op[-1].startswith("s"):  # towards zero
            quotient = np.where((a % safe != 0) & ((a < 0) != (safe < 0)), quotient + 1, quotient)
        self.write(operands[0], quotient.astype(a.dtype))

    def op_rem(self, op, operands) -> None:
        a, b = np.broadcast_arrays(*(self.read(name, op[-1]) for name in operands[1:3]))
        self.write(operands[0], np.fmod(a, np.where(b == 0, np.ones_like(b), b)))

    def op_shl(self, op, operands) -> None:
        self._shift(op, operands, np.left_shift)

    def op_shr(self, op, operands) -> None:
        self._shift(op, operands, np.right_shift)

    def _shift(self, op, operands, function) -> None:
        value, amount = self.read(operands[1], op[-1]), self.read(operands[2], "u32")
        assert (np.asarray(amount) < 8 * value.itemsize).all()
        self.write(operands[0], function(value, amount.astype(value.dtype)))

    def op_copysign(self, op, operands) -> None:
        self.write(operands[0], np.copysign(self.read(operands[2], "f32"), self.read(operands[1], "f32")))


def _binary(function):
    def run(self, op, operands):
        self.write(operands[0], np.asarray(function(self.read(operands[1], op[-1]), self.read(operands[2], op[-1]))))
    return run


def _unary(function):
    def run(self, op, operands):
        self.write(operands[0], np.asarray(function(self.read(operands[1], op[-1]))))
    return run


_exact = lambda function: lambda x: function(x.astype(np.float64)).astype(np.float32)
for _name, _function in {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "max": np.fmax, "min": np.fmin,
}.items():
    setattr(Launch, f"op_{_name}", _binary(_function))
for _name, _function in {
    "abs": np.abs, "neg": np.negative, "not": np.invert, "sqrt": _exact(np.sqrt), "rsqrt": _exact(lambda x: 1 / np.sqrt(x)),
    "rcp": _exact(lambda x: 1 / x), "ex2": _exact(np.exp2), "lg2": _exact(np.log2), "tanh": _exact(np.tanh),
}.items():
    setattr(Launch, f"op_{_name}", _unary(_function))


def _bf16(x):
    bits = torch.from_numpy(np.atleast_1d(np.array(x, np.float32))).to(torch.bfloat16).view(torch.int16)
    return bits.numpy().view(np.uint16)


def _e4m3(x):
    clipped = torch.from_numpy(np.array(x, np.float32)).clamp(-448, 448)
    return clipped.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
