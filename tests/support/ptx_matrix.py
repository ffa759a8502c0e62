"""Warp-wide instructions of the PTX interpreter (ptx.py): copies into shared memory that arrive later, ldmatrix, mma.

A copy's bytes are written when the thread waits for them. Until then whoever reads or writes them is at fault, and afterwards
they are as if the thread had stored them: others see them behind a barrier. A warp must be whole for ldmatrix and mma.
"""

from __future__ import annotations

import numpy as np
import torch

E4M3_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
WARP = 32


class Fault(AssertionError):
    """What a card would fail at, or quietly get wrong."""


class MatrixInstructions:
    """For ptx.Launch. Needs of it: lanes, mask, shared, shared_start, shared_size, memory, read, write, _check_race."""

    def begin_copies(self) -> None:
        self.closed = np.zeros(len(self.lanes), np.int64)  # groups that each thread has closed
        self.pending: list[tuple] = []  # (lanes, places [n, 16], values [n, 16], number of their group)
        self.on_their_way = np.zeros(len(self.shared), bool)

    # ---- copies ----------------------------------------------------------

    def op_cp(self, op, operands) -> None:
        if "commit_group" in op:
            self.closed[self.mask] += 1
        elif "wait_group" in op:
            self._arrive(int(operands[0]))
        else:
            assert op[1:5] == ["async", "cg", "shared", "global"] and operands[2] == "16", op
            self._copy(op, operands)

    def _copy(self, op, operands) -> None:
        what, count = f"{self.kernel.entry}, {'.'.join(op)}", int(self.mask.sum())
        targets, sources = self._places(operands[0]), self._places(operands[1])
        sizes = np.broadcast_to(self.read(operands[3], "s32"), len(self.lanes))[self.mask]
        if ((sizes < 0) | (sizes > 16)).any():
            raise Fault(f"{what}: {sizes.min()} to {sizes.max()} of 16 bytes")
        if (targets % np.uint64(16)).any() or (targets + np.uint64(16) > self.shared_size).any() or (sources % np.uint64(16)).any():
            raise Fault(f"{what}: outside shared memory, or not aligned")
        values = np.zeros((count, 16), np.uint8)
        whole = sizes == 16
        if whole.any():
            for buffer, lanes, at in self.memory.parts(sources[whole], 16, what):
                values[np.flatnonzero(whole)[lanes]] = buffer.reshape(-1, 16)[at]
        for row in np.flatnonzero((sizes > 0) & ~whole):
            some = np.arange(sizes[row])
            for buffer, lanes, at in self.memory.parts(sources[row] + some.astype(np.uint64), 1, what):
                values[row, some[lanes]] = buffer[at]
        lanes = self.lanes[self.mask]
        places = (targets.astype(np.int64) + self.shared_start[self.mask])[:, None] + np.arange(16)
        if self.on_their_way[places].any():
            raise Fault(f"{what}: a copy into bytes that another is still on its way to")
        self._check_race(what, places.ravel(), np.repeat(lanes, 16), True)
        self.on_their_way[places] = True
        self.pending.append((lanes, places, values, self.closed[lanes].copy()))

    def _arrive(self, left: int) -> None:
        """Of each thread's closed groups, all but the last `left` are there."""
        waiting = []
        for lanes, places, values, groups in self.pending:
            here = self.mask[lanes] & (groups < self.closed[lanes] - left)
            if here.any():
                self.shared[places[here]] = values[here]
                self.on_their_way[places[here]] = False
                self._check_race(f"{self.kernel.entry}, cp.async", places[here].ravel(), np.repeat(lanes[here], 16), True)
            if not here.all():
                waiting.append((lanes[~here], places[~here], values[~here], groups[~here]))
        self.pending = waiting

    def check_arrived(self, what: str, places) -> None:
        if self.on_their_way[places].any():
            raise Fault(f"{what}: bytes that a copy is still on its way to")

    # ---- fragments and products ------------------------------------------

    def _warps(self, op):
        """Which warps are here: [W], all of their threads."""
        active = self.mask.reshape(-1, WARP)
        here = active.any(1)
        if not active[here].all():
            raise Fault(f"{self.kernel.entry}, {'.'.join(op)}: a warp that is not whole")
        return here

    def op_ldmatrix(self, op, operands) -> None:
        assert op[1:] == ["sync", "aligned", "m8n8", "x4", "shared", "b16"], op
        here, what = self._warps(op), f"{self.kernel.entry}, ldmatrix"
        rows = self._places(operands[1])
        if (rows % np.uint64(16)).any() or (rows + np.uint64(16) > self.shared_size).any():
            raise Fault(f"{what}: outside shared memory, or not aligned")
        rows = (rows.astype(np.int64) + self.shared_start[self.mask]).reshape(-1, 4, 8)  # warp, matrix, row
        places = rows[..., None] + np.arange(16)
        self._check_race(what, places.ravel(), np.repeat(self.lanes[self.mask], 16), False)
        found = self.shared[places].view(np.uint32)  # warp, matrix, row, quarter: the thread 4 row + quarter
        for index, name in enumerate(self._names(operands[0])):
            whole = np.zeros((len(here), WARP), np.uint32)
            whole[here] = found[:, index].reshape(-1, WARP)
            self.write(name, whole.ravel())

    def op_mma(self, op, operands) -> None:
        here = self._warps(op)
        kind, total = op[7], op[6]
        fragments = lambda operand, type_: [self._fragment(name, type_, here) for name in self._names(operand)]
        decode = {"s8": lambda x: x.view(np.int8).astype(np.float32), "e4m3": lambda x: E4M3_VALUES[x.view(np.uint8)], "bf16": _from_bf16}[kind]
        # A thread's four bytes are neighbours of row lane / 4: from 4 (lane % 4) of sixteen.
        a, b = ([decode(np.ascontiguousarray(x)).reshape(len(x), 8, -1) for x in fragments(o, "u32")] for o in operands[1:3])
        left = np.concatenate([np.concatenate([a[0], a[2]], 2), np.concatenate([a[1], a[3]], 2)], 1)
        right = np.concatenate([b[0], b[1]], 2)
        before = np.stack([x.reshape(-1, 8, 4) for x in fragments(operands[3], total)], -1)  # warp, row, quarter, register
        sums = left @ right.transpose(0, 2, 1) if kind == "s8" else left.astype(np.float64) @ right.transpose(0, 2, 1).astype(np.float64)
        sums = sums.reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(before.shape)  # half, row, quarter, which of two
        after = (sums.astype(np.int32) + before if total == "s32" else (sums + before).astype(np.float32))
        for index, name in enumerate(self._names(operands[0])):
            whole = np.zeros((len(here), WARP), after.dtype)
            whole[here] = after[..., index].reshape(-1, WARP)
            self.write(name, whole.ravel())

    def _fragment(self, name: str, kind: str, here):
        return np.broadcast_to(self.read(name, kind), len(self.lanes)).reshape(-1, WARP)[here]


def _from_bf16(words):
    return (words.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
