"""Folders, captions and the checks before training, with real files."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pistachio.dataset.captions import read_caption, with_trigger, without_trigger, write_caption
from pistachio.dataset.checks import check_trainable
from pistachio.dataset.files import TEMPORARY_SUFFIX, atomic_write_bytes, remove_stale_temporaries, write_error
from pistachio.dataset.folder import folder_fingerprint, load_folder, natural_key
from pistachio.training.errors import PistachioError


def write_pictures(folder, count, captions=True, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        values = np.random.default_rng(seed + i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"p{i}.png")
        if captions:
            (folder / f"p{i}.txt").write_text(f"a portrait, number {i}", encoding="utf-8")


def test_natural_order_recursion_and_captions(tmp_path):
    write_pictures(tmp_path, 12)
    write_pictures(tmp_path / "sub", 1, seed=50)
    write_pictures(tmp_path / ".hidden", 1, seed=60)
    (tmp_path / "notes.txt").write_text("not a caption")
    dataset = load_folder(tmp_path, trigger_word=" ohwx ")
    names = [p.relative_path for p in dataset.pictures]
    assert names == [f"p{i}.png" for i in range(12)] + ["sub/p0.png"]
    assert dataset.pictures[10].caption == "a portrait, number 10"
    assert dataset.trigger_word == "ohwx"
    assert (dataset.pictures[0].width, dataset.pictures[0].height) == (16, 12)
    assert len(load_folder(tmp_path, recursive=False).pictures) == 12


def test_natural_key_is_total():
    names = ["a10.png", "A2.png", "a2.png", "b.png", "1.png", "a02.png", "²x.png", "a-b"]
    assert sorted(names, key=natural_key)[0] == "1.png"
    assert sorted(names, key=natural_key) == sorted(reversed(names), key=natural_key)
    assert natural_key("a2") < natural_key("a10")


def test_empty_missing_and_file_folders(tmp_path):
    with pytest.raises(PistachioError, match="has no pictures"):
        load_folder(tmp_path)
    with pytest.raises(PistachioError, match="does not exist"):
        load_folder(tmp_path / "nowhere")
    (tmp_path / "f").write_text("x")
    with pytest.raises(PistachioError, match="is a file"):
        load_folder(tmp_path / "f")
    write_pictures(tmp_path / "sub", 2)
    with pytest.raises(PistachioError, match="Switch 'recursive' on"):
        load_folder(tmp_path, recursive=False)


def test_unreadable_pictures_are_skipped_with_the_reason(tmp_path):
    write_pictures(tmp_path, 3)
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "phone.heic").write_bytes(b"ftypheic")
    (tmp_path / "cut.png").write_bytes((tmp_path / "p0.png").read_bytes()[:200])
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    dataset = load_folder(tmp_path)
    assert len(dataset.pictures) == 3
    reasons = {s.relative_path: s.reason for s in dataset.skipped}
    assert set(reasons) == {"zero.png", "page.jpg", "phone.heic", "cut.png", "link.png"}
    assert "0 bytes" in reasons["zero.png"] and "HEIC" in reasons["phone.heic"] and "damaged" in reasons["cut.png"]
    assert any("5 pictures can't be read" in note for note in dataset.notes)


def test_nothing_readable(tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    with pytest.raises(PistachioError, match="None of the 1 pictures.*empty"):
        load_folder(tmp_path)


def test_caption_encodings(tmp_path):
    write_pictures(tmp_path, 1, captions=False)
    caption = tmp_path / "p0.txt"
    assert load_folder(tmp_path).pictures[0].caption is None
    caption.write_bytes(b"\xef\xbb\xbf caf\xc3\xa9 \r\n")
    assert load_folder(tmp_path).pictures[0].caption == "café"
    caption.write_bytes(b"  \n")
    assert load_folder(tmp_path).pictures[0].caption == ""
    for wrong in ("café".encode("latin-1"), "café".encode("utf-16"), "plain".encode("utf-16-le")):
        caption.write_bytes(wrong)
        with pytest.raises(PistachioError, match=r"p0\.txt'.*UTF-8"):
            load_folder(tmp_path)


def test_shared_sidecar_is_a_note(tmp_path):
    write_pictures(tmp_path, 1)
    Image.new("RGB", (8, 8)).save(tmp_path / "p0.jpg")
    assert any("share the caption file" in note for note in load_folder(tmp_path).notes)


def test_a_saved_edit_is_seen_by_fingerprint_and_reload(tmp_path):
    write_pictures(tmp_path, 2)
    before, print_before = load_folder(tmp_path), folder_fingerprint(tmp_path)
    assert folder_fingerprint(tmp_path) == print_before
    Image.new("RGB", (16, 12), (1, 2, 3)).save(tmp_path / "p0.png")
    after = load_folder(tmp_path)
    assert after.pictures[0].content_hash != before.pictures[0].content_hash
    assert after.pictures[1] == before.pictures[1]
    assert folder_fingerprint(tmp_path) != print_before
    middle = folder_fingerprint(tmp_path)
    (tmp_path / "p1.txt").write_text("a much longer caption")
    assert folder_fingerprint(tmp_path) != middle


def test_interrupt_and_progress(tmp_path):
    write_pictures(tmp_path, 3)
    seen = []

    def stop():
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder(tmp_path, progress=lambda done, total: seen.append((done, total)), check_interrupted=stop)
    assert seen == [(1, 3), (2, 3)]


def test_checks_before_training(tmp_path):
    write_pictures(tmp_path / "four", 4)
    with pytest.raises(PistachioError, match="Only 4 different pictures.*at least 5"):
        check_trainable(load_folder(tmp_path / "four"))

    write_pictures(tmp_path / "same", 1)
    for i in range(7):
        Image.open(tmp_path / "same" / "p0.png").save(tmp_path / "same" / f"copy{i}.png")
    with pytest.raises(PistachioError, match="All 8 pictures.*are the same picture"):
        check_trainable(load_folder(tmp_path / "same"))

    write_pictures(tmp_path / "six", 6)
    good = load_folder(tmp_path / "six")
    assert check_trainable(good) == ()
    (tmp_path / "six" / "p3.txt").unlink()
    bare = load_folder(tmp_path / "six")
    with pytest.raises(PistachioError, match=r"1 picture of 6 have no caption: p3\.png"):
        check_trainable(bare)
    with pytest.raises(PistachioError, match="p3.png"):
        check_trainable(bare, trigger_word="ohwx")
    with pytest.raises(PistachioError, match="p3.png"):
        check_trainable(bare, allow_missing_captions=True)
    assert check_trainable(bare, trigger_word="ohwx", allow_missing_captions=True) == ()

    Image.open(tmp_path / "six" / "p0.png").save(tmp_path / "six" / "q.png")
    write_caption(tmp_path / "six" / "q.txt", "again")
    write_caption(tmp_path / "six" / "p3.txt", "back")
    assert check_trainable(load_folder(tmp_path / "six")) == ("1 file repeat another picture and is used once: q.png.",)


@pytest.mark.parametrize(
    "caption, trigger, added, removed",
    [
        ("a man", "ohwx", "ohwx, a man", "a man"),
        ("ohwx, a man", "ohwx", "ohwx, a man", "a man"),
        ("a photo of ohwx standing", "ohwx", "a photo of ohwx standing", "a photo of standing"),
        ("ohwxman in a hat", "ohwx", "ohwx, ohwxman in a hat", "ohwxman in a hat"),
        ("OHWX, a man", "ohwx", "ohwx, OHWX, a man", "a man"),
        ("a man, ohwx, a hat", "ohwx", "a man, ohwx, a hat", "a man, a hat"),
        ("a man", "<ohwx> person", "<ohwx> person, a man", "a man"),
        ("", "ohwx", "ohwx", ""),
        ("a man  in  a hat", "", "a man  in  a hat", "a man  in  a hat"),
        ("x (ohwx) y.", "ohwx", "x (ohwx) y.", "x () y."),
    ],
)
def test_trigger(caption, trigger, added, removed):
    assert with_trigger(caption, trigger) == added
    assert with_trigger(added, trigger) == added
    assert without_trigger(added, trigger) == removed


def test_captions_are_written_atomically(tmp_path):
    path = tmp_path / "a.txt"
    write_caption(path, "  first é ")
    assert path.read_bytes() == "first é\n".encode()
    assert read_caption(path) == "first é"
    write_caption(path, "second")
    assert read_caption(path) == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path):
    (tmp_path / "a.txt").mkdir()  # replacing a folder by a file fails at the last step
    (tmp_path / "a.txt" / "keep").write_text("x")
    with pytest.raises(PistachioError, match="could not be written"):
        atomic_write_bytes(tmp_path / "a.txt", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt" / "keep").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk_words(tmp_path):
    with pytest.raises(OSError) as full, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    assert "The disk is full" in str(write_error(tmp_path / "a", full.value))
    assert "GB free" in str(write_error(tmp_path / "a", full.value))


@pytest.mark.skipif(not os.path.isdir("/sys/kernel"), reason="needs a folder that even root can't write to")
def test_read_only_folder():
    with pytest.raises(PistachioError, match="'/sys/kernel' can't be written to"):
        write_caption(Path("/sys/kernel/a.txt"), "x")


def test_read_only_words(tmp_path):
    error = OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert "can't be written to (Read-only file system)" in str(write_error(tmp_path / "a.txt", error))


def test_stale_temporaries_go_and_young_ones_stay(tmp_path):
    old, young = (tmp_path / f".{n}.00{TEMPORARY_SUFFIX}" for n in "ab")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    assert remove_stale_temporaries(tmp_path) == 1
    assert not old.exists() and young.exists()


def test_picture_record_is_frozen(tmp_path):
    write_pictures(tmp_path, 1)
    picture = load_folder(tmp_path).pictures[0]
    assert replace(picture, caption="x").caption == "x"
    with pytest.raises(AttributeError):
        picture.caption = "x"


def test_a_restart_decodes_nothing_again(tmp_path, monkeypatch):
    """The index is another process's memory: what `_inspect` would find is in it, whatever a kill cut short."""
    from pistachio.dataset import folder as module

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(6):
        Image.new("RGB", (20 + i, 30), (40 * i, 9, 9)).save(pictures / f"{i}.png")
    index = tmp_path / "cache" / "index.jsonl"
    first = load_folder(pictures, index=index)
    assert first == load_folder(pictures)
    whole = index.read_bytes()
    decoded = []
    monkeypatch.setattr(module, "_inspect", lambda *key, real=module._inspect.__wrapped__: decoded.append(Path(key[0]).name) or real(*key))
    assert load_folder(pictures, index=index) == first and decoded == []
    index.write_bytes(whole[:-40])  # killed while it wrote the last line
    assert load_folder(pictures, index=index) == first and decoded == ["5.png"]
    assert load_folder(pictures, index=index) == first and decoded == ["5.png"]
    Image.new("RGB", (99, 30)).save(pictures / "2.png")
    assert load_folder(pictures, index=index).pictures[2].width == 99 and decoded == ["5.png", "2.png"]


def test_a_sidecar_counts_before_the_table_and_the_difference_is_told(tmp_path):
    write_pictures(tmp_path, 5, captions=False)
    (tmp_path / "p0.png").unlink()
    (tmp_path / "captions.json").write_text(json.dumps({"p1.png": ["from the table"], "p2.png": ["from the table"], "p3.png": ["one", "another"]}), encoding="utf-8")
    (tmp_path / "p2.txt").write_text("a person's edit", encoding="utf-8")
    (tmp_path / "p3.txt").write_text("another", encoding="utf-8")
    (tmp_path / "p4.txt").write_text("not in the table", encoding="utf-8")
    dataset = load_folder(tmp_path)
    assert [p.caption for p in dataset.pictures] == ["from the table", "a person's edit", "another", "not in the table"]
    (note,) = [note for note in dataset.notes if "captions.json" in note]
    assert note.startswith("1 picture with another caption in captions.json") and "p2.png" in note and "diffusion-pipe reads captions.json alone" in note
