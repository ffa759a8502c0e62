"""Reading ahead on threads: in order, in a window, at the same time, and with the host's setting for damaged files put back."""

import threading

import pytest
from PIL import Image, ImageFile

from pistachio.dataset import images
from pistachio.dataset.joycaption.prefetch import Prefetch


def test_results_come_in_order_and_only_a_window_is_worked_on():
    begun = []

    def work(item):
        begun.append(item)
        return item * item

    prefetch = Prefetch(range(100), work, ahead=4, workers=3)
    assert prefetch.take(0, 3) == [0, 1, 4]
    assert prefetch.take(0, 2) == [0, 1], "a smaller part of the same batch"
    assert prefetch.take(2, 5) == [4, 9, 16]
    prefetch.close()
    assert len(begun) == len(set(begun)) and max(begun) < 5 + 4
    with pytest.raises(RuntimeError):
        prefetch.take(20, 21)


def test_items_are_worked_on_at_the_same_time():
    together = threading.Barrier(3, timeout=20)
    prefetch = Prefetch(range(3), lambda item: together.wait() >= 0, ahead=3, workers=3)
    assert prefetch.take(0, 3) == [True, True, True], "each waits for the other two"
    prefetch.close()


def test_what_work_raises_is_raised():
    prefetch = Prefetch([0, 1], lambda item: 1 // item, ahead=2)
    with pytest.raises(ZeroDivisionError):
        prefetch.take(0, 2)
    prefetch.close()


def test_pictures_are_decoded_at_the_same_time_and_strictly(tmp_path, monkeypatch):
    for name in "ab":
        Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / f"{name}.png")
    together = threading.Barrier(2, timeout=20)
    load = Image.Image.load
    seen = []

    def slow(self):
        together.wait()
        seen.append(ImageFile.LOAD_TRUNCATED_IMAGES)
        return load(self)

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(images, "_upright", lambda image, name, notes: (slow(image), image)[1])
    prefetch = Prefetch([tmp_path / "a.png", tmp_path / "b.png"], images.read_rgb, ahead=2, workers=2)
    assert [image.size for image in prefetch.take(0, 2)] == [(40, 30)] * 2
    prefetch.close()
    assert seen == [False, False] and ImageFile.LOAD_TRUNCATED_IMAGES is True
