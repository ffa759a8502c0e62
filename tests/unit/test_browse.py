"""What is told of a folder to a person who chooses one: counts, captions, first names, links, speed."""

import time

import pytest

from pistachio.dataset import browse
from pistachio.dataset.browse import contents, subfolders


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_counts(tmp_path):
    touch(
        tmp_path, "a2.png", "a10.png", "a2.txt", "a10.mask.png", "notes.md", ".hidden.png", "alone.txt", "clip.mp4", "clip.txt",
        "sub/b.jpg", "sub/b.txt", "sub/masks/b.png", ".cache/c.png", "empty.d/readme.md",
    )
    found = contents(tmp_path)
    assert (found.num_pictures, found.num_captioned, found.num_videos, found.num_folders, found.is_cut) == (3, 3, 1, 2, False)
    assert [name for name, _ in found.first] == ["a2.png", "a10.png", "sub/b.jpg"]
    assert contents(tmp_path, num_first=1).first[0][0] == "a2.png"


def test_a_table_captions_and_a_damaged_one_does_not(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    (tmp_path / "captions.json").write_text('{"a.png": ["one"]}')
    assert contents(tmp_path).num_captioned == 1
    (tmp_path / "captions.json").write_text("{")
    assert contents(tmp_path).num_captioned == 0


def test_folders_in_natural_order_without_hidden_ones_and_links_out(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    touch(inside, "set10/a.png", "set2/a.png", ".trash/a.png", "file.png")
    touch(outside, "x/a.png")
    (inside / "link_in").symlink_to(inside / "set2")
    (inside / "link_out").symlink_to(outside)
    (inside / "link_nowhere").symlink_to(tmp_path / "gone")
    found = subfolders(inside, lambda path: path.is_relative_to(inside))
    assert [path.name for path in found] == ["link_in", "set2", "set10"]


def test_ten_thousand_pictures_are_counted_at_once_and_kept_until_something_changes(tmp_path, monkeypatch):
    for index in range(10_000):
        (tmp_path / f"{index}.png").touch()
    monkeypatch.setattr(browse, "SETTLED_NS", 0)
    started = time.perf_counter()
    assert contents(tmp_path).num_pictures == 10_000
    assert time.perf_counter() - started < 1.0
    started = time.perf_counter()
    assert contents(tmp_path).first[0][0] == "0.png"
    assert time.perf_counter() - started < 0.05
    time.sleep(0.02)  # the directory's time is in ticks
    (tmp_path / "more.png").touch()
    assert contents(tmp_path).num_pictures == 10_001


def test_a_deep_tree_is_cut_and_told(tmp_path, monkeypatch):
    for index in range(30):
        touch(tmp_path, f"d{index}/a.png")
    monkeypatch.setattr(browse, "MOST_DIRECTORIES", 10)
    found = contents(tmp_path)
    assert found.is_cut and found.num_pictures < 30 and found.num_folders == 30


def test_a_folder_that_is_gone(tmp_path):
    with pytest.raises(OSError):
        contents(tmp_path / "gone")
