"""The review of a dataset: marks, captions, conflicts, undo across restarts, and staying inside the folder."""

import json
import os
import shutil

import pytest

from pistachio.dataset.caption_history import CaptionHistory
from pistachio.dataset.caption_rewrite import rewrite_captions
from pistachio.dataset.caption_rules import CaptionRules
from pistachio.dataset.folder import folder_fingerprint, load_folder
from pistachio.dataset.joycaption.needs_review import ReviewEntry, read_needs_review, update_needs_review
from pistachio.dataset.review import MOST_LETTERS, CaptionConflict, Review, apply_review
from pistachio.dataset.review_marks import read_marks
from pistachio.dataset.split import split_dataset
from pistachio.training.errors import PistachioError

from support.pictures import write_folder

A, B, C = (f"picture-0{number}.png" for number in (1, 2, 3))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", 8, size=(40, 40))


def of(folder, name):
    (found,) = [picture for picture in Review(folder).pictures() if picture.name == name]
    return found


def text(folder, name):
    return (folder / name).with_suffix(".txt").read_text(encoding="utf-8").rstrip("\n")


def test_what_is_shown(folder):
    (folder / "picture-02.txt").unlink()
    (folder / "picture-04.txt").unlink()
    (folder / "captions.json").write_text(json.dumps({"picture-04.png": ["of the table"]}))
    (folder / "picture-05.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "picture-06.txt").write_text("x" * (MOST_LETTERS + 1))
    update_needs_review(folder, {C: ReviewEntry(reason="it stops in the middle", caption=text(folder, C))})
    shown = {picture.name: picture for picture in Review(folder).pictures()}
    assert list(shown) == [f"picture-0{number}.png" for number in range(1, 9)]
    assert shown[A].caption == text(folder, A) and not shown[A].is_edited
    assert shown[B].caption is None and shown[B].problem == ""
    assert shown[C].reason == "it stops in the middle"
    assert shown["picture-04.png"].caption == "of the table" and shown["picture-04.png"].is_from_table
    assert "UTF-8" in shown["picture-05.png"].problem
    assert shown["picture-06.png"].is_cut and len(Review(folder).caption("picture-06.png")) == MOST_LETTERS + 1


def test_an_edit_is_a_persons_and_is_never_overwritten_unasked(folder):
    before = text(folder, A)
    (shown,) = Review(folder).save_caption(A, " a caption by hand \r\n", seen=before)
    assert text(folder, A) == shown.caption == "a caption by hand" and shown.is_edited
    written = rewrite_captions(load_folder(folder), CaptionRules(prepend="a drawing"), write=True)
    assert text(folder, A) == "a caption by hand" and text(folder, B).startswith("a drawing, ")
    assert any("picture-01.png" in note for note in written.notes)
    history = CaptionHistory(folder)
    history.restore_before(1, overwrite_edited=True)
    assert text(folder, A) == before and not of(folder, A).is_edited


def test_whose_text_an_undone_edit_leaves(folder):
    """The captioner's is nobody's again, and what a person wrote in another editor stays a person's."""
    path = (folder / A).with_suffix(".txt")
    CaptionHistory(folder).write({path: "by a model"}, by="Caption Dataset")
    Review(folder).save_caption(A, "by hand", seen="by a model")
    Review(folder).undo()
    assert (text(folder, A), of(folder, A).is_edited) == ("by a model", False)
    path.write_text("in an editor", encoding="utf-8")
    Review(folder).save_caption(A, "by hand again", seen="in an editor")
    Review(folder).undo()
    assert (text(folder, A), of(folder, A).is_edited) == ("in an editor", True)


def test_a_caption_that_changed_meanwhile_is_not_overwritten(folder):
    seen = text(folder, A)
    CaptionHistory(folder).write({(folder / A).with_suffix(".txt"): "by the captioner"}, by="Caption Dataset")
    with pytest.raises(CaptionConflict) as caught:
        Review(folder).save_caption(A, "mine", seen=seen)
    assert caught.value.now == "by the captioner" == text(folder, A)
    Review(folder).save_caption(A, "mine", seen="by the captioner")
    assert text(folder, A) == "mine"
    (folder / "picture-02.txt").unlink()
    with pytest.raises(CaptionConflict):
        Review(folder).save_caption(B, "mine", seen="what was there")
    assert not (folder / "picture-02.txt").exists()


def test_undo_and_redo_across_restarts(folder):
    """Every step with a Review of its own, as after a restart."""
    before = text(folder, A)
    update_needs_review(folder, {B: ReviewEntry(reason="odd", caption=text(folder, B))})
    Review(folder).save_caption(A, "one", seen=before)
    Review(folder).mark([A, C], "excluded", True)
    Review(folder).mark([B], "accepted", True)
    Review(folder).mark([B], "held_out", True)
    assert not read_needs_review(folder) and read_marks(folder).excluded == {A, C}
    done = [Review(folder).undo()[1] for _ in range(5)]
    assert done == [f"holding out {B}", f"accepting {B}", f"excluding {A}, {C}", "the caption of picture-01.txt", ""]
    assert text(folder, A) == before and read_needs_review(folder)[B].reason == "odd"
    assert read_marks(folder).excluded == read_marks(folder).held_out == frozenset()
    assert [Review(folder).redo()[1] for _ in range(3)] == done[3::-1][:3]
    assert text(folder, A) == "one" and read_marks(folder).excluded == {A, C} and not read_needs_review(folder)
    Review(folder).save_caption(C, "two", seen=text(folder, C))
    assert Review(folder).steps() == ("the caption of picture-03.txt", "")  # a new step: nothing to redo any more


def test_undo_passes_over_what_something_else_has_overtaken(folder):
    Review(folder).mark([B], "excluded", True)
    Review(folder).save_caption(A, "one", seen=text(folder, A))
    (folder / A).with_suffix(".txt").write_text("written over in an editor")
    assert Review(folder).undo()[1] == f"excluding {B}"
    assert text(folder, A) == "written over in an editor"


def test_a_caption_where_there_was_none_is_undone_to_none(folder):
    (folder / "picture-02.txt").unlink()
    Review(folder).save_caption(B, "  ", seen=None)
    assert not (folder / "picture-02.txt").exists()
    Review(folder).save_caption(B, "now there is one", seen=None)
    Review(folder).undo()
    assert not (folder / "picture-02.txt").exists() and (folder / B).exists()


def test_pictures_of_one_stem_share_their_caption(folder):
    shutil.copy(folder / A, folder / "picture-01.jpg")
    changed = Review(folder).save_caption(A, "both", seen=text(folder, A))
    assert {picture.name: picture.caption for picture in changed} == {A: "both", "picture-01.jpg": "both"}


@pytest.mark.parametrize("name", ["a b.png", "50% \N{SLIGHTLY SMILING FACE} #1?&.png", "two\nlines.png", "'quoted'.png", "sub/in it.png"])
def test_odd_names(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    shutil.copy(folder / A, folder / name)
    Review(folder).save_caption(name, "a caption", seen=None)
    Review(folder).mark([name], "excluded", True)
    assert of(folder, name).caption == "a caption" and of(folder, name).is_excluded
    assert name not in [picture.relative_path for picture in load_folder(folder).pictures]
    assert Review(folder).undo()[1] == f"excluding {name}".replace("\n", "\\n") and not of(folder, name).is_excluded


@pytest.mark.parametrize("name", [
    "../outside.png", "/etc/passwd", "", ".", "sub/../../outside.png", "picture-01.txt", "gone.png", "a\0.png", "linked/picture-01.png",
    "\ud800.png", ".review.json", "x" * 400 + ".png",
])
def test_nothing_outside_the_folder_is_touched(folder, tmp_path, name):
    shutil.copy(folder / A, tmp_path / "outside.png")
    shutil.copytree(folder, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / "linked")
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for change in (lambda: Review(folder).save_caption(name, "x", seen=None), lambda: Review(folder).mark([name], "excluded", True)):
        with pytest.raises(PistachioError):
            change()
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_links_out_of_the_folder_are_neither_read_nor_followed(folder, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("a secret")
    (folder / "picture-02.txt").unlink()
    (folder / "picture-02.txt").symlink_to(secret)
    assert of(folder, B).caption is None and "link" in of(folder, B).problem
    with pytest.raises(PistachioError, match="link"):
        Review(folder).save_caption(B, "x", seen="a secret")
    (tmp_path / "marks.json").write_text("{}")
    (folder / ".review.json").symlink_to(tmp_path / "marks.json")
    with pytest.raises(PistachioError, match="link"):
        Review(folder).mark([A], "excluded", True)
    assert secret.read_text() == "a secret" and (tmp_path / "marks.json").read_text() == "{}"


def test_marks_that_cannot_be_read_stop_the_loading(folder):
    (folder / ".review.json").write_text('{"excluded": ["picture-01.png"')
    with pytest.raises(PistachioError, match="excluded from training"):
        load_folder(folder)


def test_what_is_marked_reaches_training(folder):
    fingerprint, whole = folder_fingerprint(folder), load_folder(folder)
    Review(folder).mark([A], "excluded", True)
    Review(folder).mark([B, C], "held_out", True)
    assert folder_fingerprint(folder) != fingerprint
    for dataset in (load_folder(folder), apply_review(whole)):
        assert len(dataset.pictures) == 7 and dataset.held_out_marks == (B, C)
        assert any(A in note for note in dataset.notes) and any(B in note and C in note for note in dataset.notes)
        split = split_dataset(dataset)
        held_out = {picture.relative_path for picture in dataset.pictures if picture.content_hash in split.split.held_out}
        assert held_out == {B, C} and any("marked in the review" in note for note in split.split.notes)
    assert (folder / A).exists()
    Review(folder).mark([f"picture-0{number}.png" for number in range(1, 9)], "excluded", True)
    for load in (lambda: load_folder(folder), lambda: apply_review(whole)):
        with pytest.raises(PistachioError, match="excluded"):
            load()


def test_a_split_set_loses_its_excluded_pictures(folder):
    whole = split_dataset(load_folder(folder))
    (folder / "picture-02.txt").write_text("a newer caption")
    Review(folder).mark([A], "excluded", True)
    result = apply_review(whole)
    hashes = {picture.content_hash for picture in result.pictures}
    assert {*result.split.train, *result.split.held_out} == hashes and len(hashes) == 7
    assert [picture.caption for picture in result.pictures if picture.relative_path == B] == ["a newer caption"]


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for the superuser")
def test_a_read_only_folder_is_told(folder):
    folder.chmod(0o555)
    try:
        with pytest.raises(PistachioError, match="Allow writing"):
            Review(folder).mark([A], "excluded", True)
    finally:
        folder.chmod(0o755)


def test_large_texts(folder):
    long = "word " * 20_000  # 100 kB
    Review(folder).save_caption(A, long, seen=text(folder, A))
    assert text(folder, A) == long.strip() and of(folder, A).is_cut
    with pytest.raises(PistachioError, match="kB"):
        Review(folder).save_caption(A, "x" * 1_000_001, seen=long.strip())
    for bad in ("a\0b", "half an emoji \ud83d"):
        with pytest.raises(PistachioError, match="UTF-8"):
            Review(folder).save_caption(B, bad, seen=text(folder, B))


@pytest.mark.skipif(os.name == "nt", reason="every name is text there")
def test_a_name_that_is_no_text_is_told_and_nothing_else_suffers(folder):
    try:
        shutil.copy(folder / A, os.fsencode(folder) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this disk refuses such names itself")
    pictures, notes = Review(folder).look()
    assert len(pictures) == 8 and "not UTF-8" in notes[0]
    json.dumps([picture.name for picture in pictures], ensure_ascii=False).encode()
