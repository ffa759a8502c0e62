"""Aspect buckets and the training crop."""

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.buckets import assign_bucket, bucket_note, fit
from pistachio.training.errors import PistachioError


@pytest.mark.parametrize(
    "size, resolution, step, bucket",
    [
        ((4000, 4000), 1024, 64, (1024, 1024)),
        ((4000, 3000), 1024, 64, (1152, 896)),
        ((3000, 2000), 1024, 64, (1216, 832)),
        ((1080, 1920), 1024, 64, (768, 1344)),
        ((512, 512), 512, 64, (512, 512)),
        ((500, 500), 512, 64, (448, 448)),  # its own area: not enlarged
        ((96, 96), 512, 16, (96, 96)),
        ((96, 96), 96, 8, (96, 96)),
        ((30, 200), 512, 64, (64, 64)),  # enlarging is unavoidable: a side is below the step
        ((10000, 100), 512, 64, (1024, 256)),  # 4:1 at most
    ],
)
def test_table(size, resolution, step, bucket):
    assert assign_bucket(*size, resolution=resolution, step=step) == bucket


def test_invariants_over_many_sizes():
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = (int(v) for v in np.exp(rng.uniform(np.log(64), np.log(6000), 2)))
        for resolution, step in ((512, 64), (1024, 64), (768, 16)):
            w, h = assign_bucket(width, height, resolution=resolution, step=step)
            assert w % step == 0 and h % step == 0 and w >= step and h >= step
            assert w * h <= max(min(resolution**2, width * height), step * step)
            assert assign_bucket(height, width, resolution=resolution, step=step) == (h, w)
            if 0.5 < width / height < 2 and min(width, height) >= resolution:
                kept = min(width / height / (w / h), w / h / (width / height))
                assert kept > 0.88 and w * h > 0.75 * resolution**2


def test_step_above_resolution():
    with pytest.raises(PistachioError, match="resolution is 32"):
        assign_bucket(100, 100, resolution=32, step=64)


def test_notes():
    assert bucket_note("a.png", 2000, 2000, (512, 512), 512) is None
    assert "75% of it is cut off" in bucket_note("a.png", 1600, 100, (1024, 256), 512)
    assert "is trained at its own size, 96x96" in bucket_note("a.png", 96, 96, (96, 96), 512)
    assert "is enlarged, 64x64" in bucket_note("a.png", 40, 40, (64, 64), 512)


def test_fit_is_exact_when_nothing_is_to_do():
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    tensor = fit(Image.fromarray(values), 64, 48)
    assert tensor.shape == (1, 48, 64, 3) and tensor.dtype == torch.float32
    assert torch.equal((tensor[0] * 255).round().to(torch.uint8), torch.from_numpy(values))


def test_fit_covers_and_crops_the_centre():
    ramp = np.zeros((100, 400, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 400)[None]
    tensor = fit(Image.fromarray(ramp), 64, 64)[0] * 255
    row = tensor[32, :, 0]
    assert abs(row[0] - 255 * 150 / 400) < 4 and abs(row[-1] - 255 * 250 / 400) < 4, "columns 150 to 250 of 400"
    tall = fit(Image.fromarray(ramp).rotate(90, expand=True), 64, 64)[0] * 255
    assert abs(tall[0, 32, 0] - 255 * 250 / 400) < 4 and abs(tall[-1, 32, 0] - 255 * 150 / 400) < 4


def test_fit_equals_resize_then_crop():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((600, 400), Image.Resampling.BICUBIC)
    whole = np.asarray(image.resize((384, 256), Image.Resampling.LANCZOS)).astype(float)[:, 64:320]
    got = fit(image, 256, 256)[0].numpy() * 255
    assert np.abs(got - whole).max() <= 1
