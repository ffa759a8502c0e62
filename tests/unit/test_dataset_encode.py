"""The cache on disk and encoding through it: what is computed once, what survives a kill, what is refused."""

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.cache import CacheMiss, ConditionCache, LatentCache, load_condition, load_latent, save_condition, save_latent
from pistachio.dataset.encode import encode_dataset
from pistachio.dataset.files import TEMPORARY_SUFFIX
from pistachio.dataset.folder import load_folder
from pistachio.dataset.split import split_dataset
from pistachio.training.errors import PistachioError


def photo(seed, width=64, height=64):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.float().nan_to_num(7), b.float().nan_to_num(7))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


def test_condition_round_trip(tmp_path):
    base = torch.randn(1, 77, 8)
    conditioning = [
        [base, {"pooled_output": base[:, 0], "none": None, "flag": True, "n": 3, "x": 0.1, "s": "é", "list": [base[:, ::2], (1, None)]}],
        [torch.zeros(1, 3, dtype=torch.bfloat16), {"nested": {"ids": torch.arange(5), "mask": torch.tensor([True, False])}, 7: "int key"}],
        [torch.tensor(2.5), {"tensor": "a string", "f8": torch.ones(4).to(torch.float8_e4m3fn), "transposed": base.transpose(1, 2), "empty": []}],
    ]
    path = tmp_path / "deep" / "c.safetensors"
    save_condition(path, conditioning)
    assert_same(load_condition(path), conditioning)
    assert [p.name for p in path.parent.iterdir()] == ["c.safetensors"]


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(PistachioError, match=r"gave a object at conditioning\[0\]\[1\]\['control'\]"):
        save_condition(tmp_path / "c", [[torch.zeros(1), {"control": object()}]])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 16, 1, 8, 6)])
def test_latent_round_trip(tmp_path, shape):
    latent = torch.randn(shape, dtype=torch.float16, requires_grad=True)
    save_latent(tmp_path / "l", latent)
    assert torch.equal(load_latent(tmp_path / "l"), latent) and not load_latent(tmp_path / "l").requires_grad


def test_every_cut_of_a_file_is_a_miss(tmp_path):
    path = tmp_path / "l"
    save_latent(path, torch.randn(1, 4, 4, 4))
    data = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 60, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CacheMiss, match="damaged"):
            load_latent(path)
    header = struct.unpack("<Q", data[:8])[0]
    path.write_bytes(data[:8] + b"\xff" * header + data[8 + header :])
    with pytest.raises(CacheMiss):
        load_latent(path)
    path.unlink()
    with pytest.raises(CacheMiss, match="missing"):
        load_latent(path)
    save_condition(path, [[torch.zeros(1), {}]])
    with pytest.raises(CacheMiss, match="format"):
        load_latent(path)


def test_paths_differ_by_every_part_of_the_key(tmp_path):
    latents, conditions = LatentCache(folder=tmp_path), ConditionCache(folder=tmp_path)
    keys = [("a", "b"), ("ab", ""), ("", "ab"), ("a", "b", 1), ("a", "b", 2), ("b", "a")]
    paths = {cache.path_for(*key) for cache in (latents, conditions) for key in keys}
    assert len(paths) == 12
    assert latents.path_for("a", "b") == LatentCache(folder=tmp_path).path_for("a", "b")


class Encoders:
    """Small real encoders that count their calls."""

    def __init__(self):
        self.images, self.texts = [], []

    def latent(self, pixels):
        self.images.append(pixels)
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8) * 2 - 1

    def text(self, text):
        self.texts.append(text)
        codes = torch.tensor([[float(ord(c)) for c in text.ljust(8)[:8]]])
        return [[codes[..., None], {"pooled_output": codes}]]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        photo(i, *((64, 64) if i else (96, 48))).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text("the same words" if i < 2 else f"words {i}")
    return folder


def encode(dataset, encoders, tmp_path, **options):
    settings = dict(
        encode_latent=encoders.latent, encode_text=encoders.text, vae_fingerprint="vae", clip_fingerprint="clip",
        cache_folder=tmp_path / "cache", trigger_word="ohwx", resolution=64, step=16,
    )
    return encode_dataset(dataset, **(settings | options))


def test_everything_is_encoded_once_and_found_again(folder, tmp_path):
    dataset, encoders, seen = split_dataset(load_folder(folder)), Encoders(), []
    encoded = encode(dataset, encoders, tmp_path, progress=lambda done, total: seen.append((done, total)))
    # 5 distinct captions with the trigger and 5 without
    assert len(encoders.images) == 6 and len(encoders.texts) == len(set(encoders.texts)) == 10
    assert seen == [(i, 16) for i in range(1, 17)]
    assert encoded.items[0].caption == "ohwx, the same words" and encoded.items[0].prior_caption == "the same words"
    assert encoded.items[0].caption_path == encoded.items[1].caption_path != encoded.items[0].prior_path
    assert (encoded.items[0].width, encoded.items[0].height) == (80, 48)
    assert {i.content_hash for i in encoded.held_out} == set(dataset.split.held_out)
    assert len(encoded.train) == 3 and encoded.split_id == dataset.split.split_id and encoded.trigger_word == "ohwx"
    for item, pixels in zip(encoded.items, encoders.images):
        assert pixels.shape == (1, item.height, item.width, 3)
        assert torch.equal(load_latent(item.latent_path), Encoders().latent(pixels))
        assert_same(load_condition(item.caption_path), Encoders().text(item.caption))

    again = Encoders()
    assert encode(dataset, again, tmp_path) == encoded
    assert again.images == [] and again.texts == []


@pytest.mark.parametrize(
    "change, images, texts",
    [
        ({"vae_fingerprint": "other"}, 6, 0),
        ({"clip_fingerprint": "other"}, 0, 10),
        ({"trigger_word": "sks"}, 0, 5),  # the captions without the trigger are known
        ({"resolution": 48}, 6, 0),
    ],
)
def test_a_change_encodes_only_what_depends_on_it(folder, tmp_path, change, images, texts):
    dataset = split_dataset(load_folder(folder))
    encode(dataset, Encoders(), tmp_path)
    encoders = Encoders()
    encode(dataset, encoders, tmp_path, **change)
    assert (len(encoders.images), len(encoders.texts)) == (images, texts)


def test_damaged_files_are_rewritten_with_a_log_line(folder, tmp_path, caplog):
    dataset = split_dataset(load_folder(folder))
    first = encode(dataset, Encoders(), tmp_path)
    good = first.items[2].latent_path.read_bytes()
    first.items[2].latent_path.write_bytes(good[:-5])
    first.items[3].caption_path.write_bytes(b"")
    first.items[4].latent_path.unlink()
    encoders = Encoders()
    assert encode(dataset, encoders, tmp_path) == first
    assert (len(encoders.images), len(encoders.texts)) == (2, 1)
    assert first.items[2].latent_path.read_bytes() == good
    assert sum("damaged" in r.message for r in caplog.records) == 2


def test_interrupted_work_is_kept(folder, tmp_path):
    dataset, encoders = split_dataset(load_folder(folder)), Encoders()

    def stop():
        if len(encoders.images) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(dataset, encoders, tmp_path, check_interrupted=stop)
    assert not list((tmp_path / "cache").rglob(f"*{TEMPORARY_SUFFIX}"))
    rest = Encoders()
    encode(dataset, rest, tmp_path)
    assert (len(rest.images), len(rest.texts)) == (3, 0)


def test_missing_captions(folder, tmp_path):
    (folder / "p4.txt").unlink()
    dataset = split_dataset(load_folder(folder))
    with pytest.raises(PistachioError, match=r"p4\.png"):
        encode(dataset, Encoders(), tmp_path)
    encoded = encode(dataset, Encoders(), tmp_path, allow_missing=True)
    assert (encoded.items[4].caption, encoded.items[4].prior_caption) == ("ohwx", "")
    with pytest.raises(PistachioError, match=r"p4\.png"):
        encode(dataset, Encoders(), tmp_path, allow_missing=True, trigger_word="")


def test_equal_pictures_are_used_once_and_a_split_is_made(folder, tmp_path):
    Image.open(folder / "p1.png").save(folder / "a-copy.bmp")
    encoded = encode(load_folder(folder), Encoders(), tmp_path, allow_missing=True)
    assert len(encoded.items) == 6
    assert [i.relative_path for i in encoded.items if i.caption == "ohwx, the same words"] == ["p1.png", "p0.png"]
    assert len(encoded.held_out) == 3
    assert any("No split was connected" in note for note in encoded.notes)
    assert any("repeat another picture" in note for note in encoded.notes)


def test_refusals(folder, tmp_path):
    dataset = split_dataset(load_folder(folder))
    with pytest.raises(PistachioError, match="VAE gave NaN.*p0.png"):
        encode(dataset, Encoders(), tmp_path, encode_latent=lambda pixels: Encoders().latent(pixels) * float("nan"))
    with pytest.raises(PistachioError, match="text encoder gave NaN"):
        encode(dataset, Encoders(), tmp_path, clip_fingerprint="broken", encode_text=lambda text: [[torch.tensor([float("inf")]), {}]])
    assert not list((tmp_path / "cache" / "latents").rglob("*.safetensors"))
    few = replace(dataset, pictures=dataset.pictures[:4])
    with pytest.raises(PistachioError, match="Only 4 different pictures"):
        encode(few, Encoders(), tmp_path)
    photo(99).save(folder / "p5.png")
    with pytest.raises(PistachioError, match="'p5.png' changed"):
        encode(dataset, Encoders(), tmp_path)
