"""The split: deterministic, by pixels alone, groups kept whole, and folders that never lose a file."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pistachio.dataset.duplicates import are_near_duplicates, near_duplicate_groups
from pistachio.dataset.folder import load_folder
from pistachio.dataset.images import colour_grid, content_hash, difference_hash
from pistachio.dataset.split import split_dataset, write_folders
from pistachio.dataset.thumbnails import HELD_OUT_COLOUR, contact_sheet, thumbnails
from pistachio.dataset.types import Dataset, Picture
from pistachio.training.errors import PistachioError


def photo(seed, width=48, height=48):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def picture(image, name):
    return Picture(
        path=Path("/pictures") / name, relative_path=name, width=image.width, height=image.height, content_hash=content_hash(image),
        caption="x", difference_hash=difference_hash(image), colour_grid=colour_grid(image),
    )


def dataset(count, sizes=((48, 48),)):
    return Dataset(
        folder=Path("/pictures"), pictures=tuple(picture(photo(i, *sizes[i % len(sizes)]), f"p{i}.png") for i in range(count))
    )


# 4 is the protocol's minimum; never more than half, so that training keeps at least as many
@pytest.mark.parametrize("n, held_out", [(2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (8, 4), (9, 4), (10, 4), (20, 4), (22, 4), (23, 5), (40, 8), (100, 20)])
def test_how_many_are_held_out(n, held_out):
    split = split_dataset(dataset(n)).split
    assert (len(split.held_out), len(split.train)) == (held_out, n - held_out)
    assert len(split.train) >= len(split.held_out)
    assert not set(split.train) & set(split.held_out)
    assert list(split.train) == sorted(split.train) and list(split.held_out) == sorted(split.held_out)
    assert any("train once more on all" in note for note in split.notes) == (n < 10)
    assert any("the best step is uncertain" in note for note in split.notes) == (held_out < 4)


def test_order_and_names_do_not_matter_but_the_seed_does():
    original = dataset(20)
    pictures = [replace(p, relative_path=f"other{i}.jpg", path=Path(f"/x/{i}.jpg")) for i, p in enumerate(original.pictures)]
    random.Random(3).shuffle(pictures)
    assert split_dataset(replace(original, pictures=tuple(pictures))).split == split_dataset(original).split
    seeds = {split_dataset(original, seed=s).split.held_out for s in range(6)}
    assert len(seeds) > 3
    assert len({split_dataset(original, seed=s).split.split_id for s in range(6)}) == 6
    assert len(split_dataset(original).split.split_id) == 16


def test_every_picture_has_the_same_chance():
    original = dataset(12, sizes=((48, 48), (64, 40), (40, 64)))
    counts = Counter(h for seed in range(300) for h in split_dataset(original, seed=seed).split.held_out)
    assert len(counts) == 12 and min(counts.values()) > 60 and max(counts.values()) < 140  # 100 expected


def test_stratified_by_aspect():
    sizes = ((48, 48), (80, 40), (40, 80), (64, 48))
    original = dataset(40, sizes=sizes)
    by_hash = {p.content_hash: (p.width, p.height) for p in original.pictures}
    for seed in range(5):
        counts = Counter(by_hash[h] for h in split_dataset(original, seed=seed).split.held_out)
        assert counts == {size: 2 for size in sizes}


def copies_of(image):
    grown = image.resize((96, 96), Image.Resampling.LANCZOS)
    return [image, grown, ImageEnhance.Brightness(image).enhance(1.02), grown.resize((60, 60))]


def test_near_duplicates_stay_together():
    pictures = [picture(copy, f"s{seed}c{i}.png") for seed in range(8) for i, copy in enumerate(copies_of(photo(seed)))]
    groups = near_duplicate_groups(pictures)
    assert sorted(len(g) for g in groups) == [4] * 8
    for group in groups:
        assert len({p.relative_path[:2] for p in group}) == 1
    for seed in range(5):
        split = split_dataset(Dataset(folder=Path("/p"), pictures=tuple(pictures)), seed=seed).split
        assert len(split.held_out) == 4, "6 would split a group"
        held = [g for g in groups if g[0].content_hash in split.held_out]
        assert all({p.content_hash for p in g} <= set(split.held_out) for g in held)


def test_one_layout_in_other_colours_is_not_a_near_duplicate():
    layout = np.zeros((48, 48, 3), np.uint8)
    layout[8:40, 8:40] = 100
    blue, red = layout.copy(), layout.copy()
    blue[..., 2] += 90
    red[..., 0] += 90
    a, b = (picture(Image.fromarray(x), "a.png") for x in (blue, red))
    assert a.difference_hash == b.difference_hash
    assert not are_near_duplicates(a, b)
    assert are_near_duplicates(replace(a, colour_grid=b""), b), "without colours the hash alone decides"


def test_files_of_equal_pixels_count_once():
    original = dataset(20)
    doubled = replace(original, pictures=original.pictures + tuple(replace(p, relative_path="copy-" + p.relative_path) for p in original.pictures))
    assert split_dataset(doubled).split == split_dataset(original).split


def test_nothing_to_hold_out():
    one = dataset(1)
    with pytest.raises(PistachioError, match="1 different picture"):
        split_dataset(one)
    alike = Dataset(folder=Path("/p"), pictures=tuple(picture(c, f"{i}.png") for i, c in enumerate(copies_of(photo(1)))))
    with pytest.raises(PistachioError, match="near-duplicates of one another"):
        split_dataset(alike)
    for share in (-0.1, 0.6):
        with pytest.raises(PistachioError, match=f"share is {share}"):
            split_dataset(dataset(8), held_out_share=share)


def test_share_of_zero_is_said_out_loud():
    split = split_dataset(dataset(20), held_out_share=0).split
    assert split.held_out == () and len(split.train) == 20
    assert split.notes == ("No picture is held out. Nothing here can detect memorising.",)


def test_large_groups_hold_out_the_smallest_one():
    pictures = [picture(c, f"s{s}c{i}.png") for s in range(2) for i, c in enumerate([*copies_of(photo(s)), photo(s).resize((70, 70))][: 5 if s else 3])]
    split = split_dataset(Dataset(folder=Path("/p"), pictures=tuple(pictures)), held_out_share=0.01).split
    assert (len(split.held_out), len(split.train)) == (3, 5)


def test_named_pictures_replace_the_choice():
    original = dataset(12)
    by_name = {p.relative_path: p.content_hash for p in original.pictures}
    for names in (("p3.png", "p7.png"), ("p3", "p7"), (" p3.png ", "", "p7.png"), ("p[37].png",)):
        split = split_dataset(original, held_out_names=names).split
        assert set(split.held_out) == {by_name["p3.png"], by_name["p7.png"]}
    assert split.split_id != split_dataset(original).split.split_id
    with pytest.raises(PistachioError, match="'p99.png' is not in"):
        split_dataset(original, held_out_names=("p99.png",))
    with pytest.raises(PistachioError, match="none is left to train on"):
        split_dataset(original, held_out_names=("*",))


def test_naming_one_of_a_group_takes_the_group():
    pictures = [*dataset(8).pictures, picture(photo(2).resize((96, 96)), "twin.png")]
    split = split_dataset(Dataset(folder=Path("/p"), pictures=tuple(pictures)), held_out_names=("p2.png",)).split
    assert len(split.held_out) == 2
    assert any("near-duplicates of the named pictures: twin.png" in note for note in split.notes)


@pytest.fixture
def on_disk(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for i in range(10):
        stem = folder / ("sub" if i % 3 == 0 else "") / f"p{i}"
        photo(i).save(stem.with_suffix(".png"))
        if i != 4:
            stem.with_suffix(".txt").write_text(f"caption {i}\n")
    return split_dataset(load_folder(folder))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_write_folders(on_disk, tmp_path):
    source = contents(on_disk.folder)
    train, held_out = write_folders(on_disk, tmp_path / "out")
    written = contents(train) | contents(held_out)
    assert written == source
    assert len([n for n in contents(held_out) if n.endswith(".png")]) == 4
    again = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    write_folders(on_disk, tmp_path / "out")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == again
    assert contents(on_disk.folder) == source
    assert {p.content_hash for p in load_folder(held_out).pictures} == set(on_disk.split.held_out)


@pytest.mark.parametrize("damage", ["stranger", "edited", "other split"])
def test_write_folders_refuses_before_the_first_copy(on_disk, tmp_path, damage):
    out = tmp_path / "out"
    train, held_out = write_folders(on_disk, out)
    dataset = on_disk
    if damage == "stranger":
        (train / "mine.psd").write_bytes(b"my work")
    elif damage == "edited":
        next(held_out.rglob("*.txt")).write_text("my own words")
    else:
        dataset = split_dataset(on_disk, seed=5)
        assert dataset.split.held_out != on_disk.split.held_out
    before = contents(out)
    with pytest.raises(PistachioError, match="Nothing was written"):
        write_folders(dataset, out)
    assert contents(out) == before


def test_write_folders_needs_a_split_and_another_place(on_disk):
    with pytest.raises(PistachioError, match="has no split"):
        write_folders(replace(on_disk, split=None), on_disk.folder.parent / "out")
    for target in (on_disk.folder, on_disk.folder / "split"):
        with pytest.raises(PistachioError, match="inside the picture folder"):
            write_folders(on_disk, target)
    assert not (on_disk.folder / "split").exists()


def test_thumbnails_mark_the_held_out_pictures(on_disk):
    tiles = thumbnails(on_disk, 64)
    assert [t.size for t in tiles] == [(64, 64)] * 10
    marked = [p.relative_path for p, t in zip(on_disk.pictures, tiles) if t.getpixel((63, 63)) == HELD_OUT_COLOUR]
    assert marked == [p.relative_path for p in on_disk.pictures if p.content_hash in on_disk.split.held_out]
    assert len(marked) == 4
    sheet = contact_sheet(on_disk, 64)
    assert sheet.mode == "RGB" and sheet.width > 3 * 64 and sheet.height > 2 * 64
    assert sum(c for c, colour in sheet.getcolors(1 << 20) if colour == HELD_OUT_COLOUR) > 4 * 64
