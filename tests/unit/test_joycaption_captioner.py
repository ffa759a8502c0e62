"""Captioning a folder with a real tiny JoyCaption: what is loaded, kept, saved and named."""

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.folder import load_folder
from pistachio.dataset.joycaption import captioner as captioner_module
from pistachio.dataset.joycaption.captioner import LazyJoyCaptioner, caption_dataset, fault
from pistachio.dataset.joycaption.model import Generated
from pistachio.dataset.joycaption.prompts import CAPTION_TYPES, EXTRA_OPTIONS, CaptionRequest
from pistachio.training.errors import PistachioError
from support import tiny_llava

TEXTS = [form for forms in CAPTION_TYPES.values() for form in forms] + list(EXTRA_OPTIONS)
# long enough for the noise of the tiny model to come to its end
REQUEST = CaptionRequest(caption_type="MidJourney", options=(), max_new_tokens=400, temperature=1.0, top_p=1.0, seed=1)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.set_num_threads(1)
    return tiny_llava.write_joycaption(tmp_path_factory.mktemp("models") / "joycaption-beta-one-tiny", TEXTS)


@pytest.fixture
def pictures(tmp_path):
    for i in range(5):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"p{i}.png")
    return tmp_path


def lazy(model_folder, **options):
    return LazyJoyCaptioner(folder_or_repo=model_folder, precision="fp32", **options)


def texts(folder):
    return {p.stem: p.read_text(encoding="utf-8").strip() for p in folder.glob("*.txt")}


def test_nothing_is_loaded_when_every_picture_has_a_caption(pictures):
    for i in range(5):
        (pictures / f"p{i}.txt").write_text(f"mine {i}")
    loads = []
    # there is no such model: loading it would fail
    captioner = LazyJoyCaptioner(folder_or_repo="/nowhere/at-all", before_load=lambda: loads.append(1))
    dataset = caption_dataset(load_folder(pictures), captioner, REQUEST, trigger_word="ohwx")
    assert dataset.notes == ("5 pictures already have captions: kept; the captioner was not loaded.",)
    assert [p.caption for p in dataset.pictures] == [f"mine {i}" for i in range(5)]
    assert loads == [] and not captioner.is_loaded
    assert texts(pictures) == {f"p{i}": f"mine {i}" for i in range(5)}


def test_missing_captions_are_written_with_the_trigger_and_memory_is_freed(pictures, model_folder):
    (pictures / "p1.txt").write_text("mine")
    (pictures / "p2.txt").write_text("  \n")  # empty: counts as none
    loads, seen = [], []
    captioner = lazy(model_folder, before_load=lambda: loads.append(1))
    dataset = caption_dataset(
        load_folder(pictures), captioner, REQUEST, batch_size=3, trigger_word="ohwx", progress=lambda done, total: seen.append((done, total))
    )
    written = texts(pictures)
    assert written["p1"] == "mine"
    assert all(written[f"p{i}"].startswith("ohwx, ") and len(written[f"p{i}"]) > 8 for i in (0, 2, 3, 4))
    assert {p.path.stem: p.caption for p in dataset.pictures} == written == {p.path.stem: p.caption for p in load_folder(pictures).pictures}
    assert seen == [(3, 4), (4, 4)] and loads == [1] and not captioner.is_loaded
    assert dataset.notes == ("1 picture already has a caption: kept.", "4 pictures captioned.")


def test_the_same_seed_gives_the_same_captions_and_overwriting_is_asked_for(pictures, model_folder):
    first = texts(caption_dataset(load_folder(pictures), lazy(model_folder), REQUEST, batch_size=5).folder)
    kept = caption_dataset(load_folder(pictures), lazy(model_folder), CaptionRequest(seed=2), batch_size=5)
    assert texts(pictures) == first and "not loaded" in kept.notes[0]
    caption_dataset(load_folder(pictures), lazy(model_folder), REQUEST, batch_size=5, overwrite=True)
    assert texts(pictures) == first
    other = CaptionRequest(caption_type="MidJourney", options=(), max_new_tokens=400, temperature=1.0, top_p=1.0, seed=2)
    caption_dataset(load_folder(pictures), lazy(model_folder), other, batch_size=5, overwrite=True)
    assert all(texts(pictures)[name] != first[name] for name in first)


def test_an_interrupt_keeps_finished_batches_and_the_rest_is_done_next_time(pictures, model_folder):
    class Cancel(Exception):
        pass

    def stop():
        if len(texts(pictures)) >= 4:
            raise Cancel

    captioner = lazy(model_folder)
    with pytest.raises(Cancel):
        caption_dataset(load_folder(pictures), captioner, REQUEST, batch_size=2, check_interrupted=stop)
    half = texts(pictures)
    assert sorted(half) == ["p0", "p1", "p2", "p3"] and not captioner.is_loaded
    caption_dataset(load_folder(pictures), lazy(model_folder), REQUEST, batch_size=2)
    assert texts(pictures) == half | {"p4": texts(pictures)["p4"]}


def test_a_caption_written_meanwhile_is_kept(pictures, model_folder):
    dataset = load_folder(pictures)
    (pictures / "p0.txt").write_text("just now")
    done = caption_dataset(dataset, lazy(model_folder), REQUEST)
    assert texts(pictures)["p0"] == "just now" == done.pictures[0].caption


def test_two_pictures_of_one_stem_share_the_caption(pictures, model_folder):
    Image.new("RGB", (20, 20)).save(pictures / "p0.jpg")
    done = caption_dataset(load_folder(pictures), lazy(model_folder), REQUEST, batch_size=8)
    shared = [p.caption for p in done.pictures if p.path.stem == "p0"]
    assert len(shared) == 2 and shared[0] == shared[1] == texts(pictures)["p0"]


def test_failures_are_named_and_never_saved(pictures, model_folder):
    dataset = load_folder(pictures)
    (pictures / "p3.png").write_bytes(b"")  # damaged after the folder was read
    done = caption_dataset(dataset, lazy(model_folder), REQUEST, batch_size=2)
    assert sorted(texts(pictures)) == ["p0", "p1", "p2", "p4"]
    assert done.pictures[3].caption is None
    assert any("1 picture got no caption: p3.png" in n and "0 bytes" in n for n in done.notes)


def test_when_nothing_works_it_is_an_error(pictures, model_folder):
    short = CaptionRequest(caption_type="MidJourney", options=(), max_new_tokens=1, temperature=0)
    captioner = lazy(model_folder)
    with pytest.raises(PistachioError, match="No picture got a caption.*p0.png.*raise max_new_tokens"):
        caption_dataset(load_folder(pictures), captioner, short)
    assert texts(pictures) == {} and not captioner.is_loaded
    with pytest.raises(PistachioError, match="Batch size is 0"):
        caption_dataset(load_folder(pictures), captioner, REQUEST, batch_size=0)


def test_out_of_memory_halves_the_batch(pictures, model_folder):
    class SmallMemory(LazyJoyCaptioner):
        """The real captioner on a device that holds two pictures."""

        sizes = []

        def generate(self, images, request, *, seed=None):
            self.sizes.append(len(images))
            if len(images) > 2:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return LazyJoyCaptioner.generate(self, images, request, seed=seed)

    captioner = SmallMemory(folder_or_repo=model_folder, precision="fp32")
    done = caption_dataset(load_folder(pictures), captioner, REQUEST, batch_size=5)
    assert captioner.sizes[:2] == [5, 2] and len(texts(pictures)) == 5
    assert any("2 pictures at a time" in note for note in done.notes)


def test_missing_model_says_what_to_do_and_writes_nothing(pictures):
    with pytest.raises(PistachioError, match="neither a folder nor a Hugging Face name"):
        caption_dataset(load_folder(pictures), LazyJoyCaptioner(folder_or_repo="/nowhere"), REQUEST)
    assert texts(pictures) == {}


@pytest.mark.parametrize(
    "text, finished, words",
    [
        ("a man in a red hat, very very tall", True, None),
        ("one, two, three, one, two, four, one, two, five", True, None),
        ("", True, "empty"),
        ("a man in a", False, "did not end within 9 tokens"),
        ("hat, hat, hat, hat, hat", True, "repeats 'hat'"),
        ("well: red hat, blue coat, red hat, blue coat, red hat, blue coat, red hat, blue coat, red hat, blue coat.", True, "repeats 'red hat blue coat'"),
    ],
)
def test_fault(text, finished, words):
    found = fault(Generated(text=text, num_tokens=9, finished=finished))
    assert found is None if words is None else words in found


def test_paragraphs_and_control_characters_go(pictures):
    text = captioner_module.one_line(" a man\r\n\n\tin a\x00 hat\x85\x1f é\x7f ")
    assert text == "a man in a hat é"
    assert fault(Generated(text="\x00\x01", num_tokens=2, finished=True)) == "the answer was empty"


def test_batch_seed_is_of_the_pictures(pictures):
    dataset = load_folder(pictures)
    seeds = {captioner_module._batch_seed(seed, list(dataset.pictures[a:b]), t) for seed in (0, 1) for a, b in ((0, 1), (0, 2), (1, 2)) for t in (0, 1)}
    assert len(seeds) == 12 and all(0 <= s < 2**63 for s in seeds)
