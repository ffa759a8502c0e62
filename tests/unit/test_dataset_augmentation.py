"""What a picture is trained as besides itself: captions, orders of tags, crops, sizes, repeats and masks."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.augmentation import Augmentation, caption_versions, crops_of, parse_repeats, parse_resolutions, repeats_of
from pistachio.dataset.buckets import assign_bucket
from pistachio.dataset.cache import load_condition, load_latent, load_mask
from pistachio.dataset.encode import encode_dataset
from pistachio.dataset.folder import folder_fingerprint, load_folder
from pistachio.dataset.split import split_dataset, write_folders
from pistachio.training.errors import PistachioError


def photo(seed, width=64, height=64):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        photo(i, *((64, 64) if i else (128, 64))).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"red hat, blue coat, snow, portrait {i}")
    return folder


def encode_text(text):
    return [[torch.tensor([[[float(ord(c)) for c in text.ljust(60)[:60]]]]), {}]]


def encode(folder, tmp_path, dataset=None, **options):
    def encode_latent(pixels):
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8) * 2 - 1

    settings = dict(
        encode_latent=encode_latent, encode_text=encode_text, vae_fingerprint="vae", clip_fingerprint="clip",
        cache_folder=tmp_path / "cache", trigger_word="ohwx", resolution=64, step=16,
    )
    dataset = dataset or split_dataset(load_folder(folder), held_out_names=("p4", "p5"))
    return encode_dataset(dataset, **(settings | options))


def by_name(encoded):
    return {item.relative_path: item for item in encoded.items}


# ---- captions ------------------------------------------------------------


def test_several_captions_beside_a_picture_and_in_a_table(folder, tmp_path):
    (folder / "p0.2.txt").write_text("a second one")
    (folder / "p0.3.txt").write_text("a third one\n")
    (folder / "p0.5.txt").write_text("after a gap: not read")
    (folder / "p1.txt").unlink()
    (folder / "captions.json").write_text(json.dumps({"p1.png": ["from the table", "and another"], "p2.png": "the sidecar counts"}))
    photo(90).save(folder / "p3.2.png")
    (folder / "p3.2.txt").write_text("the caption of p3.2.png")
    dataset = load_folder(folder)
    captions = {p.relative_path: (p.caption, p.more_captions) for p in dataset.pictures}
    assert captions["p0.png"] == ("red hat, blue coat, snow, portrait 0", ("a second one", "a third one"))
    assert captions["p1.png"] == ("from the table", ("and another",))
    assert captions["p2.png"] == ("red hat, blue coat, snow, portrait 2", ())
    assert captions["p3.png"][1] == () and captions["p3.2.png"] == ("the caption of p3.2.png", ())
    encoded = by_name(encode(folder, tmp_path, split_dataset(dataset, held_out_names=("p4", "p5"))))
    assert [c.caption for c in encoded["p0.png"].captions] == ["ohwx, red hat, blue coat, snow, portrait 0", "ohwx, a second one", "ohwx, a third one"]
    assert [c.prior_caption for c in encoded["p0.png"].more_captions] == ["a second one", "a third one"], "paired with their priors"
    for caption in encoded["p0.png"].captions:
        assert torch.equal(load_condition(caption.caption_path)[0][0], encode_text(caption.caption)[0][0])
        assert torch.equal(load_condition(caption.prior_path)[0][0], encode_text(caption.prior_caption)[0][0])
    before = folder_fingerprint(folder)
    (folder / "p0.2.txt").write_text("changed")
    assert folder_fingerprint(folder) != before


@pytest.mark.parametrize("table", ["[1]", "{", '{"p1.png": []}', '{"p1.png": [3]}', '{"p1.png": 3}'])
def test_a_wrong_table_is_named(folder, table):
    (folder / "captions.json").write_text(table)
    with pytest.raises(PistachioError, match="captions.json' can't be used"):
        load_folder(folder)


def test_tags_are_shuffled_behind_the_trigger_and_the_kept_ones():
    settings = Augmentation(shuffle_tags=True, keep_tokens=1, shuffle_variants=12)
    caption = "ohwx, portrait, red hat, blue coat, snow, night"
    versions = caption_versions(caption, "ohwx", settings)
    assert versions[0] == caption and 8 < len(versions) == len(set(versions)) <= 13
    for version in versions:
        tags = version.split(", ")
        assert tags[:2] == ["ohwx", "portrait"] and sorted(tags) == sorted(caption.split(", "))
    assert versions == caption_versions(caption, "ohwx", settings), "the same each time"
    assert versions != caption_versions(caption, "ohwx", replace(settings, seed=1))
    assert all(v.startswith("a photo of ohwx, ") for v in caption_versions("red, a photo of ohwx, blue, green", "ohwx", settings)[1:])
    assert caption_versions("ohwx, portrait, red hat", "ohwx", settings) == ["ohwx, portrait, red hat"], "one loose tag has one order"
    assert caption_versions(caption, "ohwx", Augmentation()) == [caption]


def test_shuffled_captions_are_encoded_for_training_alone(folder, tmp_path):
    encoded = encode(folder, tmp_path, augmentation=Augmentation(shuffle_tags=True, shuffle_variants=12, keep_tokens=2))
    for item in encoded.items:
        assert len(item.captions) == (1 if item.held_out else 2), "two loose tags have two orders"
        for caption in item.captions:
            assert caption.caption == f"ohwx, {caption.prior_caption}"
    plain = encode(folder, tmp_path)
    assert [i.caption for i in encoded.items] == [i.caption for i in plain.items] and encoded.empty_path is None


def test_the_empty_caption_is_encoded_once(folder, tmp_path):
    encoded = encode(folder, tmp_path, augmentation=Augmentation(caption_dropout=0.1))
    assert encoded.caption_dropout == 0.1
    assert torch.equal(load_condition(encoded.empty_path)[0][0], encode_text("")[0][0])


# ---- crops and sizes -----------------------------------------------------


def test_a_mirror_image_is_the_mirrored_picture(folder, tmp_path):
    encoded = encode(folder, tmp_path, augmentation=Augmentation(flip=True))
    for item in encoded.items:
        assert len(item.more_latents) == (0 if item.held_out else 1)
        for latent in item.more_latents:
            mirrored, plain = load_latent(latent.path), load_latent(item.latent_path)
            assert torch.allclose(mirrored, plain.flip(-1), atol=0.02) and not torch.allclose(mirrored, plain, atol=0.1)
    assert encode(folder, tmp_path).items[0] == replace(encoded.items[0], more_latents=())


def test_random_crops_are_seeded_and_inside_the_picture(folder, tmp_path):
    picture = load_folder(folder).pictures[0]
    bucket = assign_bucket(picture.width, picture.height, resolution=64, step=16)
    settings = Augmentation(random_crops=20, smallest_crop=0.5, flip=True)
    crops = crops_of(picture, bucket, settings)
    assert len(crops) == 22 and len({c.name for c in crops}) == 22 and crops == crops_of(picture, bucket, settings)
    assert crops[2:] != crops_of(picture, bucket, replace(settings, seed=1))[2:]
    for crop in crops:
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
        assert abs((right - left) / (bottom - top) - bucket[0] / bucket[1]) < 1e-6, "the shape is the bucket's"
        assert (right - left) >= 0.5 * (crops[0].box[2] - crops[0].box[0]) - 1e-6
    assert {c.flip for c in crops[2:]} == {True, False}
    encoded = encode(folder, tmp_path, augmentation=Augmentation(random_crops=3))
    latents = [load_latent(latent.path) for latent in by_name(encoded)["p0.png"].sizes[0].latents]
    assert len(latents) == 4 and len({latent.shape for latent in latents}) == 1
    assert all(not torch.equal(latents[0], other) for other in latents[1:])


def test_more_resolutions_add_sizes_that_differ(folder, tmp_path):
    photo(1, 160, 160).save(folder / "p1.png")
    encoded = encode(folder, tmp_path, resolution=128, augmentation=Augmentation(more_resolutions=(64, 96, 512, 1024)))
    item = by_name(encoded)["p1.png"]
    assert [(s.width, s.height) for s in item.sizes] == [(128, 128), (64, 64), (96, 96), (160, 160)], "160 is all it has"
    assert [load_latent(s.latents[0].path).shape[-1] for s in item.sizes] == [16, 8, 12, 20]
    assert [s.latent_shape for s in item.sizes] == [(1, 3, n, n) for n in (16, 8, 12, 20)]
    assert len(by_name(encoded)["p2.png"].sizes) == 1
    assert len(encoded.held_out) == 2 and all(len(i.sizes) == 1 for i in encoded.held_out)


# ---- repeats -------------------------------------------------------------


def test_repeats_by_pattern_and_by_folder(folder):
    for name in ("10_close", "3_far/deep", "plain", "0_none"):
        (folder / name).mkdir(parents=True)
        photo(len(name)).save(folder / name / "x.png")
    pictures = {p.relative_path: p for p in load_folder(folder).pictures}
    times = {name: repeats_of(p, Augmentation(folder_repeats=True, repeats=parse_repeats("p1 = 4\np?.png = 2\n 3_far/* = 7 "))) for name, p in pictures.items()}
    assert times["p0.png"] == 2 and times["p1.png"] == 4
    assert (times["10_close/x.png"], times["3_far/deep/x.png"], times["plain/x.png"], times["0_none/x.png"]) == (10, 7, 1, 1)
    assert repeats_of(pictures["3_far/deep/x.png"], Augmentation(folder_repeats=True)) == 3
    assert {repeats_of(p, Augmentation()) for p in pictures.values()} == {1}


# ---- masks ---------------------------------------------------------------


def half_mask(width, height):
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def test_masks_follow_the_crop(folder, tmp_path):
    half_mask(128, 64).save(folder / "p0.mask.png")
    (folder / "masks").mkdir()
    half_mask(32, 32).save(folder / "masks" / "p1.png")  # of another size than its picture
    dataset = load_folder(folder)
    assert [p.relative_path for p in dataset.pictures] == [f"p{i}.png" for i in range(6)], "masks are no pictures"
    dataset = split_dataset(dataset, held_out_names=("p4", "p5"))
    encoded = encode(folder, tmp_path, dataset, augmentation=Augmentation(masks="file", flip=True, mask_minimum=0.25))
    assert any("4 pictures without a mask are trained whole: p2.png" in note for note in encoded.notes)
    for name, width in (("p0.png", 10), ("p1.png", 8)):
        item = by_name(encoded)[name]
        mask, mirrored = load_mask(item.mask_path), load_mask(item.more_latents[0].mask_path)
        assert mask.shape == (1, 1, *item.latent_shape[-2:]) and mask.dtype is torch.float32 and mask.shape[-1] == width
        assert torch.equal(mirrored, mask.flip(-1))
        assert (mask[..., : width // 2 - 1] == 1).all() and (mask[..., width // 2 + 1 :] == 0.25).all()
    assert by_name(encoded)["p2.png"].mask_path is None
    assert encode(folder, tmp_path, dataset).items[0].mask_path is None, "off until asked for"
    train, _ = write_folders(dataset, tmp_path / "copied")
    assert (train / "p0.mask.png").exists() and (train / "p1.mask.png").exists()


def test_alpha_as_a_mask(folder, tmp_path):
    image = photo(1).convert("RGBA")
    image.putalpha(half_mask(64, 64))
    image.save(folder / "p1.png")
    encoded = by_name(encode(folder, tmp_path, augmentation=Augmentation(masks="alpha")))
    assert encoded["p0.png"].mask_path is None
    mask = load_mask(encoded["p1.png"].mask_path)
    assert mask.sum() == 32 and (mask[..., :4] == 1).all()


def test_masks_that_say_nothing_are_refused(folder, tmp_path):
    for source, words in (("file", "No picture has a mask beside it"), ("alpha", "No picture has an alpha channel")):
        with pytest.raises(PistachioError, match=words):
            encode(folder, tmp_path, augmentation=Augmentation(masks=source))
    Image.new("L", (64, 64), 0).save(folder / "p1.mask.png")
    with pytest.raises(PistachioError, match="The mask of 'p1.png' is black"):
        encode(folder, tmp_path, augmentation=Augmentation(masks="file"))
    assert by_name(encode(folder, tmp_path, augmentation=Augmentation(masks="file", mask_minimum=0.5)))["p1.png"].mask_path
    corner = Image.new("L", (64, 64), 0)
    corner.paste(255, (0, 0, 6, 6))
    corner.save(folder / "p1.mask.png")
    item = by_name(encode(folder, tmp_path, augmentation=Augmentation(masks="file", random_crops=12, smallest_crop=0.3)))["p1.png"]
    assert 0 < len(item.more_latents) < 12, "crops that show nothing of the mask are left out"


# ---- storage and settings ------------------------------------------------


def test_storages_do_not_share_files_and_the_default_is_lossless(folder, tmp_path):
    whole, rounded = encode(folder, tmp_path), encode(folder, tmp_path, latent_storage="fp8")
    assert whole.items[0].latent_path != rounded.items[0].latent_path and rounded.latent_storage == "fp8"
    exact, near = load_latent(whole.items[0].latent_path), load_latent(rounded.items[0].latent_path)
    assert 0 < (exact - near).norm() / exact.norm() < 0.04
    with pytest.raises(PistachioError, match="stored as 'int3'"):
        encode(folder, tmp_path, latent_storage="int3")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda: Augmentation(random_crops=-1), "-1 random crops"), (lambda: Augmentation(smallest_crop=0), "smallest crop is 0"),
        (lambda: Augmentation(caption_dropout=1.5), "dropout is 1.5"), (lambda: Augmentation(masks="x"), "Masks 'x'"),
        (lambda: Augmentation(more_resolutions=(8,)), "further resolution is 8"), (lambda: Augmentation(repeats=(("a", 0),)), "repeats"),
        (lambda: parse_resolutions("512, big"), "'big' is no resolution"), (lambda: parse_repeats("close-up"), "'close-up' gives no repeats"),
        (lambda: parse_repeats("a = many"), "'a = many' gives no repeats"), (lambda: Augmentation(shuffle_variants=0), "0 orders"),
        (lambda: Augmentation(mask_minimum=2), "minimum is 2"), (lambda: Augmentation(keep_tokens=-1), "-1 kept"),
    ],
)
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(PistachioError, match=words):
        wrong()


def test_settings_are_read():
    assert parse_resolutions(" 512,768 512") == (512, 768) and parse_resolutions("") == ()
    assert parse_repeats("\n a = b = 2 \nfaces/* = 10\n") == (("a = b", 2), ("faces/*", 10))
