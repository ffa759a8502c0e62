"""Sentences with a code: plain English everywhere, and what a page of another language needs beside it."""

import copy
import json
import pickle

import pytest

from pistachio.training.messages import Listed, Message, as_json, counted, known, message


def test_a_message_is_its_english():
    told = counted("a.found", 2, "{count} picture in {folder}.", "{count} pictures in {folder}.", folder="mia {1}")
    assert (told, f"{told}", json.dumps([told])) == ("2 pictures in mia {1}.", "2 pictures in mia {1}.", '["2 pictures in mia {1}."]')
    assert counted("a.found", 1, "{count} picture.", "{count} pictures.") == "1 picture."
    assert as_json(told) == {"code": "a.found", "values": {"count": "2", "folder": "mia {1}"}}
    assert as_json(str(told)) is None and as_json(f"{told} ") is None


def test_sentences_and_lists_within_a_message_keep_their_codes():
    spans = Listed([message("a.span", "{first} to {last}", first=1500, last=20000), 25000])
    told = message("a.tied", "Steps {steps} with {pictures}.", steps=spans, pictures=counted("a.pictures", 4, "{count} picture", "{count} pictures"))
    assert told == "Steps 1500 to 20000 and 25000 with 4 pictures."
    span = {"code": "a.span", "values": {"first": "1500", "last": "20000"}}
    assert as_json(told)["values"] == {"steps": [span, "25000"], "pictures": {"code": "a.pictures", "values": {"count": "4"}}}
    assert Listed(["a", "b", "c"], last=", ") == "a, b, c" and Listed(["a"]) == "a"
    for again in (copy.deepcopy(told), pickle.loads(pickle.dumps(told))):
        assert isinstance(again, Message) and again == told and as_json(again) == as_json(told)


def test_a_sentence_comes_back_from_json_as_it_was():
    told = message("a.tied", "Steps {steps}.", steps=Listed([message("a.span", "{first} to {last}", first=1, last=2), 3]))
    again = known(json.loads(json.dumps(told)), json.loads(json.dumps(as_json(told))))
    assert again == told and as_json(again) == as_json(told)
    assert as_json(known("Of an older version.", None)) is None


def test_a_number_that_is_not_whole_must_be_written_by_the_sentence():
    with pytest.raises(TypeError, match="a.size: size is 0.25"):
        message("a.size", "{size} GB", size=0.25)
