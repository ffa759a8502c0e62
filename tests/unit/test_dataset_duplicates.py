"""Near-duplicates: the same groups as comparing each picture with each, in a time that 10,000 pictures allow."""

import time
from pathlib import Path

import numpy as np
import pytest

from pistachio.dataset.duplicates import are_near_duplicates, near_duplicate_groups
from pistachio.dataset.types import Clip, Picture


def record(index, difference_hash, grid, **values):
    return Picture(
        path=Path(f"/{index}.png"), relative_path=f"{index}.png", width=64, height=64, content_hash=f"{index:06d}", caption="",
        difference_hash=int(difference_hash), colour_grid=grid, **values,
    )


def records(count, *, seed, originals, without_grid=0):
    """Copies of some originals, changed by up to 11 bits and by colours about the limit."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, originals, dtype=np.uint64)
    grids = rng.integers(40, 216, (originals, 192))
    made = []
    for i in range(count):
        origin = int(rng.integers(originals))
        value = int(hashes[origin])
        for bit in rng.choice(64, int(rng.integers(0, 12)), replace=False):
            value ^= 1 << int(bit)
        grid = (grids[origin] + rng.integers(-9, 10, 192)).astype(np.uint8).tobytes()
        made.append(record(i, value, b"" if i < without_grid else grid))
    return made


def by_brute_force(pictures):
    group = {p.content_hash: {p.content_hash} for p in pictures}
    for i, a in enumerate(pictures):
        for b in pictures[:i]:
            if are_near_duplicates(a, b) and group[a.content_hash] is not group[b.content_hash]:
                joined = group[a.content_hash] | group[b.content_hash]
                for name in joined:
                    group[name] = joined
    return {frozenset(names) for names in group.values()}


@pytest.mark.parametrize("seed, originals, without_grid", [(0, 5, 0), (1, 40, 0), (2, 200, 0), (3, 40, 12), (4, 40, 240)])
def test_the_groups_are_those_of_all_pairs(seed, originals, without_grid):
    pictures = records(240, seed=seed, originals=originals, without_grid=without_grid)
    groups = near_duplicate_groups(pictures)
    assert {frozenset(p.content_hash for p in group) for group in groups} == by_brute_force(pictures)
    if originals > 5:
        assert 1 < len(groups) < 240
    assert [group[0].content_hash for group in groups] == sorted(group[0].content_hash for group in groups)


def test_clips_of_one_video_stay_together():
    rng = np.random.default_rng(0)
    clips = [
        Picture(
            path=Path(f"/{video}.mp4"), relative_path=f"{video}.mp4", width=8, height=8, content_hash=f"{video}{i}", caption="",
            difference_hash=int(rng.integers(2**63)), colour_grid=rng.bytes(192), clip=Clip(start_seconds=i, num_frames=5, fps=8),
        )
        for video in "ab" for i in range(3)
    ]
    assert [sorted(p.content_hash for p in group) for group in near_duplicate_groups(clips)] == [["a0", "a1", "a2"], ["b0", "b1", "b2"]]


@pytest.mark.parametrize("originals", [10_000, 3])
def test_ten_thousand_pictures_take_seconds(originals):
    """All different, or three bursts of thousands; each with each would be 50 million comparisons, minutes."""
    pictures = records(10_000, seed=5, originals=originals)
    start = time.process_time()
    groups = near_duplicate_groups(pictures)
    assert time.process_time() - start < 30
    assert len(groups) >= (3000 if originals > 3 else 3)
