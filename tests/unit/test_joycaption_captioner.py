"""Captioning a folder with a real tiny JoyCaption: what is loaded, kept, saved and named."""

import numpy as np
import pytest
import torch
from PIL import Image

from pistachio.dataset.folder import load_folder
from pistachio.dataset.joycaption import captioner as captioner_module
from pistachio.dataset.caption_history import CaptionHistory
from pistachio.dataset.joycaption.captioner import LazyJoyCaptioner, caption_dataset
from pistachio.dataset.joycaption.lazy import OwnDevice
from pistachio.dataset.joycaption.model import Generated
from pistachio.dataset.joycaption.needs_review import FILE_NAME, read_needs_review
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


class CountedLoads(OwnDevice):
    """The plain residence, which remembers how much room was asked for at each load."""

    def __init__(self):
        super().__init__(device=torch.device("cpu"))
        self.loads = []

    def before_load(self, size_bytes):
        self.loads.append(size_bytes)


class Answers:
    """A captioner that reads its answers from a table: `{attempt: {grey value of the picture: text}}`. What it was asked is in `asked`."""

    kind, is_loaded, most_at_once = "beta-one", True, None

    def __init__(self, *tables):
        self.tables, self.asked, self.temperatures = tables, [], []

    def prepare(self, image):
        return image

    def generate(self, images, request, *, seed=None, check_interrupted=None):
        greys = [image.getpixel((0, 0))[0] for image in images]
        attempt = sum(1 for earlier, _ in self.asked if set(earlier) & set(greys))
        self.asked.append((greys, seed))
        self.temperatures.append(request.temperature)
        return [Generated(text=self.tables[min(attempt, len(self.tables) - 1)][grey], num_tokens=9, finished=True) for grey in greys]

    def free(self):
        pass


@pytest.fixture
def greys(tmp_path):
    for value in (10, 20, 30, 40):
        Image.new("RGB", (16, 16), (value,) * 3).save(tmp_path / f"g{value}.png")
    return tmp_path


def texts(folder):
    return {p.stem: p.read_text(encoding="utf-8").strip() for p in folder.glob("*.txt")}


def test_nothing_is_loaded_when_every_picture_has_a_caption(pictures):
    for i in range(5):
        (pictures / f"p{i}.txt").write_text(f"mine {i}")
    place = CountedLoads()
    # there is no such model: loading it would fail
    captioner = LazyJoyCaptioner(folder_or_repo="/nowhere/at-all", residence=place)
    dataset = caption_dataset(load_folder(pictures), captioner, REQUEST, trigger_word="ohwx")
    assert dataset.notes == ("5 pictures already have captions: kept; the captioner was not loaded.",)
    assert [p.caption for p in dataset.pictures] == [f"mine {i}" for i in range(5)]
    assert place.loads == [] and not captioner.is_loaded
    assert texts(pictures) == {f"p{i}": f"mine {i}" for i in range(5)}


def test_missing_captions_are_written_with_the_trigger_and_memory_is_freed(pictures, model_folder):
    (pictures / "p1.txt").write_text("mine")
    (pictures / "p2.txt").write_text("  \n")  # empty: counts as none
    seen, place = [], CountedLoads()
    captioner = lazy(model_folder, residence=place)
    dataset = caption_dataset(
        load_folder(pictures), captioner, REQUEST, batch_size=3, trigger_word="ohwx", progress=lambda done, total: seen.append((done, total))
    )
    written = texts(pictures)
    assert written["p1"] == "mine"
    assert all(written[f"p{i}"].startswith("ohwx, ") and len(written[f"p{i}"]) > 8 for i in (0, 2, 3, 4))
    assert {p.path.stem: p.caption for p in dataset.pictures} == written == {p.path.stem: p.caption for p in load_folder(pictures).pictures}
    assert seen == [(3, 4), (4, 4)] and not captioner.is_loaded
    weights_bytes = sum(file.stat().st_size for file in model_folder.glob("*.safetensors"))
    assert place.loads == [2 * weights_bytes], "asked for once: a weight has 2 bytes in the published files, 4 in fp32"
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


class SmallMemory(LazyJoyCaptioner):
    """The real captioner on a device that holds `capacity` pictures: more ask the allocator for more than there is."""

    capacity, sizes = 1, None

    def generate(self, images, request, **named):
        self.sizes.append(len(images))
        if len(images) > self.capacity:
            torch.empty(1 << 55, dtype=torch.uint8)  # raises what the allocator raises
        return LazyJoyCaptioner.generate(self, images, request, **named)


@pytest.mark.parametrize("capacity, batches", [(2, [5, 2, 2, 1]), (1, [5, 2, 1, 1, 1, 1, 1])])
def test_out_of_memory_halves_the_batch_down_to_one(pictures, model_folder, capacity, batches):
    captioner = SmallMemory(folder_or_repo=model_folder, precision="fp32")
    SmallMemory.capacity, SmallMemory.sizes = capacity, []
    done = caption_dataset(load_folder(pictures), captioner, REQUEST, batch_size=5)
    assert captioner.sizes == batches and len(texts(pictures)) == 5
    notes = [note for note in done.notes if "too small" in note]
    assert len(notes) == len(batches) - {2: 3, 1: 5}[capacity] and f"{['1 picture', '2 pictures'][capacity - 1]} at a time" in notes[-1]


def test_out_of_memory_with_one_picture_says_what_to_do(pictures, model_folder):
    captioner = SmallMemory(folder_or_repo=model_folder, precision="fp32")
    SmallMemory.capacity, SmallMemory.sizes = 0, []
    with pytest.raises(PistachioError, match="not enough GPU memory to caption one picture. Choose nf4"):
        caption_dataset(load_folder(pictures), captioner, REQUEST, batch_size=2)
    assert captioner.sizes == [2, 1] and texts(pictures) == {} and not captioner.is_loaded


@pytest.mark.parametrize("error, yes", [(torch.cuda.OutOfMemoryError("x"), True), (RuntimeError("MPS backend out of memory (5 GB)"), True), (RuntimeError("shapes differ"), False)])
def test_what_counts_as_out_of_memory(error, yes):
    assert captioner_module.is_out_of_memory(error) is yes


def test_another_error_is_not_taken_for_a_lack_of_memory(pictures, model_folder):
    class Broken(LazyJoyCaptioner):
        def generate(self, images, request, **named):
            return torch.zeros(2, 3) @ torch.zeros(2, 3)

    with pytest.raises(RuntimeError, match="shapes"):
        caption_dataset(load_folder(pictures), Broken(folder_or_repo=model_folder, precision="fp32"), REQUEST)


def test_it_is_kept_when_asked(pictures, model_folder):
    captioner = lazy(model_folder)
    caption_dataset(load_folder(pictures), captioner, REQUEST, free_after=False)
    assert captioner.is_loaded
    captioner.free()
    assert not captioner.is_loaded


def test_a_glitch_is_tried_again_with_another_seed(greys):
    good = {10: "A man.", 20: "A woman.", 30: "A dog.", 40: "A cat."}
    answers = Answers({**good, 20: "I'm sorry, I can't describe this person.", 40: "This image shows a cat."}, good)
    done = caption_dataset(load_folder(greys), answers, CaptionRequest(temperature=0), batch_size=4)
    assert texts(greys) == {"g10": "A man.", "g20": "A woman.", "g30": "A dog.", "g40": "A cat."}
    (first, seed_1), (second, seed_2) = answers.asked
    assert first == [10, 20, 30, 40] and second == [20, 40] and seed_1 != seed_2
    assert answers.temperatures == [0, 0.6], "a greedy answer would be the same again"
    assert any("2 answers of the captioner had a fault" in note for note in done.notes)
    assert not (greys / FILE_NAME).exists()


def test_what_stays_wrong_is_marked_or_left_out_and_never_silent(greys):
    answers = Answers({
        10: "A man.", 20: "As an AI I cannot describe people.", 30: "This image shows a dog.", 40: "A cat, with a watermark that reads 'shot by me'.",
    })
    done = caption_dataset(load_folder(greys), answers, CaptionRequest(), batch_size=4, trigger_word="zwx")
    assert texts(greys) == {"g10": "zwx, A man.", "g30": "zwx, This image shows a dog.", "g40": "zwx, A cat, with a watermark that reads 'shot by me'."}
    listed = read_needs_review(greys)
    assert set(listed) == {"g20.png", "g30.png", "g40.png"} and listed["g20.png"].caption is None
    assert "refusal" in listed["g20.png"].reason and "'This image shows'" in listed["g30.png"].reason and "'watermark'" in listed["g40.png"].reason
    text = " ".join(done.notes)
    assert "1 picture got no caption: g20.png" in text and "2 captions to look at: g30.png, g40.png" in text and FILE_NAME in text

    (greys / "g30.txt").write_text("zwx, a dog")  # a person's correction takes it off the list
    assert set(read_needs_review(greys)) == {"g20.png", "g40.png"}
    caption_dataset(load_folder(greys), Answers({20: "A woman."}), CaptionRequest())
    assert set(read_needs_review(greys)) == {"g40.png"}
    caption_dataset(load_folder(greys), Answers({value: "Fine." for value in (10, 20, 30, 40)}), CaptionRequest(), overwrite=True, overwrite_edited=True)
    assert not (greys / FILE_NAME).exists()


def test_meta_phrases_that_nobody_asked_to_leave_out_are_counted(greys):
    answers = Answers({value: "This image shows a cat." for value in (10, 20, 30, 40)})
    done = caption_dataset(load_folder(greys), answers, CaptionRequest(caption_type="Descriptive", options=()), batch_size=4)
    assert len(answers.asked) == 1 and len(texts(greys)) == 4
    assert any("4 captions begin like 'This image shows'" in note for note in done.notes)


def test_a_damaged_review_list_is_written_anew(greys):
    (greys / FILE_NAME).write_text('{"g10.png": 3')
    caption_dataset(load_folder(greys), Answers({value: "A cat" for value in (10, 20, 30, 40)}), CaptionRequest())
    assert set(read_needs_review(greys)) == {"g10.png", "g20.png", "g30.png", "g40.png"}


def test_a_caption_that_a_person_changed_is_kept_even_when_overwriting(greys):
    first, second, third = (Answers({value: f"{word} {value}." for value in (10, 20, 30, 40)}) for word in ("One", "Two", "Three"))
    caption_dataset(load_folder(greys), first, CaptionRequest(), batch_size=4)
    (greys / "g20.txt").write_text("my own words\n")
    done = caption_dataset(load_folder(greys), second, CaptionRequest(), batch_size=4, overwrite=True)
    assert texts(greys) == {"g10": "Two 10.", "g20": "my own words", "g30": "Two 30.", "g40": "Two 40."}
    assert [p.caption for p in done.pictures] == ["Two 10.", "my own words", "Two 30.", "Two 40."]
    assert any("1 caption changed by hand since it was written here: kept (g20.png)" in note for note in done.notes)
    caption_dataset(load_folder(greys), third, CaptionRequest(), batch_size=4, overwrite=True, overwrite_edited=True)
    assert texts(greys)["g20"] == "Three 20."
    history = CaptionHistory(greys)
    assert {change.by for change in history.changes} == {"Caption Dataset"}
    history.restore_before(history.last_number)
    assert texts(greys)["g20"] == "my own words", "what was overwritten can be had back"


def test_a_caption_that_a_person_emptied_is_made_again(greys):
    caption_dataset(load_folder(greys), Answers({value: "One." for value in (10, 20, 30, 40)}), CaptionRequest())
    (greys / "g20.txt").write_text("")
    caption_dataset(load_folder(greys), Answers({20: "Two."}), CaptionRequest())
    assert texts(greys) == {"g10": "One.", "g20": "Two.", "g30": "One.", "g40": "One."}


def test_a_caption_that_appears_while_its_picture_is_captioned_is_kept(greys):
    class Slow(Answers):
        def generate(self, images, request, **named):
            (greys / "g30.txt").write_text("just now")
            return super().generate(images, request, **named)

    done = caption_dataset(load_folder(greys), Slow({value: "A cat." for value in (10, 20, 30, 40)}), CaptionRequest(), batch_size=4)
    assert texts(greys) == {"g10": "A cat.", "g20": "A cat.", "g30": "just now", "g40": "A cat."}
    assert done.pictures[2].caption == "just now" and any("g30.png got a caption from someone else" in note for note in done.notes)


def test_a_folder_that_cannot_be_written_is_refused_before_loading(greys, monkeypatch):
    def no_space(*arguments):
        raise OSError(30, "Read-only file system")

    dataset, answers = load_folder(greys), Answers({})
    monkeypatch.setattr("os.replace", no_space)  # root may write into a read-only folder: the disk itself says no
    with pytest.raises(PistachioError, match="can't be written to"):
        caption_dataset(dataset, answers, CaptionRequest())
    assert answers.asked == []


def test_a_picture_that_goes_away_meanwhile_is_named(greys):
    dataset = load_folder(greys)
    (greys / "g10.png").unlink()
    done = caption_dataset(dataset, Answers({value: "A cat." for value in (20, 30, 40)}), CaptionRequest(), batch_size=2)
    assert sorted(texts(greys)) == ["g20", "g30", "g40"] and any("'g10.png'" in note and "does not exist any more" in note for note in done.notes)


def test_missing_model_says_what_to_do_and_writes_nothing(pictures):
    with pytest.raises(PistachioError, match="neither a folder nor a Hugging Face name"):
        caption_dataset(load_folder(pictures), LazyJoyCaptioner(folder_or_repo="/nowhere"), REQUEST)
    assert texts(pictures) == {}


def test_paragraphs_and_control_characters_go(pictures):
    assert captioner_module.one_line(" a man\r\n\n\tin a\x00 hat\x85\x1f é\x7f ") == "a man in a hat é"


def test_batch_seed_is_of_the_pictures(pictures):
    dataset = load_folder(pictures)
    seeds = {captioner_module._batch_seed(seed, list(dataset.pictures[a:b]), t) for seed in (0, 1) for a, b in ((0, 1), (0, 2), (1, 2)) for t in (0, 1)}
    assert len(seeds) == 12 and all(0 <= s < 2**63 for s in seeds)
