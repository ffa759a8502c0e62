"""Pictures of every awkward kind, written to disk for real and compared pixel by pixel."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from pistachio.dataset.images import colour_grid, content_hash, difference_hash, read_picture, read_rgb
from pistachio.training.errors import PistachioError


def noise(width=24, height=16, seed=0, channels=3):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def photo(width=96, height=64, seed=0):
    """Smooth colours with some structure: survives JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(path):
    return np.asarray(read_rgb(path)).astype(int)


def test_plain_rgb_is_bit_exact(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png")
    assert (pixels(tmp_path / "a.png") == noise()).all()


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / name)
    with Image.open(tmp_path / name) as reopened:
        assert reopened.mode.startswith("I"), "the file must really hold 16 bits"
    expected = np.rint(values / 257.0).astype(int)
    got = pixels(tmp_path / name)
    assert (got == expected[..., None]).all()
    assert len(np.unique(got)) > 200


def test_big_endian_16_bit_tiff(tmp_path):
    values = np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)
    Image.frombytes("I;16B", (24, 16), values.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    assert (pixels(tmp_path / "b.tif")[..., 0] == np.rint(values / 257.0)).all()


def test_16_bit_rgb_png(tmp_path):
    """Pillow can't write one, so the chunks are put together here."""
    import struct
    import zlib

    values = np.random.default_rng(1).integers(0, 65536, (8, 12, 3)).astype(">u2")

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0)
    (tmp_path / "rgb16.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert np.abs(pixels(tmp_path / "rgb16.png") - values.astype(float) / 257).max() <= 1


def test_float_tiff_in_unit_range_is_read_and_any_other_refused(tmp_path):
    values = np.linspace(0, 1, 24 * 16, dtype=np.float32).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / "unit.tif")
    Image.fromarray(values * 1000).save(tmp_path / "wild.tif")
    assert (pixels(tmp_path / "unit.tif")[..., 1] == np.rint(values * 255)).all()
    with pytest.raises(PistachioError, match=r"wild.tif.*floating-point values from 0 to 1000"):
        read_rgb(tmp_path / "wild.tif")


def test_cmyk_without_profile(tmp_path):
    colours = {"white": ((0, 0, 0, 0), (255, 255, 255)), "cyan": ((255, 0, 0, 0), (0, 255, 255)), "black": ((0, 0, 0, 255), (0, 0, 0))}
    for name, (cmyk, rgb) in colours.items():
        Image.new("CMYK", (16, 16), cmyk).save(tmp_path / f"{name}.tif")
        Image.new("CMYK", (16, 16), cmyk).save(tmp_path / f"{name}.jpg", quality=95)
        assert np.abs(pixels(tmp_path / f"{name}.tif") - rgb).max() == 0
        assert np.abs(pixels(tmp_path / f"{name}.jpg") - rgb).max() <= 3


def test_embedded_profile_is_applied_and_srgb_left_alone(tmp_path):
    source = noise(seed=3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(source).save(tmp_path / "srgb.png", icc_profile=srgb)
    assert (pixels(tmp_path / "srgb.png") == source).all()

    # A LAB picture stands for every profile that isn't sRGB: its numbers mean nothing without conversion.
    lab_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    smooth = photo(seed=4)
    lab = ImageCms.profileToProfile(smooth, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    lab.save(tmp_path / "lab.tif", icc_profile=lab_profile)
    assert np.abs(pixels(tmp_path / "lab.tif") - np.asarray(smooth).astype(int)).mean() < 3


def test_broken_profile_is_a_note(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=b"not a profile")
    image, notes = read_picture(tmp_path / "a.png")
    assert (np.asarray(image) == noise()).all()
    assert len(notes) == 1 and "colour profile" in notes[0]


def test_palette_with_and_without_transparency(tmp_path):
    indices = (np.arange(24 * 16).reshape(16, 24) % 3).astype(np.uint8)
    image = Image.frombytes("P", (24, 16), indices.tobytes())
    image.putpalette([255, 0, 0, 0, 128, 0, 10, 20, 30])
    image.save(tmp_path / "p.png")
    palette = np.array([[255, 0, 0], [0, 128, 0], [10, 20, 30]])
    assert (pixels(tmp_path / "p.png") == palette[indices]).all()
    image.save(tmp_path / "t.png", transparency=1)
    palette[1] = 255
    assert (pixels(tmp_path / "t.png") == palette[indices]).all()


def test_alpha_is_laid_on_white(tmp_path):
    rgba = np.zeros((16, 24, 4), np.uint8)
    rgba[:, :12] = (200, 100, 0, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = pixels(tmp_path / "a.png")
    assert np.abs(got[0, 0] - [227, 177, 127]).max() <= 1
    assert (got[:, 12:] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "YCbCr"])
def test_other_modes_become_rgb(tmp_path, mode):
    source = photo().convert(mode)
    source.save(tmp_path / "x.tif" if mode == "YCbCr" else tmp_path / "x.png")
    (path,) = tmp_path.iterdir()
    assert np.abs(pixels(path) - np.asarray(source.convert("RGB")).astype(int)).max() <= 1


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_first_frame_of_an_animation_with_a_note(tmp_path, name):
    first, second = (Image.new("RGB", (24, 16), c) for c in ((250, 0, 0), (0, 0, 250)))
    first.save(tmp_path / name, save_all=True, append_images=[second], duration=100)
    image, notes = read_picture(tmp_path / name)
    assert np.abs(np.asarray(image).astype(int) - [250, 0, 0]).max() <= 12
    assert notes == (f"'{name}' has 2 frames: the first is used.",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_exif_rotation_is_undone(tmp_path, orientation, suffix):
    upright = photo(32, 24)
    undo = {  # what a camera does to an upright scene so that the tag puts it right
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"r.{suffix}", exif=exif, quality=98, **({"subsampling": 0} if suffix == "jpg" else {}))
    got = pixels(tmp_path / f"r.{suffix}")
    assert got.shape == (24, 32, 3)
    assert np.abs(got - np.asarray(upright).astype(int)).max() <= (0 if suffix == "png" else 12)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("lenient_host", [False, True])
def test_truncated_is_an_error_even_if_the_host_tolerates_it(tmp_path, suffix, lenient_host, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient_host)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(PistachioError, match=f"'cut.{suffix}' is .*(damaged|not a picture)"):
        read_rgb(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient_host


def test_zero_size_unreadable_missing_and_bomb(tmp_path, monkeypatch):
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    Image.fromarray(noise(64, 64)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, words in {"zero.png": r"empty \(0 bytes\)", "page.jpg": "3c 68 74 6d 6c", "huge.png": "too large", "none.png": "does not exist"}.items():
        with pytest.raises(PistachioError, match=words):
            read_rgb(tmp_path / name)


def test_content_hash_sees_pixels_alone(tmp_path):
    image = Image.fromarray(noise())
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "b.bmp")
    exif = Image.Exif()
    exif[0x010E] = "a description"
    image.save(tmp_path / "c.png", exif=exif)
    hashes = {content_hash(read_rgb(path)) for path in tmp_path.iterdir()}
    assert len(hashes) == 1
    other = noise()
    other[3, 3, 0] ^= 1
    assert content_hash(Image.fromarray(other)) not in hashes
    assert content_hash(Image.new("RGB", (4, 6))) != content_hash(Image.new("RGB", (6, 4)))


def test_difference_hash_survives_recompression_and_scaling():
    buffer = io.BytesIO()
    photo(seed=1).save(buffer, "JPEG", quality=60)
    copies = [Image.open(buffer), photo(seed=1).resize((200, 140), Image.Resampling.LANCZOS)]
    for copy in copies:
        assert (difference_hash(photo(seed=1)) ^ difference_hash(copy)).bit_count() <= 6
    assert (difference_hash(photo(seed=1)) ^ difference_hash(photo(seed=2))).bit_count() > 12
    assert len(colour_grid(photo())) == 192
