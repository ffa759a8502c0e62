"""The cache's files: small without loss, rounded when asked, whole after a kill at any moment, and quick to look over."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from pistachio.dataset.cache import (
    CacheMiss, ConditionCache, LatentCache, check_condition, check_mask, latent_shape, load_condition, load_latent, load_mask,
    save_condition, save_latent, save_mask,
)
from pistachio.dataset.files import TEMPORARY_SUFFIX


def latent(seed=0, shape=(1, 4, 32, 32)):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.tensor([1.0, 5.0, 0.3, 20.0]).view(1, 4, 1, 1)


# ---- size ----------------------------------------------------------------


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_what_was_only_widened_is_kept_in_sixteen_bits_without_loss(tmp_path, narrow):
    widened, full = latent().to(narrow).float(), latent()
    save_latent(tmp_path / "narrow", widened)
    save_latent(tmp_path / "full", full)
    assert torch.equal(load_latent(tmp_path / "narrow"), widened) and load_latent(tmp_path / "narrow").dtype is torch.float32
    assert torch.equal(load_latent(tmp_path / "full"), full), "the default loses nothing"
    assert (tmp_path / "narrow").stat().st_size < 0.55 * (tmp_path / "full").stat().st_size
    save_condition(tmp_path / "c", [[widened, {"pooled_output": full, "half": full.half(), "n": torch.arange(3)}]])
    ((kept, extra),) = load_condition(tmp_path / "c")
    assert torch.equal(kept, widened) and kept.dtype is torch.float32 and torch.equal(extra["pooled_output"], full)
    assert extra["half"].dtype is torch.float16 and extra["n"].dtype is torch.int64
    assert latent_shape(tmp_path / "narrow") == tuple(widened.shape)


def test_infinities_and_signs_survive(tmp_path):
    odd = torch.tensor([[0.0, -0.0, float("inf"), float("-inf"), 1e-30, float("nan")]])
    save_latent(tmp_path / "l", odd)
    assert load_latent(tmp_path / "l").numpy().tobytes() == odd.numpy().tobytes()


# (largest size against 32 bits, largest root mean square error against the latent's own, by channel)
@pytest.mark.parametrize("storage, size, error", [("bf16", 0.55, 0.002), ("fp8", 0.30, 0.035)])
def test_rounding_costs_what_it_says(tmp_path, storage, size, error):
    full = latent(shape=(1, 4, 64, 64))
    save_latent(tmp_path / "full", full)
    save_latent(tmp_path / "small", full, storage)
    loaded = load_latent(tmp_path / "small")
    assert loaded.dtype is torch.float32 and loaded.shape == full.shape
    by_channel = ((loaded - full).square().mean((0, 2, 3)) / full.square().mean((0, 2, 3))).sqrt()
    print(storage, by_channel.tolist())
    assert 0 < by_channel.max() < error
    assert (tmp_path / "small").stat().st_size < size * (tmp_path / "full").stat().st_size


def test_a_latent_of_zeros_can_be_rounded(tmp_path):
    save_latent(tmp_path / "l", torch.zeros(1, 4, 2, 3, 3), "fp8")
    assert torch.equal(load_latent(tmp_path / "l"), torch.zeros(1, 4, 2, 3, 3))


# ---- damage --------------------------------------------------------------


def test_a_header_is_enough_to_see_a_cut_or_another_format(tmp_path):
    save_latent(tmp_path / "l", latent())
    save_condition(tmp_path / "c", [[torch.ones(1, 3), {}]])
    save_mask(tmp_path / "m", torch.ones(1, 1, 4, 4))
    assert latent_shape(tmp_path / "l") == (1, 4, 32, 32) and load_mask(tmp_path / "m").shape == (1, 1, 4, 4)
    check_condition(tmp_path / "c"), check_mask(tmp_path / "m")
    for check, name in ((latent_shape, "l"), (check_condition, "c"), (check_mask, "m")):
        data = (tmp_path / name).read_bytes()
        for length in (0, 3, 8, 20, len(data) // 2, len(data) - 1, len(data) + 1):
            (tmp_path / "cut").write_bytes((data + b"x")[:length])
            with pytest.raises(CacheMiss, match="damaged"):
                check(tmp_path / "cut")
        (tmp_path / "cut").write_bytes(b"\xff" * 64)
        with pytest.raises(CacheMiss, match="damaged"):
            check(tmp_path / "cut")
        with pytest.raises(CacheMiss, match="missing"):
            check(tmp_path / "nowhere")
        for other in {"l", "c", "m"} - {name}:
            with pytest.raises(CacheMiss, match="format"):
                check(tmp_path / other)


def write_forever(folder: Path, ready) -> None:
    latents, conditions = LatentCache(folder=folder), ConditionCache(folder=folder)
    ready.set()
    for i in range(10**9):
        value = torch.full((1, 4, 64, 64), 1 / (i % 7 + 3))
        save_latent(latents.path_for(i % 40), value)
        save_condition(conditions.path_for(i % 40), [[value, {"n": i % 40}]])


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="kill -9 is POSIX")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_killed_writer_leaves_only_whole_files(tmp_path):
    """Twenty writers of the same files, each killed at another moment of its work."""
    context = multiprocessing.get_context("fork")
    for round_number in range(20):
        ready = context.Event()
        writer = context.Process(target=write_forever, args=(tmp_path, ready), daemon=True)
        writer.start()
        assert ready.wait(60)
        time.sleep(0.0017 + 0.0113 * round_number)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
        assert writer.exitcode == -signal.SIGKILL
    files = [path for path in tmp_path.rglob("*.safetensors") if not path.name.startswith(".")]
    assert len(files) > 10
    for path in files:
        value = load_latent(path) if path.parent.parent.name == "latents" else load_condition(path)[0][0]
        assert len(value.unique()) == 1 and value.shape == (1, 4, 64, 64)


def test_what_a_killed_writer_left_is_swept_later(tmp_path):
    cache = LatentCache(folder=tmp_path)
    path = cache.path_for("a")
    save_latent(path, latent())
    fresh, stale = (path.with_name(f".{n}{TEMPORARY_SUFFIX}") for n in ("fresh", "stale"))
    for file in (fresh, stale):
        file.write_bytes(b"half")
    os.utime(stale, (0, time.time() - 2 * 24 * 3600))
    assert cache.remove_stale() == 1
    assert fresh.exists() and not stale.exists() and path.exists()


def test_ten_thousand_files_are_looked_over_in_seconds(tmp_path):
    save_latent(tmp_path / "0", torch.zeros(1, 4, 4, 4))
    data = (tmp_path / "0").read_bytes()
    paths = [tmp_path / str(i) for i in range(10_000)]
    for path in paths:
        path.write_bytes(data)
    start = time.process_time()
    shapes = {latent_shape(path) for path in paths}
    seconds = time.process_time() - start
    print(f"10,000 headers: {seconds:.2f} s")
    assert shapes == {(1, 4, 4, 4)} and seconds < 10
