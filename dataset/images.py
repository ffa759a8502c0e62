"""Reading pictures of every kind as upright 8-bit sRGB, and the hashes that identify them.

Owns what is done with 16-bit, CMYK, palette, transparent, animated and rotated files.
Knows nothing about folders, captions or training.
"""

from __future__ import annotations

import hashlib
import io
import logging
import struct
import threading
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from ..training.errors import PistachioError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tiff", ".tif", ".webp", ".avif"})
# Pictures that people drop into a folder and Pillow can't open: named instead of silently passed over.
UNSUPPORTED_EXTENSIONS = frozenset({".heic", ".heif", ".jxl", ".psd", ".svg", ".raw", ".dng", ".cr2", ".nef", ".arw"})

# What Pillow's decoders raise on damaged files.
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error, zlib.error)

_strict_lock = threading.Lock()
_strict_users, _strict_before = 0, False


@contextmanager
def _strict_decoding():
    """Hosts and packs switch LOAD_TRUNCATED_IMAGES on globally; a half-grey picture must not be trained on.

    Threads may decode at once: the last one out puts the setting back.
    """
    global _strict_users, _strict_before
    with _strict_lock:
        if _strict_users == 0:
            _strict_before = ImageFile.LOAD_TRUNCATED_IMAGES
        _strict_users += 1
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _strict_lock:
            _strict_users -= 1
            if _strict_users == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _strict_before


def read_rgb(path: Path) -> Image.Image:
    """The picture upright, 8-bit sRGB, transparency laid on white; PistachioError if it can't be read."""
    return read_picture(path)[0]


def read_alpha(path: Path) -> Image.Image | None:
    """The upright alpha channel, mode L; None if the picture has none. For a file that `read_rgb` reads."""
    with _strict_decoding(), Image.open(path) as image:
        image.load()
        upright = _upright(image, path.name, [])
        if upright.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in upright.info:
            return None
        return upright.convert("RGBA").getchannel("A")


def read_picture(path: Path) -> tuple[Image.Image, tuple[str, ...]]:
    """As `read_rgb`, with notes for the user on what was changed, for example which frame was taken."""
    try:
        if path.stat().st_size == 0:
            raise PistachioError(f"'{path.name}' is empty (0 bytes). Copy it again from its source, or remove it.")
        with _strict_decoding(), Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1:
                image.seek(0)
            image.load()
            notes = []
            # MPO is a phone's JPEG with a preview or depth map behind it: its first frame is the picture
            if frames > 1 and image.format != "MPO":
                notes.append(f"'{path.name}' has {frames} frames: the first is used.")
            upright = _upright(image, path.name, notes)
            rgb = _to_rgb(upright, image.format, path.name, notes)
    except PistachioError:
        raise
    except FileNotFoundError as error:
        raise PistachioError(f"'{path}' does not exist any more. Queue again to read the folder afresh.") from error
    except PermissionError as error:
        raise PistachioError(f"'{path.name}' can't be opened: no permission. Allow reading it, or remove it.") from error
    except Image.UnidentifiedImageError as error:
        raise PistachioError(
            f"'{path.name}' is not a picture that can be read ({_first_bytes(path)}). Save it again as PNG or JPEG, or remove it."
        ) from error
    except Image.DecompressionBombError as error:
        raise PistachioError(f"'{path.name}' is too large to open safely ({error}). Make it smaller.") from error
    except DECODE_ERRORS as error:
        raise PistachioError(
            f"'{path.name}' is damaged or cut short ({error}). Copy it again from its source, save it anew, or remove it."
        ) from error
    return rgb, tuple(notes)


def _first_bytes(path: Path) -> str:
    with open(path, "rb") as file:
        return "it begins with the bytes " + file.read(8).hex(" ")


def _upright(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except DECODE_ERRORS as error:
        notes.append(f"'{name}' has unreadable EXIF data ({error}): its rotation was ignored.")
        return image


def _to_rgb(image: Image.Image, file_format: str | None, name: str, notes: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _wide_to_grey(image, file_format, name)
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")  # drops alpha, keeps the colours unmultiplied
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile, name, notes)
    rgb = image.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", rgb.size, (255, 255, 255))
        white.paste(rgb, mask=alpha)
        rgb = white
    rgb.info.clear()
    return rgb


def _wide_to_grey(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """16-bit, 32-bit and float grey to 8 bits by range; Pillow's own convert("L") clips at 255 instead."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    # older Pillow opens 16-bit grey PNG as "I"
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        scaled = values.astype(np.float64) / 257.0
    elif image.mode == "F" and 0.0 <= low and high <= 1.0:
        scaled = values * 255.0
    else:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise PistachioError(f"'{name}' holds {kind} values from {low:g} to {high:g}, whose white is unknown. Save it as an 8- or 16-bit PNG.")
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes, name: str, notes: list[str]) -> Image.Image:
    """Apply an embedded profile (CMYK press profiles, a phone's Display P3); sRGB itself is left bit-exact."""
    try:
        from PIL import ImageCms
    except ImportError as error:
        notes.append(f"'{name}' has a colour profile and Pillow was built without colour management ({error}): it was ignored.")
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *DECODE_ERRORS) as error:
        notes.append(f"'{name}' has a colour profile that can't be used ({error}): its colours are taken as sRGB.")
        return image


def content_hash(image: Image.Image) -> str:
    """sha256 hex of the RGB pixels and their size: metadata, file name and format don't count."""
    digest = hashlib.sha256(f"{image.width}x{image.height}".encode())
    digest.update(image.convert("RGB").tobytes())
    return digest.hexdigest()


def difference_hash(image: Image.Image) -> int:
    """64 bits: is each cell of an 8x8 grey grid brighter than its left neighbour? Survives scaling and recompression."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def colour_grid(image: Image.Image) -> bytes:
    """The mean RGB of each cell of an 8x8 grid, 192 bytes."""
    return image.convert("RGB").resize((8, 8), Image.Resampling.BOX).tobytes()
