"""Folders as people have them: changing, damaged, oddly named, read-only, linked, used twice. Each is told clearly, and nothing is lost."""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pistachio.dataset.caption_history import CaptionHistory
from pistachio.dataset.caption_lock import OWNER_FILE, writing_captions
from pistachio.dataset.caption_rewrite import preview_words, rewrite_captions
from pistachio.dataset.caption_rules import CaptionRules
from pistachio.dataset.folder import folder_fingerprint, load_folder, shown_name
from pistachio.dataset.joycaption.captioner import caption_dataset
from pistachio.dataset.joycaption.model import Generated
from pistachio.dataset.joycaption.prompts import CaptionRequest
from pistachio.dataset.leak_words import DEFAULT_LEAK_LIST, read_leak_list
from pistachio.dataset.quality_checks import check_dataset
from pistachio.dataset.score_card import draw_score_card
from pistachio.dataset.split import split_dataset, write_folders
from pistachio.training.errors import PistachioError

REQUEST = CaptionRequest()
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a second process of the same state")


class Says:
    """A captioner that says the red of a picture's first pixel, and first does what it is told to at each batch."""

    kind, is_loaded = "beta-one", True

    def __init__(self, meanwhile=lambda batch: None, most_at_once=None):
        self.meanwhile, self.most_at_once, self.batches = meanwhile, most_at_once, 0

    def prepare(self, image):
        return image

    def generate(self, images, request, *, seed=None, check_interrupted=None):
        self.meanwhile(self.batches)
        self.batches += 1
        return [Generated(text=f"A woman in a room of red {image.getpixel((0, 0))[0]}.", num_tokens=9, finished=True) for image in images]

    def free(self):
        pass


def picture(path, red, size=(24, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(red).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0, 0] = red
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    for number in range(1, 9):
        picture(tmp_path / f"p{number}.png", number)
    return tmp_path


def text(path):
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


# ---- a folder that changes while it is captioned ---------------------------------------


def test_pictures_that_go_come_and_change_while_the_folder_is_captioned(folder):
    picture(folder / "sub" / "q1.png", 50)
    dataset = load_folder(folder)

    def meanwhile(batch):
        if batch == 0:  # p1 is with the captioner
            (folder / "p1.png").unlink()
            picture(folder / "p9.png", 9)
            (folder / "p4.txt").write_text("a person's own words", encoding="utf-8")
            (folder / "p5.txt").write_bytes(b"\xff\xfe not UTF-8")
            os.replace(folder / "p9.png", folder / "p9-renamed.png")
        if batch == 5:
            picture(folder / "p8.png", 88)
            for file in (folder / "sub").iterdir():
                file.unlink()
            (folder / "sub").rmdir()

    result = caption_dataset(dataset, Says(meanwhile), REQUEST, batch_size=1, trigger_word="ohwx")
    told = " ".join(result.notes)
    assert text(folder / "p1.txt") is None and "'p1.png': the picture was removed meanwhile" in told, "no caption without its picture"
    assert [text(folder / f"p{n}.txt") for n in (2, 3, 6, 7)] == [f"ohwx, A woman in a room of red {n}." for n in (2, 3, 6, 7)]
    assert text(folder / "p4.txt") == "a person's own words" and "p4.png got a caption from someone else meanwhile" in told
    assert (folder / "p5.txt").read_bytes() == b"\xff\xfe not UTF-8" and "p5.txt' is not UTF-8" in told
    assert not (folder / "sub").exists() and "sub/q1.png" in told, "a folder that went away is not made again"
    assert text(folder / "p9-renamed.txt") is None, "what came later is for the next time"
    by_name = {p.relative_path: p.caption for p in result.pictures}
    assert by_name["p4.png"] == "a person's own words" and by_name["p1.png"] is None

    (folder / "p5.txt").unlink()
    again = caption_dataset(load_folder(folder), Says(), REQUEST, trigger_word="ohwx")
    assert {p.relative_path: p.caption for p in again.pictures}["p9-renamed.png"] == "ohwx, A woman in a room of red 9."
    assert text(folder / "p4.txt") == "a person's own words" and all(p.caption for p in again.pictures)


def test_a_picture_replaced_before_its_turn_is_captioned_as_it_is_now(folder):
    """Far enough behind not to be read ahead."""
    for number in range(10, 40):
        picture(folder / f"p{number}.png", number)
    dataset = load_folder(folder)
    caption_dataset(dataset, Says(lambda batch: batch == 0 and picture(folder / "p39.png", 139)), REQUEST, batch_size=1)
    assert text(folder / "p39.txt") == "A woman in a room of red 139."


def test_a_caption_that_appears_in_the_last_moment_is_kept(folder, monkeypatch):
    """Between the last look at the file and the writing."""
    dataset = load_folder(folder)
    write = CaptionHistory.write

    def late(self, texts, **values):
        (folder / "p3.txt").write_text("in the last moment", encoding="utf-8")
        return write(self, texts, **values)

    monkeypatch.setattr(CaptionHistory, "write", late)
    result = caption_dataset(dataset, Says(), REQUEST)
    assert text(folder / "p3.txt") == "in the last moment" and "p3.png got a caption from someone else" in " ".join(result.notes)
    assert {p.relative_path: p.caption for p in result.pictures}["p3.png"] == "in the last moment"


def test_a_captioner_that_answers_one_by_one_saves_one_by_one(folder):
    class Cancelled(Exception):
        pass

    def cancel(batch):
        if batch == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        caption_dataset(load_folder(folder), Says(cancel, most_at_once=1), REQUEST, batch_size=8)
    assert [text(folder / f"p{n}.txt") is not None for n in range(1, 9)] == [True] * 3 + [False] * 5


# ---- files -------------------------------------------------------------------------------


def test_files_of_0_bytes(folder):
    for name in ("zero.png", "zero.jpg", "zero.webp"):
        (folder / name).write_bytes(b"")
    (folder / "p1.txt").write_bytes(b"")
    dataset = load_folder(folder)
    assert len(dataset.pictures) == 8 and {s.relative_path for s in dataset.skipped} == {"zero.png", "zero.jpg", "zero.webp"}
    assert all("empty" in s.reason or "0 bytes" in s.reason for s in dataset.skipped)
    caption_dataset(dataset, Says(), REQUEST)
    assert text(folder / "p1.txt") == "A woman in a room of red 1.", "an empty caption is none"
    (folder / "captions.json").write_bytes(b"")
    with pytest.raises(PistachioError, match="captions.json' can't be used"):
        load_folder(folder)


NAMES = ("a b.png", " leading and trailing .png", "\U0001f600 \U0001f468\u200d\U0001f469\u200d\U0001f467.png", "line\nbreak.png", "tab\tand 'quotes\".png", "100% {name} <b>&.png", "日本 ñ.png", "x" * 200 + ".png")


def test_names_with_blanks_emoji_and_line_breaks_go_all_the_way(tmp_path):
    folder = tmp_path / "my set\n\U0001f600"
    for number, name in enumerate(NAMES, 1):
        picture(folder / name, number)
    captioned = caption_dataset(load_folder(folder), Says(), REQUEST, trigger_word="ohwx")
    assert len(captioned.pictures) == len(NAMES) and all((folder / name).with_suffix(".txt").is_file() for name in NAMES)
    ruled = rewrite_captions(load_folder(folder), CaptionRules(trigger_word="ohwx", class_noun="woman", append="indoors"), write=True, captions_json=True)
    assert set(json.loads((folder / "captions.json").read_text(encoding="utf-8"))) == set(NAMES)
    assert "line\\nbreak.png\n  was: ohwx, A woman" in preview_words(ruled)
    again = load_folder(folder)
    assert all(p.caption.endswith("indoors") for p in again.pictures) and not again.skipped
    report = check_dataset(again, trigger_word="ohwx", resolution=64)
    assert draw_score_card(report, again).width > 0 and json.loads(report.to_json())
    split = split_dataset(again)
    train, held_out = write_folders(split, tmp_path / "written")
    copied = {path.name for root in (train, held_out) for path in root.iterdir() if path.suffix == ".png"}
    assert copied == set(NAMES)
    history = CaptionHistory(folder)
    history.restore_before(1)
    assert not any((folder / name).with_suffix(".txt").exists() for name in NAMES)
    assert shown_name("line\nbreak.png") == "line\\nbreak.png" and shown_name(NAMES[2]) == NAMES[2]


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname == "Darwin", reason="these disks allow no such names")
def test_a_name_that_is_not_utf8_is_left_out_and_told(folder):
    picture(folder / "ok.png", 60)
    os.replace(os.fsencode(folder / "ok.png"), os.fsencode(folder) + b"/bad\xff.png")
    dataset = load_folder(folder)
    (skipped,) = dataset.skipped
    assert skipped.relative_path == "bad\\udcff.png" and "Rename it" in skipped.reason and json.dumps([*dataset.notes]).encode()
    assert folder_fingerprint(folder) and len(caption_dataset(dataset, Says(), REQUEST).pictures) == 8


def test_captions_of_100_kb(folder):
    sentence = "A woman with long red hair and (green:1.2) eyes sits at a table in a cafe, {} of them are blue. "
    long = "".join(sentence.format(n) for n in range(1100))
    tags = ", ".join(f"tag {n % 3000}" for n in range(9000))
    assert len(long) > 100_000 and len(tags) > 80_000
    (folder / "p1.txt").write_text(long, encoding="utf-8")
    (folder / "p2.txt").write_text(tags, encoding="utf-8")
    started = time.monotonic()
    rules = CaptionRules(trigger_word="ohwx", class_noun="woman", leaks=read_leak_list(DEFAULT_LEAK_LIST), append="end", dedupe_tags=True)
    result = rewrite_captions(load_folder(folder), rules, write=True, captions_json=True)
    assert len(preview_words(result)) < 30_000
    again = load_folder(folder)
    assert again.pictures[0].caption.count("sits at a table") == 1100 and "hair" not in again.pictures[0].caption
    assert again.pictures[1].caption.count("tag ") == 3000
    report = check_dataset(again, trigger_word="ohwx", resolution=64)
    draw_score_card(report, again)
    split_dataset(again)
    assert time.monotonic() - started < 60
    assert CaptionHistory(folder).restore_before(1).changed and text(folder / "p1.txt") == long.strip()


# ---- links ---------------------------------------------------------------------------------


def test_links_out_of_the_allowed_folders_are_left_out_and_those_inside_are_read(tmp_path):
    inside, outside = tmp_path / "input" / "set", tmp_path / "private"
    for number in range(1, 7):
        picture(inside / f"p{number}.png", number)
    secret = picture(outside / "secret.png", 70)
    (outside / "secret.txt").write_text("a secret", encoding="utf-8")
    shared = picture(tmp_path / "input" / "other" / "shared.png", 80)
    (inside / "out.png").symlink_to(secret)
    (inside / "in.png").symlink_to(shared)
    (inside / "p1.txt").symlink_to(outside / "secret.txt")
    (inside / "circle.png").symlink_to(inside / "circle.png")
    (inside / "gone.png").symlink_to(outside / "gone.png")
    roots = (tmp_path / "input",)
    dataset = load_folder(inside, roots=roots)
    reasons = {s.relative_path: s.reason for s in dataset.skipped}
    assert set(reasons) == {"out.png", "p1.png", "circle.png", "gone.png"}
    assert "'p1.txt' is a link that leads out" in reasons["p1.png"] and "'out.png' is a link that leads out" in reasons["out.png"]
    caption_dataset(dataset, Says(), REQUEST, overwrite=True, overwrite_edited=True)
    assert text(outside / "secret.txt") == "a secret" and text(inside / "in.txt") and not (tmp_path / "input" / "other" / "shared.txt").exists()
    (inside / "captions.json").symlink_to(outside / "secret.txt")
    with pytest.raises(PistachioError, match="captions.json' is a link that leads out"):
        load_folder(inside, roots=roots)


# ---- folders that can't be written -----------------------------------------------------------


def in_child(work) -> str:
    """What `work` returns in a process of its own that may not write where root may."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.seteuid(65534)
            answer = str(work())
        except BaseException as error:  # to the parent, whatever it is
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


@needs_fork
def test_a_read_only_folder_can_be_used_and_says_what_it_lacks():
    with tempfile.TemporaryDirectory() as base:  # pytest's own folders are closed to others
        os.chmod(base, 0o755)
        folder = Path(base) / "set"
        for number in range(1, 7):
            picture(folder / f"p{number}.png", number)
        (folder / "p1.txt").write_text("a person's own words", encoding="utf-8")
        os.chmod(folder, 0o555)
        dataset = load_folder(folder)
        captioner = Says()
        told = in_child(lambda: caption_dataset(dataset, captioner, REQUEST))
        assert told.startswith("PistachioError") and "can't be written to" in told and str(folder) in told
        assert "can't be written to" in in_child(lambda: rewrite_captions(dataset, CaptionRules(trigger_word="ohwx"), write=True))
        assert in_child(lambda: rewrite_captions(dataset, CaptionRules(trigger_word="ohwx")).captions[0].after) == "ohwx, a person's own words"
        os.chmod(folder, 0o755)
        for number in range(2, 7):
            (folder / f"p{number}.txt").write_text("captioned", encoding="utf-8")
        os.chmod(folder, 0o555)
        whole = load_folder(folder)
        assert "6 pictures already have captions" in in_child(lambda: caption_dataset(whole, captioner, REQUEST).notes), "nothing to write is no error"
        assert sorted(path.name for path in folder.iterdir() if path.suffix == ".txt") == [f"p{n}.txt" for n in range(1, 7)]
        os.chmod(folder, 0o755)


def test_something_else_in_place_of_a_file(folder):
    (folder / "p2.txt").mkdir()
    with pytest.raises(PistachioError, match="p2.txt' can't be read"):
        load_folder(folder)
    (folder / "p2.txt").rmdir()
    (folder / ".pistachio").write_text("a file where a folder should be")
    captioner = Says()
    with pytest.raises(PistachioError, match=r"\.pistachio"):
        caption_dataset(load_folder(folder), captioner, REQUEST)
    assert captioner.batches == 0 and not list(folder.glob("*.txt"))


# ---- two captioners ---------------------------------------------------------------------------


def test_a_second_captioner_is_told_who_is_at_it_and_the_first_goes_on(folder):
    dataset, told = load_folder(folder), []

    def second(batch):
        for job in (
            lambda: caption_dataset(dataset, Says(), REQUEST, batch_size=1),
            lambda: rewrite_captions(load_folder(folder), CaptionRules(trigger_word="zwx"), write=True),
        ):
            with pytest.raises(PistachioError, match="are being written by") as caught:
                job()
            told.append(str(caught.value))

    captioned = caption_dataset(dataset, Says(second), REQUEST, batch_size=4)
    assert len(told) == 4 and all(f"Caption Dataset (process {os.getpid()} on " in words and "queue again" in words for words in told)
    assert [p.caption for p in captioned.pictures] == [f"A woman in a room of red {n}." for n in range(1, 9)]
    assert not (folder / ".pistachio" / OWNER_FILE).exists()
    assert caption_dataset(load_folder(folder), Says(), REQUEST).notes[-1].startswith("8 pictures already have captions")


@needs_fork
def test_the_lock_of_a_process_that_died_is_taken_over(folder, caplog):
    caplog.set_level("INFO")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with writing_captions(folder, by="Caption Dataset"):
            os.write(writing, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    try:
        with pytest.raises(PistachioError, match=f"Caption Dataset \\(process {child} on "):
            caption_dataset(load_folder(folder), Says(), REQUEST)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
    assert (folder / ".pistachio" / OWNER_FILE).exists(), "it had no time to tidy up"
    result = caption_dataset(load_folder(folder), Says(), REQUEST)
    assert "8 pictures captioned." in result.notes and f"process {child}" in caplog.text and "taken over" in caplog.text


# ---- many pictures ------------------------------------------------------------------------------


def test_hundreds_of_pictures_go_all_the_way_in_flat_memory(tmp_path):
    """The sets that people have are larger by a factor of ten; each step takes the same time for each picture."""
    resource = pytest.importorskip("resource")
    for number in range(300):
        Image.new("RGB", (64, 64), (number % 256, number // 256, number * 7 % 256)).save(tmp_path / f"p{number}.bmp")
    index = tmp_path / ".index.jsonl"
    loaded = load_folder(tmp_path, index=index)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    captioned = caption_dataset(loaded, Says(), REQUEST, batch_size=16, trigger_word="ohwx")
    again = caption_dataset(load_folder(tmp_path, index=index), Says(), REQUEST, trigger_word="ohwx")
    assert again.notes[-1].startswith("300 pictures already have captions: kept; the captioner was not loaded")
    assert [p.caption for p in again.pictures] == [p.caption for p in captioned.pictures]
    ruled = rewrite_captions(again, CaptionRules(trigger_word="ohwx", class_noun="woman"), write=True, captions_json=True)
    assert len(ruled.written.changed) == 301 and len(preview_words(ruled)) < 10_000
    report = check_dataset(ruled.dataset, trigger_word="ohwx", resolution=64)
    draw_score_card(report, ruled.dataset)
    split = split_dataset(ruled.dataset).split
    assert len(split.train) + len(split.held_out) == 300
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000, f"{grown_kb} kB more for 300 pictures"
