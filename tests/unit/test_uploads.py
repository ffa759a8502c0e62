"""Dropped files on their way into a dataset's folder: names, kinds, collisions, damage, and what a broken-off one leaves."""

import os
import threading
import time
from io import BytesIO

import pytest
from PIL import Image

from pistachio.dataset import uploads
from pistachio.dataset.folder import load_folder
from pistachio.dataset.uploads import ADDED, KEPT, RENAMED, SAME, Arrival, checked_path, kind_of
from pistachio.training.errors import PistachioError


def png(colour: str, size=(24, 16)) -> bytes:
    data = BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


def drop(folder, path, data, **named):
    with Arrival(folder, path, **named) as arrival:
        for start in range(0, len(data), 100):
            arrival.write(data[start:start + 100])
        taken = arrival.finish()
    return taken.state, taken.name


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("text, path", [
    ("a.png", "a.png"), ("sub/b c.jpg", "sub/b c.jpg"), ("12:30 <x>.png", "12_30 _x_.png"), ("a\\b.png", "a_b.png"), ("two\nlines.png", "two_lines.png"),
    ("trailing. /a.png", "trailing/a.png"), ("cafe\u0301.png", "caf\u00e9.png"),
])
def test_names(text, path):
    assert checked_path(text).as_posix() == path


@pytest.mark.parametrize("text", ["", "/etc/passwd", "../a.png", "a/../../b.png", "a//b.png", "./a.png", ".hidden.png", ".git/a.png", "a\0.png", "x" * 300 + ".png", "d/" * 20 + "a.png", "..."])
def test_no_way_out(text, tmp_path):
    with pytest.raises(PistachioError):
        Arrival(tmp_path / "set", text)
    assert not (tmp_path / "set").exists()


def test_kinds_and_reasons():
    assert [kind_of(name, videos=False) for name in ("a.PNG", "a.gif", "a.txt", "captions.json")] == ["picture", "picture", "caption", "table"]
    assert kind_of("a.mp4", videos=True) == "video"
    for name, words in (("a.mp4", "Load Video Folder"), ("a.heic", "PNG or JPEG"), ("a.zip", "Unpack"), ("a.safetensors", "neither"), ("a", "neither")):
        with pytest.raises(PistachioError, match=words):
            kind_of(name, videos=False)


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "set"
    red, blue = png("red"), png("blue")
    assert drop(folder, "a.png", red) == (ADDED, "a.png")
    assert drop(folder, "a.txt", b"a red one") == (ADDED, "a.txt")
    assert drop(folder, "a.png", red) == (SAME, "a.png")
    assert drop(folder, "a.png", blue) == (RENAMED, "a-2.png")
    assert drop(folder, "a.png", blue) == (SAME, "a-2.png")
    assert drop(folder, "a.txt", b"a blue one") == (KEPT, "a.txt")
    assert drop(folder, "a-2.txt", b"a blue one") == (ADDED, "a-2.txt")
    assert drop(folder, "a.txt", b"a red one") == (SAME, "a.txt")
    # a.jpg would share the caption of a.png
    jpeg = BytesIO()
    Image.new("RGB", (8, 8), "green").save(jpeg, "JPEG")
    assert drop(folder, "a.jpg", jpeg.getvalue()) == (RENAMED, "a-3.jpg")
    assert (folder / "a.png").read_bytes() == red and (folder / "a.txt").read_bytes() == b"a red one"
    assert {p.relative_path: p.caption for p in load_folder(folder).pictures} == {"a.png": "a red one", "a-2.png": "a blue one", "a-3.jpg": None}


def test_a_whole_folder_with_captions_and_masks(tmp_path):
    folder = tmp_path / "set"
    for path, data in (("sub/b.png", png("red")), ("sub/b.txt", b"b"), ("sub/b.2.txt", b"more"), ("sub/masks/b.png", png("white"))):
        assert drop(folder, path, data, exact="masks" in path) == (ADDED, path)
    (picture,) = load_folder(folder).pictures
    assert (picture.caption, picture.more_captions, picture.mask_path) == ("b", ("more",), folder / "sub/masks/b.png")
    assert drop(folder, "sub/masks/b.png", png("black"), exact=True) == (KEPT, "sub/masks/b.png")


@pytest.mark.parametrize("path, data, words", [
    ("broken.png", png("red", (200, 200))[:-20] + b"x" * 4, "damaged or cut short"),
    ("empty.png", b"", "empty"),
    ("page.png", b"<html>not a picture</html>", "not a picture"),
    ("sub/alone.txt", b"words", "no picture of that name"),
    ("captions.json", b"[1, 2]", "can't be used"),
    ("clip.mp4", b"no video", "no video that can be read"),
])
def test_what_is_refused_leaves_nothing(tmp_path, path, data, words):
    folder = tmp_path / "input" / "set"
    with pytest.raises(PistachioError, match=words):
        drop(folder, path, data, videos=True)
    assert not (tmp_path / "input").exists()


def test_utf16_captions_are_refused(tmp_path):
    drop(tmp_path, "a.png", png("red"))
    with pytest.raises(PistachioError, match="UTF-8"):
        drop(tmp_path, "a.txt", "a caption".encode("utf-16"))
    assert names(tmp_path) == ["a.png"]


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path):
    folder = tmp_path / "set"
    with pytest.raises(ConnectionError), Arrival(folder, "a.png", size_bytes=1000) as arrival:
        arrival.write(b"half")
        assert (folder / arrival.temporary.name / "a.png").exists()
        raise ConnectionError
    assert not folder.exists()
    with pytest.raises(PistachioError, match="4 of 1000 bytes"), Arrival(folder, "a.png", size_bytes=1000) as arrival:
        arrival.write(b"half")
        arrival.finish()
    assert not folder.exists()


def test_sizes(tmp_path):
    with pytest.raises(PistachioError, match="max-upload-size"):
        Arrival(tmp_path, "a.png", size_bytes=2_000, max_bytes=1_000)
    with pytest.raises(PistachioError, match="max-upload-size"), Arrival(tmp_path, "a.png", max_bytes=1_000) as arrival:
        arrival.write(b"x" * 1_001)
    with pytest.raises(PistachioError, match="1 MB"):
        Arrival(tmp_path, "a.txt", size_bytes=uploads.MAX_CAPTION_BYTES + 1, max_bytes=10**9)
    with pytest.raises(PistachioError, match="nearly full"), Arrival(tmp_path, "a.png", size_bytes=10**18):
        pass
    assert names(tmp_path) == []


def test_links_out_are_not_followed(tmp_path):
    folder, outside = tmp_path / "set", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "sub").symlink_to(outside, target_is_directory=True)
    with pytest.raises(PistachioError, match="leads out"):
        drop(folder, "sub/a.png", png("red"))
    assert names(outside) == [] and [path.name for path in folder.iterdir()] == ["sub"]


def test_what_a_killed_upload_left_goes_after_a_day(tmp_path):
    for name, age_seconds in (("old", 2 * 24 * 3600), ("new", 0)):
        left = tmp_path / f"{uploads.TEMPORARY_PREFIX}{name}"
        left.mkdir()
        (left / "half.png").write_bytes(b"half")
        os.utime(left, (time.time() - age_seconds,) * 2)
    drop(tmp_path, "a.png", png("red"))
    assert names(tmp_path) == [f"{uploads.TEMPORARY_PREFIX}new/half.png", "a.png"]
    assert len(load_folder(tmp_path).pictures) == 1


def test_many_at_once_of_one_name(tmp_path):
    pictures = [png(colour) for colour in ("red", "green", "blue", "white", "black", "red")]
    states = []
    threads = [threading.Thread(target=lambda data=data: states.append(drop(tmp_path, "a.png", data))) for data in pictures]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(state for state, _ in states) == sorted([ADDED, *[RENAMED] * 4, SAME])
    assert {(tmp_path / name).read_bytes() for name in names(tmp_path)} == set(pictures) and len(names(tmp_path)) == 5
