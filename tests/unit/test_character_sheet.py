"""The plan of a character sheet, its way into a folder, and prompts in a set's mix."""

from collections import Counter

import pytest
from PIL import Image

from pistachio.dataset.caption_checks import BUST, CLOSE_UP, FULL_BODY, caption_findings, framing
from pistachio.dataset.character_sheet import ANGLES, BACKGROUNDS, EDIT_MODELS, EXPRESSIONS, LIGHTS, OUTFITS, SheetOptions, plan_sheet, read_list
from pistachio.dataset.findings import GOOD
from pistachio.dataset.folder import load_folder
from pistachio.dataset.leak_filter import LeakFilter
from pistachio.dataset.leak_words import DEFAULT_LEAK_LIST, read_leak_list
from pistachio.dataset.prompt_builder import build_prompts, read_mix, read_topic
from pistachio.dataset.sheet_folder import RECORD, made_keys, order_of, save_pictures, save_sheet
from pistachio.training.errors import PistachioError

OPTIONS = SheetOptions(trigger_word="ohwx", class_noun="woman")


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (32, 24), (shade, 255 - shade, 40))


# ---- the plan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 24, 37, 200])
def test_values_are_used_equally_and_no_two_shots_are_the_same(count):
    shots = plan_sheet(OPTIONS, count)
    assert len({shot.instruction for shot in shots}) == len({shot.caption for shot in shots}) == len({shot.seed for shot in shots}) == count
    for table in (EXPRESSIONS, LIGHTS, OUTFITS, BACKGROUNDS, tuple(phrase.caption for phrase in ANGLES)):
        counts = [sum(f", {value}" in shot.caption or f"wearing {value}" in shot.caption for shot in shots) for value in table]
        assert sum(counts) == count and max(counts) - min(counts) <= 1, table
    framings = Counter(framing(shot.caption) for shot in shots)
    assert set(framings) <= {CLOSE_UP, BUST, FULL_BODY} and max(framings.values()) - min(framings.values()) <= 1


def test_each_framing_is_seen_from_nearly_each_angle():
    pairs = Counter((framing(shot.caption), shot.caption.split(", ")[2]) for shot in plan_sheet(OPTIONS, 24))
    assert len(pairs) >= 22 and max(pairs.values()) <= 2  # of 24: drawn without care it would be 15


def test_a_longer_sheet_begins_with_the_shorter_one_and_a_seed_changes_it():
    assert plan_sheet(OPTIONS, 30)[:12] == plan_sheet(OPTIONS, 12)
    other = plan_sheet(SheetOptions(trigger_word="ohwx", class_noun="woman", seed=1), 12)
    assert {shot.key for shot in other}.isdisjoint(shot.key for shot in plan_sheet(OPTIONS, 12))
    assert {s.key for s in plan_sheet(OPTIONS, 6, reference="a")}.isdisjoint(s.key for s in plan_sheet(OPTIONS, 6, reference="b"))


def test_the_mix_of_framings_can_be_chosen():
    shots = plan_sheet(SheetOptions(framing_mix="half close-ups"), 24)
    assert Counter(framing(shot.caption) for shot in shots) == {CLOSE_UP: 12, BUST: 6, FULL_BODY: 6}


@pytest.mark.parametrize("model, words", list(zip(EDIT_MODELS, ("Show the woman from the picture", "Change the picture to", "The woman from image 1"))))
def test_each_model_is_told_in_its_way_what_changes_and_who_stays(model, words):
    for shot in plan_sheet(SheetOptions(trigger_word="ohwx", class_noun="woman", edit_model=model), 8):
        assert shot.instruction.startswith(words) and "ohwx" not in shot.instruction
        assert "facial features" in shot.instruction and "hairstyle" in shot.instruction and "  " not in shot.instruction
        expression, outfit, background, light = shot.caption.split(", ")[-4:]
        assert all(part.removeprefix("wearing ") in shot.instruction for part in (expression, outfit, background, light))


def test_captions_name_nobody_and_pass_every_check():
    captions = {str(shot.number): shot.caption for shot in plan_sheet(SheetOptions(trigger_word="ohwx", class_noun="woman", subject="the woman with red hair"), 24)}
    assert all(text.startswith("ohwx woman, ") and "red hair" not in text for text in captions.values())
    assert {f.severity for f in caption_findings(captions, "ohwx", class_noun="woman")} == {GOOD}
    without_leaks = LeakFilter(read_leak_list(DEFAULT_LEAK_LIST))
    assert all(without_leaks(text) == text for text in captions.values())


def test_empty_lists_leave_things_as_they_are():
    options = SheetOptions(outfits=(), backgrounds=(), expressions=(), lights=())
    shots = plan_sheet(options, 24)  # three framings from eight angles
    assert all("Keep the clothes unchanged. Keep the background unchanged." in shot.instruction for shot in shots)
    assert {shot.caption.count(",") for shot in shots} == {1}
    with pytest.raises(PistachioError, match="24 can"):
        plan_sheet(options, 25)


def test_sizes_follow_the_framing():
    sizes = {framing(shot.caption): (shot.width, shot.height) for shot in plan_sheet(OPTIONS, 6)}
    assert sizes == {CLOSE_UP: (1024, 1024), BUST: (880, 1184), FULL_BODY: (832, 1248)}


def test_a_list_is_read_line_by_line():
    assert read_list(" a red hat. \n\n# none\na coat # warm\na red hat\n") == ("a red hat", "a coat")


# ---- into the folder ----------------------------------------------------------------------------------------------


def test_a_sheet_goes_on_where_it_stopped_and_what_was_thrown_away_stays_away(tmp_path):
    shots = plan_sheet(OPTIONS, 5)
    first = order_of(tmp_path, shots, at_once=2, trigger_word="ohwx")
    assert [shot.number for shot in first.shots] == [1, 2] and "Run again for the other 3" in first.words
    saved = save_sheet(first, [picture(10), picture(20)])
    assert len(saved.written) == 2 and saved.written[0].with_suffix(".txt").read_text(encoding="utf-8").strip() == shots[0].caption
    saved.written[0].unlink()
    second = order_of(tmp_path, shots)
    assert [shot.number for shot in second.shots] == [3, 4, 5] and not second.other_reference
    save_sheet(second, [picture(shade) for shade in (30, 40, 50)])
    done = order_of(tmp_path, shots)
    assert done.shots == () and done.words == "All 5 pictures of the sheet are made."
    assert len(load_folder(tmp_path).pictures) == 4
    assert order_of(tmp_path, plan_sheet(OPTIONS, 5, reference="another")).other_reference


def test_a_stop_between_picture_and_record_doubles_nothing(tmp_path):
    shots = plan_sheet(OPTIONS, 2)
    order = order_of(tmp_path, shots)
    save_sheet(order, [picture(10), picture(20)])
    (tmp_path / RECORD).unlink()
    assert made_keys(tmp_path) == {shot.key for shot in shots}
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert save_sheet(order, [picture(90), picture(91)]).written == ()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.png")} == before


def test_other_numbers_of_pictures_than_asked_for_are_refused(tmp_path):
    with pytest.raises(PistachioError, match="1 pictures arrived for 2 prompts"):
        save_sheet(order_of(tmp_path, plan_sheet(OPTIONS, 2)), [picture(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_record_is_not_passed_over(tmp_path):
    (tmp_path / RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(PistachioError, match="which pictures of the sheet were made"):
        order_of(tmp_path, plan_sheet(OPTIONS, 2))


def test_pictures_are_saved_once_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "picture-0001.txt").write_text("mine", encoding="utf-8")
    saved = save_pictures(tmp_path, [picture(1), picture(2), picture(1)], ["a", "b", "c"])
    assert [path.name for path in saved.written] == ["picture-0002.png", "picture-0003.png"] and saved.doubles == 1
    again = save_pictures(tmp_path, [picture(2), picture(3)], ["b", "d"])
    assert [path.name for path in again.written] == ["picture-0004.png"] and again.words == "1 saved. 1 was there already."
    assert (tmp_path / "picture-0001.txt").read_text(encoding="utf-8") == "mine"


# ---- prompts in the mix of a set ----------------------------------------------------------------------------------


@pytest.mark.parametrize("topic, caption, words", [
    ("framing", "A medium shot of a man", "upper body shot"),
    ("angle", "viewed from a low-angle perspective", "seen from below"),
    ("angle", "she looks directly at the viewer, looking at the camera", "facing the camera"),
    ("expression", "with a wide grin", "a broad smile"),
    ("expression", "he is smiling softly", "a gentle smile"),
    ("background", "The background is a blurred city street at dusk", "in a city street"),
    ("background", "in front of a plain white background", "against a plain background"),
    ("light", "soft, natural lighting from a window", "soft even light"),
    ("light", "backlit by the window", "light from behind with a bright rim"),
    ("light", "a man in a hat", None),
])
def test_captions_are_read_by_topic(topic, caption, words):
    assert read_topic(topic, caption) == words


def test_a_sheets_own_phrases_are_read_back_as_they_are():
    for shot in plan_sheet(OPTIONS, 24):
        _, said, angle, expression, _, background, light = shot.caption.split(", ")
        assert [read_topic(topic, shot.caption) for topic in ("framing", "angle", "expression", "background", "light")] == [said, angle, expression, background, light]


def test_prompts_have_the_mix_of_the_captions():
    captions = ["ohwx, close-up, in a park, smiling"] * 6 + ["ohwx, full body, in a cafe"] * 3 + ["ohwx"] * 3
    mix = read_mix(captions, "ohwx")
    prompts = build_prompts(mix, 8, trigger="ohwx", class_noun="man")
    assert all(prompt.startswith("ohwx man") for prompt in prompts) and len(prompts) == 8
    counted = [sum(words in prompt for prompt in prompts) for words in ("close-up", "full body shot", "in a park with trees", "in a cafe", "a gentle smile")]
    assert counted == [4, 2, 4, 2, 4]
    assert build_prompts(mix, 8, trigger="ohwx", class_noun="man") == prompts != build_prompts(mix, 8, trigger="ohwx", class_noun="man", seed=1)
    assert {"park" in prompt for prompt in build_prompts(mix, 8, trigger="ohwx", topics=("framing",))} == {False}


def test_without_captions_or_trigger_there_are_no_prompts():
    with pytest.raises(PistachioError, match="No picture of the set has a caption"):
        read_mix([None, " "])
    with pytest.raises(PistachioError, match="no trigger word"):
        build_prompts(read_mix(["a man"]), 2, trigger=" ")
