"""Crops of what was found in a set's pictures: geometry, captions, framing, files, and the split that keeps them together."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pistachio.dataset.caption_checks import BUST, CLOSE_UP, FULL_BODY
from pistachio.dataset.crops import CropSettings, box_of_mask, boxes_of, crop_subjects, framing_of, window, with_framing
from pistachio.dataset.duplicates import source_of
from pistachio.dataset.folder import load_folder
from pistachio.dataset.images import read_rgb
from pistachio.dataset.quality_checks import check_dataset
from pistachio.dataset.split import split_dataset
from pistachio.dataset.types import Box
from pistachio.training.errors import PistachioError

SETTINGS = CropSettings(minimum_size=40, margin=0.5)


def face(height: float, **values) -> Box:
    return Box(left=10, top=10, width=height * 0.8, height=height, kind="face", **values)


@pytest.fixture
def dataset(tmp_path):
    """Six noisy pictures of 200 x 300 with captions."""
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (300, 200, 3), dtype=np.uint8)
        path = tmp_path / ("more" if index == 5 else ".") / f"a {index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"ohwx, full body shot, number {index}", encoding="utf-8")
    return load_folder(tmp_path)


# ---- geometry -----------------------------------------------------------------------------------------------------


def test_the_window_has_a_margin_and_stays_in_the_picture():
    box = Box(left=20, top=100, width=40, height=60)
    assert window(box, 200, 300, 0.0) == (20, 100, 60, 160)
    assert window(box, 200, 300, 0.5) == (0, 70, 80, 190)
    assert window(box, 70, 170, 3.0) == (0, 0, 70, 170)


def test_boxes_are_read_as_the_hosts_detectors_give_them():
    given = [{"x": 1, "y": 2, "width": 3, "height": 4, "label": "face", "score": 0.75}, {"x": 0, "y": 0, "width": 0, "height": 9}]
    assert boxes_of(given, kind="subject", scale=(2.0, 3.0)) == (Box(left=2, top=6, width=6, height=12, kind="face", score=0.75),)
    assert boxes_of(given[0] | {"label": "person"}, kind="face")[0].kind == "subject"
    assert boxes_of([], kind="face") == ()
    for wrong in ("a box", [1, 2], [{"x": 1}]):
        with pytest.raises(PistachioError, match="box"):
            boxes_of(wrong, kind="subject")


def test_a_mask_of_any_size_becomes_its_bounds():
    mask = np.zeros((10, 20), dtype=np.float32)
    mask[3:6, 4:9] = 1.0
    assert box_of_mask(mask, 200, 300, kind="face") == (Box(left=40, top=90, width=50, height=90, kind="face"),)
    assert box_of_mask(mask * 0.4, 200, 300, kind="face") == ()


# ---- framing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boxes, kind", [
    ((), None),
    ((face(500),), CLOSE_UP),
    ((face(200),), BUST),
    ((face(80),), FULL_BODY),
    ((face(80), Box(left=0, top=0, width=300, height=800)), FULL_BODY),
    ((face(80), Box(left=0, top=0, width=300, height=400)), BUST),  # a small figure in a wide scene, seen to the waist
    ((face(80), Box(left=0, top=0, width=200, height=180)), CLOSE_UP),
    ((face(80), face(500)), CLOSE_UP),  # a bystander's face is smaller
    ((Box(left=0, top=100, width=300, height=800),), FULL_BODY),
    ((Box(left=0, top=200, width=300, height=800),), None),  # cut by the lower edge: anything from the waist down may be missing
    ((Box(left=0, top=100, width=700, height=800),), None),
])
def test_framing_is_told_by_face_and_figure(boxes, kind):
    assert framing_of(boxes, 1000, 1000) == kind


@pytest.mark.parametrize("caption, kind, expected", [
    ("ohwx, full body shot, in a park", CLOSE_UP, "ohwx, close-up, in a park"),
    ("A full-length photo of ohwx in a park.", CLOSE_UP, "A close-up of ohwx in a park."),
    ("A close-up of ohwx", BUST, "An upper body shot of ohwx"),
    ("Medium shot of ohwx, full body", CLOSE_UP, "Close-up of ohwx"),
    ("ohwx, in a park", CLOSE_UP, "ohwx, close-up, in a park"),
    ("A man in a park.", CLOSE_UP, "A man in a park, close-up"),
])
def test_the_caption_says_how_the_crop_is_framed(caption, kind, expected):
    assert with_framing(caption, kind) == expected


def test_the_check_says_which_way_framing_was_told(dataset):
    def found(pictures):
        report = check_dataset(replace(dataset, pictures=pictures), trigger_word="ohwx", resolution=128)
        (finding,) = [f for f in report.findings if f.topic == "Framing"]
        return finding, report.facts

    finding, facts = found(dataset.pictures)
    assert finding.words == "By their captions, 6 of 6 pictures are full body." and facts["framing_detected"] == 0
    detected = tuple(replace(picture, boxes=(face(150 if index % 2 else 60),)) for index, picture in enumerate(dataset.pictures))
    finding, facts = found(detected)
    assert finding.words == "By the faces and figures found in them: 3 close-up, 3 half body."
    assert facts["framing"] == {"close-up": 3, "half body": 3, "full body": 0, "unknown": 0} and facts["framing_detected"] == 6
    finding, _ = found((*detected[:4], *dataset.pictures[4:]))
    assert finding.words == "By the faces and figures found in 4 and the captions of 2: 2 close-up, 2 half body, 2 full body."


# ---- files --------------------------------------------------------------------------------------------------------


def test_crops_are_further_pictures_and_the_originals_stay(dataset):
    before = {path: path.read_bytes() for path in dataset.folder.rglob("*") if path.is_file()}
    found = {picture.relative_path: (face(60), Box(left=60, top=60, width=60, height=100)) for picture in dataset.pictures}
    result = crop_subjects(dataset, found, SETTINGS)
    assert len(result.written) == 12 and len(result.dataset.pictures) == 18
    assert {path: path.read_bytes() for path in before} == before
    crop = next(p for p in result.dataset.pictures if p.relative_path == "crops/more/a 5.face1.png")
    assert crop.caption == "ohwx, close-up, number 5" and (crop.width, crop.height) == (82, 100)
    assert np.array_equal(np.asarray(read_rgb(crop.path)), np.asarray(read_rgb(dataset.folder / "more" / "a 5.png").crop((0, 0, 82, 100))))

    reloaded = load_folder(dataset.folder)
    assert {p.relative_path for p in reloaded.pictures} == {p.relative_path for p in result.dataset.pictures}
    again = crop_subjects(reloaded, found, SETTINGS)
    assert again.written == () and len(again.dataset.pictures) == 18 and "earlier run" not in " ".join(again.notes)
    wider = crop_subjects(reloaded, found, replace(SETTINGS, margin=0.2))
    assert wider.written == () and "12 crops of an earlier run with other settings or boxes are kept" in " ".join(wider.notes)


def test_small_and_whole_crops_are_left_out_and_said(dataset):
    names = [picture.relative_path for picture in dataset.pictures]
    found = {names[0]: (face(12),), names[1]: (Box(left=0, top=0, width=200, height=290),)}
    result = crop_subjects(dataset, found, SETTINGS)
    told = " ".join(result.notes)
    assert result.written == () and not (dataset.folder / "crops").exists()
    assert f"smaller than 40 pixels: 1 crop, of {names[0]}" in told and f"nearly the whole picture: 1 crop, of {names[1]}" in told
    assert "found in 2 of 6 pictures" in told


def test_without_a_folder_nothing_is_written_but_what_was_found_goes_on(dataset):
    found = {picture.relative_path: (face(60),) for picture in dataset.pictures}
    result = crop_subjects(dataset, found, replace(SETTINGS, folder=""))
    assert result.written == () and all(picture.boxes == (face(60),) for picture in result.dataset.pictures)
    with pytest.raises(PistachioError, match="no plain folder name"):
        CropSettings(folder="../crops")


def test_a_crop_is_on_the_side_of_its_picture(dataset):
    assert source_of("crops/more/a 5.face1.png") == "more/a 5" == source_of("more/a 5.png")
    found = {picture.relative_path: (face(60),) for picture in dataset.pictures}
    cropped = crop_subjects(dataset, found, SETTINGS).dataset
    split = split_dataset(cropped)
    sides: dict[str, set] = {}
    for picture in split.pictures:
        sides.setdefault(source_of(picture.relative_path), set()).add(picture.content_hash in split.split.held_out)
    assert len(sides) == 6 and all(len(side) == 1 for side in sides.values()) and len(split.split.held_out) == 4
    with pytest.raises(PistachioError, match="split already"):
        crop_subjects(split, found, SETTINGS)


def test_a_crop_folder_that_leads_away_is_refused(dataset, tmp_path_factory):
    (dataset.folder / "crops").symlink_to(tmp_path_factory.mktemp("elsewhere"), target_is_directory=True)
    with pytest.raises(PistachioError, match="leads out of the dataset's folder"):
        crop_subjects(dataset, {dataset.pictures[0].relative_path: (face(60),)}, SETTINGS)
