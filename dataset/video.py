"""Clips of videos, decoded by PyAV one frame at a time.

Owns the choice of clips, the resampling to a frame rate and the errors of damaged or short files.
Knows nothing about folders, captions or latents.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..training.errors import PistachioError
from .images import colour_grid, difference_hash
from .types import Clip, Picture

VIDEO_EXTENSIONS = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif"})
CLIP_CHOICES = ("start", "middle", "random", "uniform")
TIME_SLACK_SECONDS = 1e-3  # containers round times to milliseconds
SEEK_BEYOND_SECONDS = 2.0  # an earlier start is reached by decoding


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSettings:
    """How videos become clips."""

    frame_buckets: tuple[int, ...] = (33,)  # each 4n + 1; a video takes the longest that it fills
    fps: float = 16.0  # after resampling; 0: the video's own
    choice: str = "start"
    clips_per_video: int = 1  # for random and uniform
    seed: int = 0

    def __post_init__(self):
        where = "on Load Video Folder"
        if not self.frame_buckets:
            raise PistachioError(f"No number of frames is given. Write one such as 33 {where}.")
        for frames in self.frame_buckets:
            if frames < 1 or frames % 4 != 1:
                near = max(1, (frames - 1) // 4 * 4 + 1)
                raise PistachioError(f"{frames} frames can't be encoded: video models take 4n + 1 frames. Write {near} or {near + 4} {where}.")
        if not 0 <= self.fps <= 240:
            raise PistachioError(f"The frame rate is {self.fps}. Set it between 0 (the video's own) and 240 {where}.")
        if self.choice not in CLIP_CHOICES:
            raise PistachioError(f"The choice of clips '{self.choice}' is unknown. Choose one of {', '.join(CLIP_CHOICES)} {where}.")
        if not 1 <= self.clips_per_video <= 1000:
            raise PistachioError(f"{self.clips_per_video} clips a video. Set it between 1 and 1000 {where}.")


def choose_clips(available: int, fps: float, settings: ClipSettings, name: str) -> list[Clip]:
    """Clips of a video of `available` frames after resampling, in the order of time."""
    fitting = [frames for frames in settings.frame_buckets if frames <= available]
    if not fitting:
        raise PistachioError(
            f"'{name}' is too short: {available} frames at {fps:g} frames a second, and the shortest clip is {min(settings.frame_buckets)}. "
            "Add a smaller number of frames on Load Video Folder, or remove the video."
        )
    num_frames = max(fitting)
    spare = available - num_frames
    if settings.choice == "start":
        offsets = [0]
    elif settings.choice == "middle" or (settings.choice == "uniform" and settings.clips_per_video == 1):
        offsets = [spare // 2]
    elif settings.choice == "uniform":
        offsets = [round(i * spare / (settings.clips_per_video - 1)) for i in range(settings.clips_per_video)]
    else:
        source = random.Random(f"clip|{settings.seed}|{name}")
        offsets = [source.randint(0, spare) for _ in range(settings.clips_per_video)]
    return [Clip(start_seconds=offset / fps, num_frames=num_frames, fps=fps) for offset in sorted(set(offsets))]


def is_video(path: Path) -> bool:
    """By its name; a GIF of one frame is a picture."""
    if path.suffix.lower() != ".gif":
        return path.suffix.lower() in VIDEO_EXTENSIONS
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, EOFError):
        return False  # the reader of pictures says what is wrong with it


def read_clips(path: Path, relative_path: str, settings: ClipSettings) -> tuple[list[Picture], tuple[str, ...]]:
    """The video's clips as records without captions, and notes. PistachioError if it can't be read or is too short."""
    try:
        status = path.stat()
    except OSError as error:
        raise PistachioError(f"'{path.name}' can't be opened: {error.strerror}. Is it a broken link?") from error
    if status.st_size == 0:
        raise PistachioError(f"'{path.name}' is empty (0 bytes). Copy it again from its source, or remove it.")
    key = str(path), status.st_mtime_ns, status.st_size
    duration_seconds, own_fps = _timing(*key)
    fps = settings.fps or own_fps
    available = math.floor(duration_seconds * fps + TIME_SLACK_SECONDS * fps)
    clips = choose_clips(available, fps, settings, path.name)
    notes = []
    if own_fps < 0.75 * fps:
        notes.append(f"'{path.name}' has {own_fps:.3g} frames a second: some are repeated to reach {fps:g}.")
    pictures = []
    for clip in clips:
        width, height, content_hash, difference, grid = _inspect(*key, clip)
        pictures.append(Picture(
            path=path, relative_path=relative_path, width=width, height=height, content_hash=content_hash, caption=None,
            difference_hash=difference, colour_grid=grid, clip=clip,
        ))
    return pictures, tuple(notes)


def check_video(path: Path) -> None:
    """PistachioError where it is no video that can be read. Reads its packets, decodes nothing."""
    status = path.stat()
    _timing.__wrapped__(str(path), status.st_mtime_ns, status.st_size)  # once: it is a file on its way


def frames_of(path: Path, clip: Clip) -> Iterator[Image.Image]:
    """The clip's frames, upright RGB, one at a time: frame i is the one on screen at start + i / fps."""
    yield from _frames(path, clip, seek=clip.start_seconds > SEEK_BEYOND_SECONDS)


class ClipHash:
    """sha256 of the frames' pixels and sizes, fed frame by frame."""

    def __init__(self):
        self._digest = hashlib.sha256(b"clip")

    def add(self, frame: Image.Image) -> None:
        self._digest.update(f"{frame.width}x{frame.height}".encode())
        self._digest.update(frame.tobytes())

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


# Queueing the same graph again decodes nothing.
@functools.lru_cache(maxsize=20_000)
def _inspect(path: str, mtime_ns: int, size_bytes: int, clip: Clip) -> tuple[int, int, str, int, bytes]:
    digest = ClipHash()
    first = None
    for frame in frames_of(Path(path), clip):
        digest.add(frame)
        first = first or frame
    return first.width, first.height, digest.hexdigest(), difference_hash(first), colour_grid(first)


@functools.lru_cache(maxsize=20_000)
def _timing(path: str, mtime_ns: int, size_bytes: int) -> tuple[float, float]:
    """Seconds from the first frame's start to the last one's end, and frames a second, from the packets alone."""
    with _opened(Path(path)) as (container, stream):
        times = _packet_times(container, stream)
    if not times:
        raise PistachioError(f"'{Path(path).name}' has no frames. Copy it again from its source, or remove it.")
    if len(times) == 1:
        return 1 / 25, 25.0  # a still: no frame rate can be told
    fps = (len(times) - 1) / (times[-1] - times[0])
    return len(times) / fps, fps


def _packet_times(container, stream) -> list[float]:
    stamps = [packet.pts if packet.pts is not None else packet.dts for packet in container.demux(stream) if packet.size]
    if any(stamp is None for stamp in stamps) or len(set(stamps)) < len(stamps):
        rate = float(stream.average_rate or 25)  # old containers hold no times
        return [i / rate for i in range(len(stamps))]
    return [float(stamp * stream.time_base) for stamp in sorted(stamps)]


@contextmanager
def _opened(path: Path):
    """(container, video stream) of a file; what PyAV raises inside becomes a sentence."""
    try:
        import av
    except ImportError as error:
        raise PistachioError(f"Videos need the Python package 'av', which ComfyUI itself requires ({error}). Install it with: pip install av") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise PistachioError(f"'{path.name}' holds no pictures, only sound or data. Remove it from the folder.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except FileNotFoundError as error:
        raise PistachioError(f"'{path}' does not exist any more. Queue again to read the folder afresh.") from error
    except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
        raise PistachioError(
            f"'{path.name}' is damaged, cut short or no video that can be read ({error}). Copy it again from its source, save it as MP4, or remove it."
        ) from error


def _frames(path: Path, clip: Clip, *, seek: bool) -> Iterator[Image.Image]:
    wanted = [clip.start_seconds + i / clip.fps for i in range(clip.num_frames)]
    index, shown, image, restart = 0, None, None, False
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        origin = float((stream.start_time or 0) * stream.time_base)
        if seek:
            container.seek(int((origin + clip.start_seconds) / stream.time_base), stream=stream, backward=True)
        for count, frame in enumerate(container.decode(stream)):
            time = count / rate if frame.pts is None else float(frame.pts * stream.time_base) - origin
            if seek and count == 0 and (frame.pts is None or time > wanted[0] + TIME_SLACK_SECONDS):
                restart = True  # the container's index led behind the clip
                break
            while index < len(wanted) and shown is not None and wanted[index] < time - TIME_SLACK_SECONDS:
                image = image or _upright(shown)
                yield image
                index += 1
            if index == len(wanted):
                return
            shown, image = frame, None
        if not restart and shown is not None:
            last_second = float(shown.pts * stream.time_base) - origin if shown.pts is not None else math.inf
            while index < len(wanted) and wanted[index] <= last_second + max(1 / rate, 1 / clip.fps) + TIME_SLACK_SECONDS:
                image = image or _upright(shown)
                yield image
                index += 1
    if restart:
        yield from _frames(path, clip, seek=False)
    elif index < len(wanted):
        raise PistachioError(
            f"'{path.name}' is damaged: it ends at frame {index} of the {len(wanted)} of its clip. Copy it again from its source, or remove it."
        )


def _upright(frame) -> Image.Image:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) if getattr(frame, "rotation", 0) else 0
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)
