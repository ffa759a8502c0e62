"""Videos from a folder to a trained LoRA on a tiny Wan 2.1, by ComfyUI's own executor and stock loaders."""

from __future__ import annotations

import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
import torch


def write_video(path, *, seed, frames=10, size=(64, 48)):
    """A square that moves over a ground of its own colour."""
    rng = np.random.default_rng(seed)
    ground, square = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(frames):
            picture = np.full((size[1], size[0], 3), ground, np.uint8)
            picture[10:26, 2 + 4 * i : 18 + 4 * i] = square
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(host):
    folder = host.input / "films"
    folder.mkdir()
    for i in range(6):
        write_video(folder / f"film {i}.mp4", seed=i)
        (folder / f"film {i}.txt").write_text(f"a square moves to the right, film {i}")
    yield folder
    shutil.rmtree(folder)


def node(name):
    """A node class as the host calls it."""
    import pistachio.nodes
    from comfy_api.latest import io

    clone = type(f"{name}Clone", (getattr(pistachio.nodes, name),), {})
    clone.hidden = io.HiddenHolder.from_dict({"UNIQUE_ID": "9"})
    return clone


def load(folder, **inputs):
    output = node("LoadVideoFolder").execute(folder.name, **({"frame_buckets": "5", "fps": 8.0} | inputs))
    return output.args[0], output.ui


def test_wan_trains_on_clips(tiny, host, folder, tmp_path):
    from pistachio.dataset.cache import load_latent
    from pistachio.training.config import AdapterConfig, EvaluationConfig
    from pistachio.training.run import RunFolder

    wan = tiny("wan21")
    dataset, _ = load(folder)
    assert [p.clip.num_frames for p in dataset.pictures] == [5] * 6
    with torch.inference_mode():
        encoded = node("EncodeDataset").execute(dataset, wan.vae, wan.clip, trigger_word="zwx", resolution=64).args[0]
        item = encoded.items[0]
        assert item.latent_shape == (1, 16, 2, 6, 8) and item.caption.startswith("zwx, a square")
        assert not torch.equal(load_latent(item.latent_path)[:, :, 0], load_latent(item.latent_path)[:, :, 1]), "it moves"
        output = node("TrainLora").execute(
            wan.model, encoded, run_name="films", num_steps=2, batch_size=1, precision="fp32",
            adapter=AdapterConfig(rank=2, alpha=2), evaluation=EvaluationConfig(num_evaluations=1, timesteps_per_image=4, early_stop=False),
        )
    rows = RunFolder(output.args[2].folder).metrics()
    trained = [row for row in rows if row["kind"] == "train"]
    assert len(trained) == 2 and all(row["grad_norm"] > 0 for row in trained) and (host.models / "loras" / output.args[1]).is_file()
    shutil.rmtree(output.args[2].folder)


def test_pictures_and_clips_go_together(tiny, folder):
    from support import pictures

    pictures.write_folder(folder / "stills", 2)
    try:
        dataset, _ = load(folder)
        wan = tiny("wan21")
        with torch.inference_mode():
            encoded = node("EncodeDataset").execute(dataset, wan.vae, wan.clip, trigger_word="zwx", resolution=64).args[0]
        assert sorted({item.latent_shape for item in encoded.items}) == [(1, 16, 1, 8, 8), (1, 16, 2, 6, 8)]
    finally:
        shutil.rmtree(folder / "stills")


def test_an_image_model_is_told_before_anything_is_encoded(tiny, folder):
    from pistachio.training.errors import PistachioError

    sd15 = tiny("sd15")
    dataset, _ = load(folder)
    with torch.inference_mode(), pytest.raises(PistachioError, match="'film 0.mp4' is a video, and this VAE belongs to an image model"):
        node("EncodeDataset").execute(dataset, sd15.vae, sd15.clip, trigger_word="zwx", resolution=64)


def test_numbers_of_frames_that_the_vae_does_not_take(tiny, folder, monkeypatch):
    from pistachio.training.errors import PistachioError

    wan = tiny("wan21")
    monkeypatch.setattr(wan.vae, "temporal_compression_decode", lambda: 8)  # as LTX and Cosmos
    with torch.inference_mode(), pytest.raises(PistachioError, match="5 frames, and this model takes 8n [+] 1. Write 1 or 9"):
        node("EncodeDataset").execute(load(folder)[0], wan.vae, wan.clip, trigger_word="zwx", resolution=64)


@pytest.mark.parametrize("buckets, words", [("16", "Write 13 or 17"), ("many", "no numbers of frames"), ("", "No number of frames")])
def test_wrong_numbers_of_frames_are_named(folder, buckets, words):
    from pistachio.training.errors import PistachioError

    with pytest.raises(PistachioError, match=words):
        load(folder, frame_buckets=buckets)


def test_the_node_says_what_it_read(folder):
    write_video(folder / "short.mp4", seed=9, frames=3)
    try:
        _, ui = load(folder, clip_choice="uniform", clips_per_video=2)
    finally:
        (folder / "short.mp4").unlink()
    words = str(ui.as_dict() if hasattr(ui, "as_dict") else ui)
    assert "12 clips of 6 videos (5 frames), 0 pictures, 12 with a caption." in words and "short.mp4" in words
