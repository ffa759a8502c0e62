"""Caption rules: leaks out of sentences and tag lists, the trigger word, replacing, tags, and whole datasets."""

import json
import time

import pytest

from pistachio.dataset.caption_history import CaptionHistory
from pistachio.dataset.caption_rewrite import counts_json, preview_words, reread_captions, rewrite_captions, table_words
from pistachio.dataset.caption_rules import (
    NO_TRIGGER, PREFIX, REPLACE_SUBJECT, CaptionRules, RuleBook, dedupe_tags, differences, frequencies, read_replacements, words_beside_trigger,
)
from pistachio.dataset.captions import read_caption, read_caption_table, write_caption
from pistachio.dataset.folder import load_folder
from pistachio.dataset.leak_filter import LeakFilter, is_tag_list
from pistachio.dataset.leak_words import DEFAULT_LEAK_LIST, read_leak_list
from pistachio.training.errors import PistachioError

from support import pictures

LEAKS = read_leak_list(DEFAULT_LEAK_LIST)

SENTENCES = [
    ("a woman with long hair, smiling", "a woman, smiling"),
    ("A photograph of a young woman with long blonde hair and blue eyes, wearing a red dress, standing in a garden.",
     "A photograph of a woman, wearing a red dress, standing in a garden."),
    ("She has fair skin and a slender face.", ""),
    ("Her hair is tied in a ponytail.", ""),
    ("Her hair is in a ponytail.", ""),
    ("A woman with fair skin, freckles and a red scarf looks at the viewer.", "A woman with a red scarf looks at the viewer."),
    ("She has long blonde hair and wears a red dress.", "She wears a red dress."),
    ("She has long hair, wearing a red dress.", "She is wearing a red dress."),
    ("She has long hair and glasses.", "She has glasses."),
    ("She is wearing a red dress and has long hair.", "She is wearing a red dress."),
    ("Her blue eyes look directly at the camera.", "Her eyes look directly at the camera."),
    ("She runs a hand through her long blonde hair.", "She runs a hand through her hair."),
    ("A close-up of her blue eyes.", "A close-up of her eyes."),
    ("Her hair is blonde and her eyes are blue, and she wears a hat.", "She wears a hat."),
    ("A bearded man with short brown hair, a thick beard, and glasses sits at a desk.", "A man with glasses sits at a desk."),
    ("A portrait of an elderly man with a weathered face and white hair.", "A portrait of a man."),
    ("A blonde in a red dress walks along the street.", "A person in a red dress walks along the street."),
    ("The woman, who has long red hair, stands by a window.", "The woman stands by a window."),
    ("A man, with long brown hair and a beard, plays the guitar.", "A man plays the guitar."),
    ("Photo of a man, short dark hair, wearing a suit, in an office.", "Photo of a man, wearing a suit, in an office."),
    ("She wears a white blouse, her long hair flowing in the wind.", "She wears a white blouse."),
    ("A woman standing in a garden under trees has long hair.", "A woman standing in a garden under trees."),
    ("A medium shot of a woman with curly red hair in a black leather jacket.", "A medium shot of a woman in a black leather jacket."),
    ("A young Asian woman with a round face and long black hair tied back in a low bun sits on a bench, smiling warmly at the camera.",
     "A woman sits on a bench, smiling warmly at the camera."),
    ("He has a strong jawline and a short beard, and his gaze is directed to the right.", "His gaze is directed to the right."),
    ("The woman's hair is long and brown. The light is soft.", "The light is soft."),
    ("The image features a light-skinned woman with straight, shoulder-length brown hair and dark brown eyes.", "The image features a woman."),
    ("With her hair slightly tousled, she rests her chin on her hand.", "She rests her chin on her hand."),
    ("She has a slender build, fair skin, and long, straight, dark brown hair that cascades over her shoulders.", "She has a slender build."),
    ("Two women with long hair sit on a sofa.", "Two women sit on a sofa."),
]

UNTOUCHED = [
    "A hand in her hair, she laughs.",
    "Sunlight illuminates her face.",
    "Her face is turned to the left.",
    "A woman with her eyes closed leans on a wall.",
    "She has a serious expression, with her lips slightly parted.",
    "A face mask covers the mouth.",
    "A man in a blue suit. He stands in an old town, e.g. Rome, at 5 p.m. and smiles.",
    "The image features a tall building with a green roof and large windows.",
    "An hour-glass stands on a table.",
]


@pytest.mark.parametrize("before, after", SENTENCES)
def test_descriptions_go_and_the_sentence_stays_whole(before, after):
    filtered = LeakFilter(LEAKS)(before)
    assert filtered == after
    assert LeakFilter(LEAKS)(filtered) == filtered, "a second time changes nothing"


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_describes_nobody_stays_to_the_letter(text):
    assert LeakFilter(LEAKS)(text) == text


def test_a_whole_caption_keeps_its_other_sentences():
    caption = (
        "Photograph of a smiling, blonde woman in a cafe. She has long, wavy, brown hair styled in loose curls, and is wearing a denim jacket. "
        "Her eyes are closed. The background is blurred."
    )
    assert LeakFilter(LEAKS)(caption) == (
        "Photograph of a smiling woman in a cafe. She is wearing a denim jacket. Her eyes are closed. The background is blurred."
    )


@pytest.mark.parametrize("before, after", [
    ("This is a high-resolution photograph of a young Caucasian woman with fair skin, long, straight, platinum blonde hair, and striking blue eyes. "
     "She is wearing a light blue sundress with thin straps. Her hair cascades down her back, and she has a slight smile on her face.",
     "This is a high-resolution photograph of a woman. She is wearing a light blue sundress with thin straps. She has a slight smile on her face."),
    ("Close-up portrait photograph of a middle-aged man with a full, graying beard and deep-set brown eyes, looking directly at the camera. "
     "The soft, natural light highlights the texture of his skin and beard.",
     "Close-up portrait photograph of a man, looking directly at the camera. The soft, natural light highlights the texture of his skin."),
    ("Photograph of a person with red hair styled in two braids, wearing round glasses. The lighting is soft, casting gentle shadows on her face.",
     "Photograph of a person, wearing round glasses. The lighting is soft, casting gentle shadows on her face."),
])
def test_captions_as_joycaption_writes_them(before, after):
    assert LeakFilter(LEAKS)(before) == after


def test_tags_that_describe_the_character_go():
    tags = "1girl, solo, long_hair, blue eyes, red dress, hair ribbon, blonde woman, hand in own hair, closed eyes, outdoors"
    assert LeakFilter(LEAKS)(tags) == "1girl, solo, red dress, hair ribbon, woman, hand in own hair, closed eyes, outdoors"


@pytest.mark.parametrize("caption, tags", [
    ("1girl, red dress, outdoors", True), ("a photo of a woman, red dress, smiling", True),
    ("A woman stands in a garden, smiling.", False), ("she wears a hat, she is outdoors", False), ("portrait", False),
])
def test_tag_lists_are_told_from_sentences(caption, tags):
    assert is_tag_list(caption) is tags


def test_the_list_is_a_persons_own():
    mine = read_leak_list("horns, tail # a demon\nadjectives: winged, *-horned\nkeep: pony tail")
    assert LeakFilter(mine)("A winged woman with red horns and long hair.") == "A woman with long hair."
    assert LeakFilter(mine)("horns, long hair, pony tail, tail") == "long hair, pony tail"
    assert LeakFilter(read_leak_list(""))("a blonde woman with long hair") == "a blonde woman with long hair"
    with pytest.raises(PistachioError, match="'colour' is no heading"):
        read_leak_list("colour: red")
    with pytest.raises(PistachioError, match="every word"):
        read_leak_list("adjectives: *")


@pytest.mark.parametrize("ending", [". ", ", and "])
def test_a_long_caption_is_filtered_in_seconds(ending):
    text = f"A woman with long blonde hair stands in a big garden, smiling{ending}" * 300  # 17 kB: one sentence, or 300
    began = time.perf_counter()
    filtered = LeakFilter(LEAKS)(text)
    assert "hair" not in filtered and filtered.count("garden") == 300
    assert time.perf_counter() - began < 20


# ---- the trigger word ------------------------------------------------------------


@pytest.mark.parametrize("place, noun, before, after", [
    (PREFIX, "", "a woman in a park", "ohwx, a woman in a park"),
    (PREFIX, "woman", "in a park", "ohwx woman, in a park"),
    (PREFIX, "", "a photo of ohwx in a park", "a photo of ohwx in a park"),
    (PREFIX, "woman", "a photo of ohwx in a park", "a photo of ohwx woman in a park"),
    (PREFIX, "", "", "ohwx"),
    (NO_TRIGGER, "woman", "a woman in a park", "a woman in a park"),
    (REPLACE_SUBJECT, "woman", "The woman sits in a park. The woman's dog is big.", "ohwx woman sits in a park. ohwx woman's dog is big."),
    (REPLACE_SUBJECT, "", "A smiling woman reads. The woman wears a hat.", "A smiling ohwx reads. ohwx wears a hat."),
    (REPLACE_SUBJECT, "man", "A man beside another man. The man laughs.", "ohwx man beside another man. The man laughs."),
    (REPLACE_SUBJECT, "", "an empty street", "ohwx, an empty street"),
    (REPLACE_SUBJECT, "", "1girl, red dress, outdoors", "ohwx, 1girl, red dress, outdoors"),
])
def test_where_the_trigger_word_goes(place, noun, before, after):
    book = RuleBook(CaptionRules(trigger_word="ohwx", trigger_place=place, class_noun=noun))
    assert book(before) == after
    assert book(after) == after


def test_a_comma_in_the_trigger_is_refused():
    with pytest.raises(PistachioError, match="comma"):
        CaptionRules(trigger_word="a, b")


# ---- replacing, fixed words, tags --------------------------------------------------


def test_all_rules_in_their_order_and_twice():
    rules = CaptionRules(
        trigger_word="ohwx", class_noun="woman", trigger_place=REPLACE_SUBJECT, leaks=LEAKS, prepend="a film still", append="soft light",
        replacements=read_replacements("# a comment\nphotograph => photo\n\\b(red|crimson) dress\\b => \\1 gown\nwatermark.* =>"),
    )
    book = RuleBook(rules)
    once = book("A photograph of a young woman with blue eyes in a red dress. watermark at the bottom")
    assert once == "a film still, A photo of ohwx woman in a red gown. soft light"
    assert book(once) == once
    assert differences("a b c", "a x c") == (("b", "x"),)


@pytest.mark.parametrize("text, told", [
    ("a red dress", "has no '=>'"), ("(red => blue", "can't be used"), (" => blue", "can't be used"), (r"red => \2", "invalid group reference 2"), ("x* => y", "matches nothing at all"),
])
def test_a_wrong_replacement_names_its_line(text, told):
    with pytest.raises(PistachioError, match=told) as raised:
        read_replacements("a => b\n" + text)
    assert "Line 2" in str(raised.value)


def test_equal_tags_are_kept_once():
    assert dedupe_tags("Red Dress, outdoors,, red_dress ,outdoors, 1girl") == "Red Dress, outdoors, 1girl"


def test_frequencies_of_tags_and_of_words():
    kind, counts = frequencies(["1girl, red_dress, hat", "1girl, red dress", "1girl, 1girl, park"])
    assert (kind, counts) == ("tags", {"1girl": 3, "red dress": 2, "hat": 1, "park": 1})
    kind, counts = frequencies(["A woman stands in a park.", "The woman sits in a cafe."])
    assert kind == "words" and counts["woman"] == 2 and counts["park"] == 1 and "the" not in counts


def test_words_beside_the_trigger_everywhere():
    captions = [f"ohwx woman wearing a red scarf in {place}" for place in ("a park", "a cafe", "an office", "a street", "a field")]
    assert words_beside_trigger(captions, "ohwx", class_noun="woman") == {"red": 5, "scarf": 5}
    assert words_beside_trigger([*captions, "ohwx woman asleep"], "ohwx") == {}


# ---- a dataset ------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path):
    folder = pictures.write_folder(tmp_path / "set", 4)
    (folder / "picture-01.txt").write_text("a woman with long hair in a park", encoding="utf-8")
    (folder / "picture-01.2.txt").write_text("long hair, park, park", encoding="utf-8")
    (folder / "picture-04.txt").unlink()
    return load_folder(folder)


RULES = CaptionRules(trigger_word="ohwx", leaks=LEAKS, dedupe_tags=True)


def test_a_preview_writes_nothing(dataset):
    before = {path.name: path.read_bytes() for path in dataset.folder.iterdir()}
    result = rewrite_captions(dataset, RULES)
    assert {path.name: path.read_bytes() for path in dataset.folder.iterdir()} == before
    assert result.dataset.pictures[0].caption == "ohwx, a woman in a park"
    assert result.dataset.pictures[0].more_captions == ("ohwx, park",)
    assert result.dataset.pictures[3].caption is None and result.dataset.trigger_word == "ohwx"
    assert "3 of 4 captions would change. Nothing was written" in result.notes[0]
    assert "picture-04.png" in result.notes[1]
    assert "was: a woman with long hair in a park" in preview_words(result) and "taken out: with long hair" in preview_words(result)
    assert json.loads(counts_json(result))["counts"]["drawing"] == 2 and "drawing" in table_words(result)


def test_writing_keeps_the_old_text_and_changed_rules_start_from_it(dataset):
    first = rewrite_captions(dataset, RULES, write=True)
    assert read_caption(dataset.folder / "picture-01.txt") == "ohwx, a woman in a park"
    assert read_caption(dataset.folder / "picture-01.2.txt") == "ohwx, park"
    assert first.written.number == 1 and len(first.written.changed) == 4
    again = rewrite_captions(reread_captions(dataset), RULES, write=True)
    assert again.written.number is None and again.captions == ()
    # other rules: from the text that was there first, not from what the first rules left
    other = rewrite_captions(reread_captions(dataset), CaptionRules(trigger_word="sks", class_noun="woman"), write=True)
    assert read_caption(dataset.folder / "picture-01.txt") == "sks woman, a woman with long hair in a park"
    assert other.written.number == 2
    CaptionHistory(dataset.folder).restore_before(1)
    assert read_caption(dataset.folder / "picture-01.txt") == "a woman with long hair in a park"


def test_what_a_person_edited_is_kept_unless_asked(dataset):
    rewrite_captions(dataset, RULES, write=True)
    write_caption(dataset.folder / "picture-02.txt", "my own words, a woman with long hair")
    edited = reread_captions(dataset)
    result = rewrite_captions(edited, CaptionRules(trigger_word="sks", leaks=LEAKS), write=True)
    assert read_caption(dataset.folder / "picture-02.txt") == "my own words, a woman with long hair"
    assert result.dataset.pictures[1].caption == "my own words, a woman with long hair"
    assert any("edited by hand since and kept: picture-02.png" in note for note in result.notes)
    rewrite_captions(edited, CaptionRules(trigger_word="sks", leaks=LEAKS), write=True, overwrite_edited=True)
    assert read_caption(dataset.folder / "picture-02.txt") == "sks, my own words, a woman"


def test_captions_json_as_diffusion_pipe_reads_it(dataset):
    (dataset.folder / "captions.json").write_text('{"clip.mp4": ["a clip"], "picture-01.png": ["old"]}', encoding="utf-8")
    write_caption(dataset.folder / "picture-02.txt", "eine Frau, größer — 🙂")
    rewrite_captions(load_folder(dataset.folder), RULES, write=True, captions_json=True)
    table = json.loads((dataset.folder / "captions.json").read_text(encoding="utf-8"))
    # its reader: the file's name without folders -> a list of texts
    assert all(isinstance(name, str) and isinstance(texts, list) and all(isinstance(t, str) for t in texts) for name, texts in table.items())
    assert table["clip.mp4"] == ["a clip"] and table["picture-01.png"] == ["ohwx, a woman in a park", "ohwx, park"]
    assert table["picture-02.png"] == ["ohwx, eine Frau, größer — 🙂"]
    assert read_caption_table(dataset.folder)["picture-02.png"] == ("ohwx, eine Frau, größer — 🙂",)
    assert len(load_folder(dataset.folder).pictures) == 4
