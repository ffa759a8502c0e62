"""What a run sends while it trains, against a clock that the test moves; and how caption parts are joined."""

import json
import math

import pytest


@pytest.fixture
def sent(host, tmp_path):
    """(events, clock, list of what was sent) for a run of 100 steps."""
    from pistachio.bridge.events import RunEvents

    folder = tmp_path / "anna"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": {"num_steps": 100}}))
    now, messages = [0.0], []
    events = RunEvents(node_id="7", folder=folder, send=lambda name, data: messages.append((name, data)), clock=lambda: now[0])
    return events, now, messages


def step(number: int, loss: float = 1.0) -> dict:
    return {"kind": "train", "step": number, "loss": loss, "loss_ema": 1.0, "lr": 1e-4, "seconds": 0.001}


def test_steps_are_sent_at_most_twenty_times_a_second_and_the_last_always(sent):
    events, now, messages = sent
    for number in range(1, 101):
        now[0] = number * 0.001
        events(step(number))
    steps = [data["step"] for _, data in messages]
    assert steps == [1, 51, 100]


def test_nothing_else_is_ever_dropped(sent):
    events, _, messages = sent
    events(step(1))
    for number in range(1, 4):
        events({"kind": "eval", "step": number, "loss": 0.5, "errors": {"a": [1.0]}, "t_values": {"a": [0.5]}})
        events({"kind": "note", "step": number, "text": "Something happened."})
    events({"kind": "finished", "step": 3, "report": {"chosen_step": 2, "verdict": "Good.", "evaluations": ["long"]}})
    assert [name for name, _ in messages].count("pistachio.evaluation") == 3
    assert [name for name, _ in messages].count("pistachio.note") == 3
    name, last = messages[-1]
    assert name == "pistachio.finished" and last["chosen_step"] == 2 and last["verdict"] == "Good."
    assert all(not {"errors", "t_values", "report", "kind"} & set(data) for _, data in messages)
    assert all((data["run"], data["node_id"], data["num_steps"]) == ("anna", "7", 100) for _, data in messages)


def test_time_left_counts_from_the_first_step_of_this_sitting(sent):
    events, now, messages = sent
    now[0] = 50.0
    events(step(40))
    now[0] = 60.0
    events(step(50))
    assert [data["seconds_left"] for _, data in messages] == [None, pytest.approx(50.0)]


def test_numbers_that_browsers_can_not_read_become_null(sent):
    events, _, messages = sent
    events(step(1, loss=math.nan))
    assert messages[0][1]["loss"] is None
    json.dumps(messages[0][1], allow_nan=False)


@pytest.mark.parametrize("parts, text", [
    (("", "A man.", ""), "A man."),
    (("photo of", "A man.", "film grain"), "photo of, A man. film grain"),
    (("photo,", "a man", ""), "photo, a man"),
    ((" ", "a man", "35mm"), "a man, 35mm"),
])
def test_caption_parts_are_joined_by_what_fits(host, parts, text):
    from pistachio.bridge.captioning import joined

    assert joined(*parts) == text
