"""The checks before training: measures against known degradations, every finding provoked, the JSON and the score card."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pistachio.dataset.caption_checks import BUST, CLOSE_UP, FULL_BODY, framing
from pistachio.dataset.findings import GOOD, NOTE, STOP, WARNING, Finding, Report
from pistachio.dataset.folder import load_folder
from pistachio.dataset.picture_quality import jpeg_quality, measure, measure_file
from pistachio.dataset.quality_checks import Machine, check_dataset, check_encoded
from pistachio.dataset.score_card import draw_score_card
from pistachio.dataset.split import split_dataset
from pistachio.dataset.types import EncodedDataset, EncodedItem

SIZE = 256


def scene(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """Textures of several sizes with hard edges and some noise, as photographs have."""
    generator = np.random.default_rng(seed)
    width, height = size
    values = np.zeros((height, width, 3), dtype=np.float64)
    for cells, weight in ((4, 60), (16, 30), (64, 16)):
        grid = generator.normal(0, 1, (cells, cells, 3))
        for channel in range(3):
            layer = Image.fromarray(grid[..., channel].astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
            values[..., channel] += weight * np.asarray(layer)
    for _ in range(14):
        x, y, side = generator.integers(0, width - 20), generator.integers(0, height - 20), generator.integers(10, max(20, width // 4))
        values[y : y + side, x : x + side] = generator.uniform(-100, 100, 3)
    values += generator.normal(0, 2, values.shape)
    return Image.fromarray(np.clip(values + 128, 0, 255).astype(np.uint8))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    """The pixels of a JPEG, as a PNG made from it has them."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


@pytest.mark.parametrize("seed", range(3))
def test_blur_is_measured_in_pixels(seed):
    image = scene(seed)
    measured = [measure(image.filter(ImageFilter.GaussianBlur(sigma)), 1024).blur_px for sigma in (0, 1, 2, 3, 5)]
    assert measured == sorted(measured), measured
    assert measured[0] < 0.6 and 1.4 < measured[3] < 3.5
    assert not measure(image, 1024).is_blurred and not measure(image.filter(ImageFilter.GaussianBlur(1)), 1024).is_blurred
    assert measure(image.filter(ImageFilter.GaussianBlur(3)), 1024).is_blurred


def test_a_blurred_background_is_no_fault():
    image = scene(0)
    behind = image.filter(ImageFilter.GaussianBlur(6))
    behind.paste(image.crop((64, 64, 192, 192)), (64, 64))
    assert not measure(behind, 1024).is_blurred


def test_blur_that_training_does_not_see_is_none():
    large = scene(0, (512, 512)).filter(ImageFilter.GaussianBlur(3))
    assert measure(large, 512).is_blurred and not measure(large, 128).is_blurred


def test_an_even_picture_has_nothing_to_measure():
    assert measure(Image.new("RGB", (64, 64), (90, 90, 90)), 64).blur_px is None
    assert not measure(Image.new("RGB", (8, 8)), 64).is_over_compressed


@pytest.mark.parametrize("seed", range(3))
def test_strong_compression_shows_in_the_pixels(seed):
    image = scene(seed)
    assert not measure(image, 1024).is_over_compressed
    assert not measure(recompressed(image, 95), 1024).is_over_compressed
    assert measure(recompressed(image, 10), 1024).is_over_compressed
    assert measure(recompressed(image, 10).crop((3, 5, 243, 245)), 1024).is_over_compressed, "wherever it was cropped"
    weak, strong = (measure(recompressed(image, quality), 1024).block_share for quality in (95, 10))
    assert strong > weak + 0.15


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 95])
def test_a_jpeg_says_its_own_quality(tmp_path, quality):
    scene(0).save(tmp_path / "a.jpg", quality=quality)
    scene(0).save(tmp_path / "a.png")
    assert jpeg_quality(tmp_path / "a.jpg") == quality and jpeg_quality(tmp_path / "a.png") is None
    assert measure_file(tmp_path / "a.jpg", 1024).is_over_compressed or quality > 30


@pytest.mark.parametrize("caption, kind", [
    ("a close-up of a woman", CLOSE_UP), ("medium close-up shot", BUST), ("full-body photo", FULL_BODY), ("a medium wide shot of a man", FULL_BODY),
    ("portrait of a man", BUST), ("headshot portrait", CLOSE_UP), ("a woman in a park", None),
])
def test_framing_is_read_from_the_caption(caption, kind):
    assert framing(caption) == kind


# ---- a whole set ---------------------------------------------------------------------

PLACES = ("a park", "an office", "a cafe", "a street", "a field", "a kitchen", "a train", "a harbour", "a library", "a garden", "a tunnel", "a stadium", "a shop", "a hall", "a tent", "a boat")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawn")
    for i, place in enumerate(PLACES):
        scene(i).save(path / f"{i:02d}.png")
        (path / f"{i:02d}.txt").write_text(f"ohwx woman, {'close-up' if i % 2 else 'full body shot'} in {place}", encoding="utf-8")
    return path


@pytest.fixture
def folder(drawn, tmp_path):
    """16 good pictures of the training size, with captions that differ."""
    return Path(shutil.copytree(drawn, tmp_path / "set"))


def found(folder, code, **options):
    report = check_dataset(load_folder(folder), **{"resolution": SIZE, "class_noun": "woman", "trigger_word": "ohwx"} | options)
    return next((finding for finding in report.findings if finding.code == code), None)


def test_a_good_set_is_ready(folder):
    plenty = Machine(free_disk_bytes=10**12, device_bytes=48 * 10**9, model_bytes=12 * 10**9, lora_bytes=10**8)
    report = check_dataset(load_folder(folder), trigger_word="ohwx", class_noun="woman", resolution=SIZE, machine=plenty)
    assert report.verdict == "Ready to train" and {f.severity for f in report.findings} == {GOOD}, report.sentences
    assert len({f.code for f in report.findings}) == len(report.findings) == 16
    assert report.sentences == ("Ready to train. 16 of 16 checks are good.",)
    assert report.facts["train"] == 12 and report.facts["held_out"] == 4 and report.facts["steps"] == 1200


def test_pictures_that_are_bad(folder):
    bad = scene(50)
    bad.filter(ImageFilter.GaussianBlur(4)).save(folder / "blurred.png")
    bad.save(folder / "pressed.jpg", quality=8)
    scene(51, (96, 96)).save(folder / "tiny.png")
    scene(52, (180, 200)).save(folder / "small.png")
    scene(53, (800, 200)).save(folder / "long.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").write_bytes(b"")
    report = check_dataset(load_folder(folder), trigger_word="ohwx", class_noun="woman", resolution=SIZE)
    findings = {finding.code: finding for finding in report.findings}
    for code, severity, names in (
        ("blurred", WARNING, {"blurred.png"}), ("over_compressed", WARNING, {"pressed.jpg"}), ("tiny", WARNING, {"tiny.png"}),
        ("long_shapes", NOTE, {"long.png"}), ("unreadable", WARNING, {"broken.png", "empty.png"}), ("near_duplicates", NOTE, {"blurred.png", "pressed.jpg"}),
        ("no_caption", STOP, {"blurred.png", "pressed.jpg", "tiny.png", "small.png", "long.png"}),
    ):
        finding = findings[code]
        assert finding.severity == severity and set(finding.pictures) == names, finding
        assert finding.words and (finding.advice or code == "unreadable")
    (folder / "tiny.png").unlink()
    assert set(found(folder, "small").pictures) == {"small.png"}


def test_captions_that_teach_the_wrong_thing(folder):
    for path in folder.glob("*.txt"):
        path.write_text(f"{path.read_text(encoding='utf-8')} with a red scarf, smiling.", encoding="utf-8")
    finding = found(folder, "same_words")
    assert finding.severity == WARNING and "'red'" in finding.words and "'scarf'" in finding.words and "every caption" in finding.words
    for path in folder.glob("*.txt"):
        path.write_text("a woman, close-up", encoding="utf-8")
    assert found(folder, "same_captions").severity == WARNING
    assert len(found(folder, "without_trigger").pictures) == 16
    assert found(folder, "no_trigger", trigger_word="").severity == WARNING
    assert found(folder, "one_framing").advice == "The LoRA will be weak at half body and full body. Add some of those."
    for path in folder.glob("*.txt"):
        path.write_text("woman", encoding="utf-8")
    assert len(found(folder, "short_captions").pictures) == 16
    assert found(folder, "framing_unknown").severity == NOTE
    for path in folder.glob("*.txt"):
        path.write_text(f"{path.stem} word" * 150, encoding="utf-8")
    assert len(found(folder, "long_captions").pictures) == 16


@pytest.mark.parametrize("count, code, severity", [(4, "too_few", STOP), (9, "few", WARNING), (12, "rather_few", NOTE)])
def test_too_few_pictures(folder, count, code, severity):
    for i in range(count, 16):
        (folder / f"{i:02d}.png").unlink()
    assert found(folder, code).severity == severity


def test_steps_disk_and_memory(folder):
    assert found(folder, "few_steps", num_steps=100).severity == WARNING
    assert found(folder, "many_steps", num_steps=100_000).severity == NOTE
    assert "1200 steps (automatic) at batch size 1 show each of 12 pictures about 100 times" in found(folder, "steps").words
    assert found(folder, "disk_full", machine=Machine(free_disk_bytes=10**8)).severity == WARNING
    assert found(folder, "disk_unknown").severity == NOTE
    small = Machine(free_disk_bytes=10**12, device_bytes=8 * 10**9, model_bytes=12 * 10**9)
    assert "12.0 GB" in found(folder, "memory_small", machine=small).words
    tight = Machine(free_disk_bytes=10**12, device_bytes=13 * 10**9, model_bytes=12 * 10**9)
    assert found(folder, "memory_tight", machine=tight).severity == NOTE
    assert found(folder, "memory") is None, "without a model nothing is claimed about memory"


def test_the_json_holds_it_all(folder):
    report = check_dataset(load_folder(folder), resolution=SIZE)
    values = json.loads(report.to_json())
    assert values["verdict"] == report.verdict and len(values["findings"]) == len(report.findings)
    assert all(set(finding) == {"code", "topic", "severity", "words", "advice", "pictures"} for finding in values["findings"])
    assert values["facts"]["shapes"] == {"portrait": 0, "square": 16, "landscape": 0}


def test_the_score_card_shows_every_finding(folder):
    (folder / "broken.png").write_bytes(b"no picture")
    dataset = split_dataset(load_folder(folder))
    report = check_dataset(dataset, trigger_word="ohwx", resolution=SIZE)
    card = draw_score_card(report, dataset)
    assert card.mode == "RGB" and card.width == 900 and card.height > 500
    worse = Report(findings=(*report.findings, Finding(code="x", topic="X", severity=STOP, words="words " * 60, advice="advice " * 40, pictures=("00.png",))), facts=report.facts)
    taller = draw_score_card(worse, dataset)
    assert taller.height > card.height + 150
    red = (np.abs(np.asarray(taller, dtype=int) - (182, 52, 44)).sum(-1) < 12).sum()
    assert red > 500 > (np.abs(np.asarray(card, dtype=int) - (182, 52, 44)).sum(-1) < 12).sum()


def test_a_cancel_ends_the_check(folder):
    class Cancelled(Exception):
        pass

    calls = []

    def cancel():
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    done = []
    with pytest.raises(Cancelled):
        check_dataset(load_folder(folder), resolution=SIZE, progress=lambda now, total: done.append((now, total)), check_interrupted=cancel)
    assert done == [(1, 16), (2, 16)]


def test_a_picture_that_goes_away_meanwhile_is_named(folder):
    dataset = load_folder(folder)
    (folder / "03.png").unlink()
    report = check_dataset(dataset, resolution=SIZE)
    (finding,) = [finding for finding in report.findings if finding.code == "unreadable"]
    assert finding.pictures == ("03.png",)


def test_a_name_as_long_as_the_card_fits(folder):
    (folder / "00.png").rename(folder / ("a" * 200 + ".png"))
    dataset = load_folder(folder)
    assert draw_score_card(check_dataset(dataset, resolution=SIZE), dataset).width == 900


def test_the_short_form_for_training(folder):
    dataset = split_dataset(load_folder(folder))

    def item(picture):
        return EncodedItem(
            content_hash=picture.content_hash, relative_path=picture.relative_path, caption=picture.caption, prior_caption="", width=SIZE, height=SIZE,
            latent_path=folder / "x", caption_path=folder / "x", prior_path=folder / "x", held_out=picture.content_hash in dataset.split.held_out,
        )

    def encoded(pictures):
        return EncodedDataset(items=tuple(map(item, pictures)), trigger_word="ohwx", split_id="x", folder=folder, vae_fingerprint="", clip_fingerprint="")

    assert check_encoded(encoded(dataset.pictures)) == ()
    scene(0).filter(ImageFilter.GaussianBlur(4)).save(folder / "00.png")
    told = check_encoded(encoded(dataset.pictures[:9]), num_steps=60)
    assert [sentence.split(":")[0] for sentence in told] == ["Number of pictures", "Sharpness", "Steps"]
    assert "Steps" not in "".join(check_encoded(encoded(dataset.pictures[:9]), num_steps=60, batch=16)), "16 pictures a step are many looks"
    (folder / "00.png").unlink()
    assert check_encoded(encoded(dataset.pictures)) == ()
    items = list(encoded(dataset.pictures).items)
    for i in range(1, 5):
        items[i] = replace(items[i], near_duplicate_of=items[0].content_hash)
    items[5] = replace(items[5], width=SIZE // 4, height=SIZE // 4)
    told = check_encoded(replace(encoded(dataset.pictures), items=tuple(items)))
    assert [sentence.split(":")[0] for sentence in told] == ["Size", "Duplicates"] and "5 pictures look like another one, in 1 group" in told[1]
