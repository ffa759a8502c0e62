"""Which pictures look the same, found without comparing each with each.

Two hashes within eight bits agree on at least one of nine bands of bits, and two grids within the colour
limit have close sums: only pictures that share a band and a range of sums are compared. Exact.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from .types import Picture

NEAR_HASH_BITS = 8  # of 64: recompressed or rescaled copies differ in up to about five
NEAR_COLOUR = 6.0  # mean absolute difference of the colour grids, 0..255: copies stay below 4

NUM_BANDS = NEAR_HASH_BITS + 1
PAIRS_AT_ONCE = 200_000
_CROP_NAME = re.compile(r"(.+)\.(?:face|subject)\d+$")
_ONES = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def are_near_duplicates(a: Picture, b: Picture) -> bool:
    """Equal pixels, or a close difference hash and close colours.

    The hash alone would join drawings of one layout that differ only in colour.
    """
    if a.content_hash == b.content_hash:
        return True
    if (a.difference_hash ^ b.difference_hash).bit_count() > NEAR_HASH_BITS:
        return False
    if not a.colour_grid or not b.colour_grid:
        return True
    return sum(abs(x - y) for x, y in zip(a.colour_grid, b.colour_grid)) <= NEAR_COLOUR * len(a.colour_grid)


def near_duplicate_groups(pictures: list[Picture]) -> list[list[Picture]]:
    """Connected groups of pictures that look the same or are clips of one video; order within and between groups is by content hash."""
    ordered = sorted(pictures, key=lambda p: (p.content_hash, p.relative_path))
    groups = _Groups(len(ordered))
    by_identity: dict[object, int] = {}
    for i, picture in enumerate(ordered):
        groups.join(i, by_identity.setdefault(picture.content_hash, i))
        if picture.clip is not None:
            groups.join(i, by_identity.setdefault(picture.path, i))
    _join_close_grids(ordered, groups)
    _join_without_grid(ordered, groups)
    members: dict[int, list[Picture]] = {}
    for picture, label in zip(ordered, groups.labels().tolist()):
        members.setdefault(label, []).append(picture)
    return list(members.values())


def kin_groups(pictures: list[Picture]) -> list[list[Picture]]:
    """Near-duplicate groups, with crops joined to the pictures that they were cut from: what is measured on one of them
    while another is trained on would say nothing."""
    groups = near_duplicate_groups(pictures)
    sources = {source_of(p.relative_path) for p in pictures if is_crop(p.relative_path)}
    if not sources:
        return groups
    joined, first = _Groups(len(groups)), {}
    for index, group in enumerate(groups):
        for source in {source_of(picture.relative_path) for picture in group} & sources:
            joined.join(index, first.setdefault(source, index))
    members: dict[int, list[Picture]] = {}
    for group, label in zip(groups, joined.labels().tolist()):
        members.setdefault(label, []).extend(group)
    return [sorted(group, key=lambda p: (p.content_hash, p.relative_path)) for group in members.values()]


def is_crop(relative_path: str) -> bool:
    return _CROP_NAME.match(PurePosixPath(relative_path).stem) is not None


def source_of(relative_path: str) -> str:
    """The path, without its ending, of the picture that a crop was cut from: 'crops/anna.face1.png' -> 'anna'. Of another picture its own."""
    path = PurePosixPath(relative_path).with_suffix("")
    crop = _CROP_NAME.match(path.name)
    return path.as_posix() if crop is None else PurePosixPath(*path.parts[1:-1], crop.group(1)).as_posix()


class _Groups:
    """Disjoint sets of 0..n-1, each named by its least member."""

    def __init__(self, count: int):
        self._parent = np.arange(count)

    def root(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.root(i), self.root(j)))
        self._parent[high] = low

    def labels(self) -> np.ndarray:
        while True:
            further = self._parent[self._parent]
            if np.array_equal(further, self._parent):
                return further
            self._parent = further


def _join_without_grid(pictures: list[Picture], groups: _Groups) -> None:
    """Records without a colour grid go by the hash alone; they are few."""
    without = {i for i, picture in enumerate(pictures) if not picture.colour_grid}
    if not without:
        return
    for shift, mask in _bands():
        buckets: dict[int, list[int]] = defaultdict(list)
        for i, picture in enumerate(pictures):
            buckets[(picture.difference_hash >> shift) & mask].append(i)
        for i in without:
            for j in buckets[(pictures[i].difference_hash >> shift) & mask]:
                if are_near_duplicates(pictures[i], pictures[j]):
                    groups.join(i, j)


def _bands() -> list[tuple[int, int]]:
    """(shift, mask) of nine runs of bits that make up the 64."""
    edges = [64 * i // NUM_BANDS for i in range(NUM_BANDS + 1)]
    return [(low, (1 << (high - low)) - 1) for low, high in zip(edges, edges[1:])]


def _join_close_grids(pictures: list[Picture], groups: _Groups) -> None:
    indices = [i for i, picture in enumerate(pictures) if picture.colour_grid]
    if len(indices) < 2:
        return
    hashes = np.array([pictures[i].difference_hash for i in indices], dtype=np.uint64)
    grids = np.array([np.frombuffer(pictures[i].colour_grid, dtype=np.uint8) for i in indices]).astype(np.int16)
    sums = grids.sum(axis=1, dtype=np.int64)
    limit = int(NEAR_COLOUR * grids.shape[1])
    stride = int(sums.max()) + limit + 1  # no range of sums reaches into the next band value
    numbers = np.array(indices)
    for shift, mask in _bands():
        keys = ((hashes >> np.uint64(shift)) & np.uint64(mask)).astype(np.int64) * stride + sums
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        reach = np.searchsorted(keys, keys + limit, side="right") - np.arange(len(keys)) - 1  # later ones in range
        for first in _chunks(reach):
            left = np.repeat(first, reach[first])
            right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(reach[first]) - reach[first], reach[first])
            a, b = order[left], order[right]
            labels = groups.labels()[numbers]
            apart = labels[a] != labels[b]  # a burst of equal frames is joined once, not pair by pair
            a, b = a[apart], b[apart]
            near = _distance(hashes[a] ^ hashes[b]) <= NEAR_HASH_BITS
            a, b = a[near], b[near]
            near = np.abs(grids[a] - grids[b]).sum(axis=1) <= limit
            for i, j in zip(numbers[a[near]].tolist(), numbers[b[near]].tolist()):
                groups.join(i, j)


def _chunks(reach: np.ndarray):
    """Runs of places with about PAIRS_AT_ONCE pairs together."""
    ends = np.cumsum(reach)
    start = 0
    while start < len(reach):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")))
        yield np.arange(start, stop)
        start = stop


def _distance(values: np.ndarray) -> np.ndarray:
    return _ONES[values.view(np.uint8).reshape(-1, 8)].sum(axis=1)
