"""The history of caption files: whose text it is, going back, kills halfway, and staying inside the folder."""

import json
import os

import pytest

from pistachio.dataset.caption_history import CaptionHistory, history_words
from pistachio.dataset.captions import read_caption, write_caption
from pistachio.dataset.folder import load_folder
from pistachio.training.errors import PistachioError

from support import pictures


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a b 🙂.txt"
    write_caption(path, "first")
    return path


def texts(*paths):
    return [read_caption(path) for path in paths]


def test_old_texts_come_back_and_going_back_can_be_gone_back_on(tmp_path, file):
    new = tmp_path / "sub" / "new.txt"
    new.parent.mkdir()
    CaptionHistory(tmp_path).write({file: "second", new: "made"}, by="Caption Rules")
    CaptionHistory(tmp_path).write({file: "third"}, by="Caption Rules")
    assert texts(file, new) == ["third", "made"]
    for _ in range(2):  # the same request again changes nothing
        written = CaptionHistory(tmp_path).restore_before(2)
        assert texts(file, new) == ["second", "made"]
    assert written.number is None
    CaptionHistory(tmp_path).restore_before(1)
    assert texts(file, new) == ["first", None] and not new.exists()
    CaptionHistory(tmp_path).restore_before(4)
    assert texts(file, new) == ["second", "made"]
    lines = list(history_words(CaptionHistory(tmp_path)))
    assert len(lines) == 5 and lines[0].startswith("Change 1,") and lines[0].endswith("Caption Rules: 2 files.") and "going back" in lines[2]
    with pytest.raises(PistachioError, match="no change 9"):
        CaptionHistory(tmp_path).restore_before(9)


def test_a_persons_edit_is_left_alone_by_writing_and_by_going_back(tmp_path, file):
    CaptionHistory(tmp_path).write({file: "ours"}, by="Caption Dataset")
    assert not CaptionHistory(tmp_path).is_edited(file, "ours")
    write_caption(file, "theirs")
    history = CaptionHistory(tmp_path)
    assert history.is_edited(file, "theirs") and not history.is_edited(tmp_path / "other.txt", "found")
    assert history.write({file: "again ours"}, by="Caption Dataset").edited == (file.name,)
    assert history.restore_before(1).edited == (file.name,)
    assert texts(file) == ["theirs"] and history.last_number == 1
    assert history.restore_before(1, overwrite_edited=True).changed == (file.name,)
    assert texts(file) == ["first"]
    assert CaptionHistory(tmp_path).by_number()[2][0].before == "theirs", "what was overwritten can come back"


def test_a_text_nobody_is_known_to_have_edited_is_written(tmp_path, file):
    assert CaptionHistory(tmp_path).write({file: "new"}, by="Caption Rules").changed == (file.name,)


def test_a_kill_between_the_history_and_the_file(tmp_path, file, monkeypatch):
    history = CaptionHistory(tmp_path)
    monkeypatch.setattr("pistachio.dataset.caption_history.atomic_write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        history.write({file: "second"}, by="Caption Rules")
    monkeypatch.undo()
    after = CaptionHistory(tmp_path)
    assert texts(file) == ["first"] and not after.is_edited(file, "first")
    assert after.write({file: "second"}, by="Caption Rules").changed == (file.name,)


def test_a_torn_line_costs_only_itself(tmp_path, file):
    history = CaptionHistory(tmp_path)
    history.write({file: "second"}, by="Caption Rules")
    whole = history.path.read_bytes()
    history.path.write_bytes(whole + b'\n{"number": 2, "file": "a b')
    torn = CaptionHistory(tmp_path)
    assert torn.last_number == 1
    torn.write({file: "third"}, by="Caption Rules")
    assert [change.after for change in CaptionHistory(tmp_path).changes] == ["second", "third"]


def test_two_writers_lose_nothing(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(6)]
    one, two = CaptionHistory(tmp_path), CaptionHistory(tmp_path)
    for i, path in enumerate(paths):
        (one if i % 2 else two).write({path: f"text {i}" * 500}, by="Caption Dataset")
    assert {change.file for change in CaptionHistory(tmp_path).changes} == {path.name for path in paths}


def test_it_stays_in_the_folder(tmp_path):
    inside, outside = tmp_path / "set", tmp_path / "outside"
    inside.mkdir(), outside.mkdir()
    secret = outside / "secret.txt"
    write_caption(secret, "not ours")
    (inside / "link.txt").symlink_to(secret)
    CaptionHistory(inside).write({inside / "link.txt": "ours"}, by="Caption Rules")
    assert read_caption(secret) == "not ours" and read_caption(inside / "link.txt") == "ours"
    history = CaptionHistory(inside)
    line = json.loads(history.path.read_text(encoding="utf-8"))
    history.path.write_text(json.dumps(line | {"file": "../outside/secret.txt"}), encoding="utf-8")
    with pytest.raises(PistachioError, match="not in"):
        CaptionHistory(inside).restore_before(1)
    assert read_caption(secret) == "not ours"
    history.path.unlink(), history.path.parent.rmdir()
    history.path.parent.symlink_to(outside, target_is_directory=True)
    with pytest.raises(PistachioError, match="is a link"):
        CaptionHistory(inside)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="a folder can be made read-only for this user")
def test_a_read_only_folder_is_told(tmp_path, file):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PistachioError, match="can't be written"):
            CaptionHistory(tmp_path).write({file: "second"}, by="Caption Rules")
    finally:
        tmp_path.chmod(0o700)
    assert texts(file) == ["first"]


def test_the_history_is_no_picture(tmp_path):
    folder = pictures.write_folder(tmp_path / "set", 3)
    CaptionHistory(folder).write({folder / "picture-01.txt": "new"}, by="Caption Rules")
    assert len(load_folder(folder).pictures) == 3


def test_a_cancel_keeps_what_is_written_and_it_can_be_taken_back(tmp_path):
    paths = [tmp_path / f"{i}.txt" for i in range(4)]
    calls = iter([None, None, KeyboardInterrupt()])

    def cancel():
        stop = next(calls)
        if stop:
            raise stop

    with pytest.raises(KeyboardInterrupt):
        CaptionHistory(tmp_path).write({path: "new" for path in paths}, by="Caption Rules", check_interrupted=cancel)
    assert [path.exists() for path in paths] == [True, True, False, False]
    CaptionHistory(tmp_path).restore_before(1)
    assert not any(path.exists() for path in paths)
