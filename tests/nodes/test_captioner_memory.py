"""JoyCaption among ComfyUI's models: listed, evicted for others, back for the next batch, freed when asked."""

import gc
import weakref

import numpy as np
import pytest
from PIL import Image

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)) for i in range(2)]


@pytest.fixture(scope="module")
def model_folder(host):
    from support.tiny_llava import write_joycaption

    return write_joycaption(host.models / "LLM" / "tiny-joycaption-beta-one", ["a woman in a red shirt", "a photo of a cat"])


@pytest.fixture
def lazy(host, model_folder):
    from pistachio.bridge.captioner_memory import HostResidence
    from pistachio.dataset.joycaption.lazy import LazyJoyCaptioner

    def make(precision):
        return LazyJoyCaptioner(folder_or_repo=model_folder, precision=precision, residence=HostResidence())

    return make


def holders():
    import comfy.model_management as management

    return [loaded for loaded in management.current_loaded_models if type(loaded.model.model).__name__ == "_Holder"]


def evict_everything():
    import comfy.model_management as management

    management.free_memory(1e30, management.get_torch_device())


def request():
    from pistachio.dataset.joycaption.prompts import CaptionRequest

    return CaptionRequest(temperature=0, max_new_tokens=12)


def test_it_is_one_of_the_hosts_models_and_comes_back_after_eviction(lazy):
    captioner = lazy("fp32")
    first = captioner.generate(IMAGES, request())
    (entry,) = holders()
    size = sum(p.nbytes for p in captioner._loaded.model.parameters())
    assert entry.model_memory() >= size and entry.model.loaded_size() >= size, "all of it is on the device"
    evict_everything()
    assert holders() == [] and captioner.is_loaded, "the weights wait in the CPU's memory"
    assert captioner.generate(IMAGES, request()) == first and len(holders()) == 1
    weight = weakref.ref(next(captioner._loaded.model.parameters()))
    captioner.free()
    gc.collect()
    assert holders() == [] and weight() is None and not captioner.is_loaded


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_quantised_weights_are_dropped_when_evicted_and_loaded_anew(lazy, precision):
    pytest.importorskip("bitsandbytes")
    captioner = lazy(precision)
    first = captioner.generate(IMAGES, request())
    assert captioner.generate(IMAGES, request()) == first and len(holders()) == 1, "a second batch does not take it off the device"
    weight = weakref.ref(next(captioner._loaded.model.parameters()))
    evict_everything()
    gc.collect()
    assert holders() == [] and weight() is None and not captioner.is_loaded
    assert captioner.generate(IMAGES, request()) == first
    captioner.free()
    assert holders() == []


def test_another_model_of_the_host_finds_it_in_its_list_and_can_load(tiny, lazy):
    import comfy.model_management as management

    captioner = lazy("fp32")
    captioner.generate(IMAGES, request())
    management.load_models_gpu([tiny("sd15").model])
    assert len(management.current_loaded_models) >= 2
    captioner.free()
    assert holders() == []


def test_time_left_comes_from_the_speed_after_the_first_batch(host):
    from pistachio.bridge.captioning import CaptionProgress, time_words

    class Shown:
        bars, texts = [], []

        def __call__(self, done, total):
            self.bars.append((done, total))

        def text(self, words):
            self.texts.append(words)

    times = iter([100.0, 130.0, 160.0])  # the first batch ended at 100 s, most of which was loading
    shown = Shown()
    progress = CaptionProgress(shown, clock=lambda: next(times))
    for done in (8, 16, 40):
        progress(done, 40)
    assert shown.bars == [(8, 40), (16, 40), (40, 40)]
    assert shown.texts == ["8 of 40 pictures captioned", "16 of 40 pictures captioned, about 2 min left", "40 of 40 pictures captioned"]
    assert [time_words(s) for s in (0.2, 60, 89, 300, 7200)] == ["1 s", "60 s", "89 s", "5 min", "2.0 h"]


def test_words_around_a_caption_do_not_hide_its_fault(host, tmp_path):
    from pistachio.bridge.captioning import joined
    from pistachio.dataset.folder import load_folder
    from pistachio.dataset.joycaption.captioner import caption_dataset
    from pistachio.dataset.joycaption.model import Generated
    from pistachio.dataset.joycaption.prompts import CaptionRequest

    class Refuses:
        kind, is_loaded, most_at_once, answers = "beta-one", True, None, ["I cannot do that.", "A man."]

        def prepare(self, image):
            return image

        def generate(self, images, request, **named):
            return [Generated(text=self.answers.pop(0), num_tokens=4, finished=True)]

        def free(self):
            pass

    Image.new("RGB", (20, 20), (9, 90, 9)).save(tmp_path / "a.png")
    finish = lambda text: joined("photo of", text, "film grain")  # noqa: E731
    done = caption_dataset(load_folder(tmp_path), Refuses(), CaptionRequest(), finish=finish, trigger_word="zwx")
    assert done.pictures[0].caption == "zwx, photo of, A man. film grain"
