"""Clips of real videos, made here by PyAV: which frames are taken, what is said of broken files, what a preview shows."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset import video
from pistachio.dataset.encode import encode_dataset
from pistachio.dataset.folder import folder_fingerprint, load_folder
from pistachio.dataset.split import split_dataset
from pistachio.dataset.thumbnails import contact_sheet, thumbnails
from pistachio.dataset.video import ClipSettings, choose_clips, frames_of, read_clips
from pistachio.training.errors import PistachioError

STEP = 6  # grey levels from frame to frame: more than any codec loses


def write_video(path, frames=24, *, fps=8, size=(64, 48), base=20, codec="libx264", stamps=None):
    """Frame i is grey, `base + STEP * i`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.gop_size, stream.bit_rate = 6, 8_000_000
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), base + STEP * i, np.uint8), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def indices(frames, base=20):
    """Which frames of `write_video` these are."""
    return [round((np.asarray(frame).mean() - base) / STEP) for frame in frames]


def clips_of(path, **settings):
    pictures, notes = read_clips(path, path.name, ClipSettings(**settings))
    return [indices(frames_of(path, p.clip)) for p in pictures], pictures, notes


# ---- which frames --------------------------------------------------------


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.mov", "libx264")])
def test_every_container_gives_its_frames_in_order(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec=codec)
    ((taken,), (picture,), notes) = clips_of(path, frame_buckets=(21,), fps=0)
    assert taken == list(range(21)) and notes == ()
    assert (picture.width, picture.height, picture.clip.num_frames) == (64, 48, 21)


def test_resampling_takes_the_frame_on_screen(tmp_path):
    path = write_video(tmp_path / "a.mp4", fps=16)
    assert clips_of(path, frame_buckets=(9,), fps=8)[0] == [list(range(0, 18, 2))]
    assert clips_of(path, frame_buckets=(5,), fps=16 / 3)[0] == [[0, 3, 6, 9, 12]]
    ((taken,), _, notes) = clips_of(path, frame_buckets=(17,), fps=32)
    assert taken == [i // 2 for i in range(17)] and "16 frames a second: some are repeated to reach 32" in notes[0]


def test_uneven_times_are_followed(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=6, codec="libx264", stamps=[0, 100, 200, 700, 800, 900])
    taken = clips_of(path, frame_buckets=(9,), fps=10)[0][0]
    assert taken == [0, 1, 2, 2, 2, 2, 2, 3, 4], "frame 2 stays on screen for half a second"


def test_the_choice_of_clips(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=24)
    assert clips_of(path, frame_buckets=(5, 9, 33), fps=8)[0] == [list(range(9))], "the longest that it fills"
    assert clips_of(path, frame_buckets=(9,), fps=8, choice="middle")[0] == [list(range(7, 16))]
    assert clips_of(path, frame_buckets=(9,), fps=8, choice="uniform", clips_per_video=3)[0] == [list(range(s, s + 9)) for s in (0, 8, 15)]
    taken = clips_of(path, frame_buckets=(5,), fps=8, choice="random", clips_per_video=4, seed=3)[0]
    assert len(taken) > 1 and all(t == list(range(t[0], t[0] + 5)) for t in taken)
    assert taken == clips_of(path, frame_buckets=(5,), fps=8, choice="random", clips_per_video=4, seed=3)[0]
    assert taken != clips_of(path, frame_buckets=(5,), fps=8, choice="random", clips_per_video=4, seed=4)[0]
    assert len(choose_clips(9, 8.0, ClipSettings(frame_buckets=(9,), choice="random", clips_per_video=5), "x")) == 1, "there is one"


@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_seeking_gives_what_decoding_from_the_start_gives(tmp_path, monkeypatch, name, codec):
    path = write_video(tmp_path / name, frames=36, codec=codec)
    settings = dict(frame_buckets=(5,), fps=8, choice="uniform", clips_per_video=6)
    decoded = clips_of(path, **settings)
    monkeypatch.setattr(video, "SEEK_BEYOND_SECONDS", 0.1)
    video._inspect.cache_clear()
    sought = clips_of(path, **settings)
    assert sought[0] == decoded[0] == [list(range(s, s + 5)) for s in (0, 6, 12, 19, 25, 31)]
    assert [p.content_hash for p in sought[1]] == [p.content_hash for p in decoded[1]]


def test_one_frame_in_memory_at_a_time(tmp_path):
    path = write_video(tmp_path / "a.mp4", frames=24)
    (picture,) = clips_of(path, frame_buckets=(21,), fps=8)[1]
    frames = frames_of(path, picture.clip)
    first = next(frames)
    assert indices([first]) == [0] and indices([next(frames)]) == [1]
    frames.close()


# ---- folders -------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for i in range(6):
        write_video(folder / f"v{i}.mp4", frames=12, base=10 + 20 * i, size=(64, 48) if i else (48, 64))
        (folder / f"v{i}.txt").write_text(f"a film, number {i}")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "still.png")
    (folder / "still.txt").write_text("a still")
    return folder


def test_a_folder_of_videos_and_pictures(folder):
    write_video(folder / "v6.gif", frames=12, codec="gif", base=0)
    dataset = load_folder(folder, clips=ClipSettings(frame_buckets=(5,), fps=8))
    assert [p.relative_path for p in dataset.pictures] == ["still.png", *(f"v{i}.mp4" for i in range(6)), "v6.gif"]
    assert [p.clip is not None for p in dataset.pictures] == [False] + [True] * 7
    assert dataset.pictures[1].caption == "a film, number 0" and dataset.skipped == ()
    shown = thumbnails(dataset, 32)
    assert len(shown) == 8 and abs(np.asarray(shown[3])[16, 16].mean() - 50) < 4, "the first frame of v2"
    assert contact_sheet(dataset).width > 100
    pictures = load_folder(folder)
    assert [p.relative_path for p in pictures.pictures] == ["still.png", "v6.gif"]
    assert any("6 videos passed over" in note and "Load Video Folder" in note for note in pictures.notes)
    before = folder_fingerprint(folder, videos=True), folder_fingerprint(folder)
    write_video(folder / "v0.mp4", frames=13)
    assert folder_fingerprint(folder, videos=True) != before[0] and folder_fingerprint(folder) == before[1]


def test_clips_of_one_video_are_held_out_together(folder):
    dataset = load_folder(folder, clips=ClipSettings(frame_buckets=(1,), fps=8, choice="uniform", clips_per_video=3))
    assert len(dataset.pictures) == 19
    split = split_dataset(dataset).split
    sides = {}
    for picture in dataset.pictures:
        sides.setdefault(picture.path, set()).add(picture.content_hash in split.held_out)
    assert all(len(side) == 1 for side in sides.values()) and split.held_out


def test_what_is_broken_is_left_out_with_its_reason(folder):
    whole = (folder / "v1.mp4").read_bytes()
    (folder / "v1.mp4").write_bytes(whole[: len(whole) // 2])  # the index of an MP4 is at its end
    (folder / "v2.mp4").write_bytes(b"")
    (folder / "v3.mp4").write_bytes(b"\x00\x01not a video" * 50)
    write_video(folder / "v4.mp4", frames=3)
    with av.open(str(folder / "v5.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    dataset = load_folder(folder, clips=ClipSettings(frame_buckets=(5,), fps=8))
    assert [p.relative_path for p in dataset.pictures] == ["still.png", "v0.mp4"]
    reasons = {s.relative_path: s.reason for s in dataset.skipped}
    assert "damaged, cut short or no video" in reasons["v1.mp4"] and "empty (0 bytes)" in reasons["v2.mp4"]
    assert "no video that can be read" in reasons["v3.mp4"] and "only sound" in reasons["v5.mp4"]
    assert "too short: 3 frames at 8 frames a second, and the shortest clip is 5" in reasons["v4.mp4"]


def test_a_video_damaged_in_its_middle(tmp_path):
    path = write_video(tmp_path / "a.mkv", frames=24, codec="libx264")
    clip = clips_of(path, frame_buckets=(21,), fps=8)[1][0].clip
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(PistachioError, match="damaged"):
        list(frames_of(path, clip))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(frame_buckets=(16,)), "16 frames can't be encoded.*Write 13 or 17"), (dict(frame_buckets=()), "No number of frames"),
        (dict(frame_buckets=(0,)), "0 frames"), (dict(fps=-1), "frame rate is -1"), (dict(choice="best"), "'best' is unknown"),
        (dict(clips_per_video=0), "0 clips"),
    ],
)
def test_wrong_settings_are_named(wrong, words):
    with pytest.raises(PistachioError, match=words):
        ClipSettings(**wrong)


# ---- encoding ------------------------------------------------------------


def test_clips_are_encoded_at_their_bucket_and_found_again(folder, tmp_path):
    dataset = load_folder(folder, clips=ClipSettings(frame_buckets=(5,), fps=8))
    seen = []

    def encode_latent(pixels):
        seen.append(pixels)
        return torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)[::4].movedim(0, 1)[None]

    options = dict(
        encode_latent=encode_latent, encode_text=lambda text: [[torch.zeros(1, 2, 2), {}]], vae_fingerprint="v", clip_fingerprint="c",
        cache_folder=tmp_path / "cache", trigger_word="ohwx", resolution=64, step=16,
    )
    encoded = encode_dataset(dataset, **options)
    shapes = {item.relative_path: item.latent_shape for item in encoded.items}
    assert shapes["still.png"] == (1, 3, 1, 6, 8) and shapes["v0.mp4"] == (1, 3, 2, 8, 6) and shapes["v3.mp4"] == (1, 3, 2, 6, 8)
    clip = seen[[i.relative_path for i in encoded.items].index("v3.mp4")]
    assert clip.shape == (5, 48, 64, 3) and indices([f * 255 for f in clip.numpy()], base=70) == list(range(5))
    assert len(seen) == 7 and encode_dataset(dataset, **options) == encoded and len(seen) == 7
    write_video(folder / "v3.mp4", frames=12, base=90)
    with pytest.raises(PistachioError, match="'v3.mp4' changed"):
        encode_dataset(dataset, **(options | {"vae_fingerprint": "other"}))
