"""What a run sends while it trains, against a clock that the test moves; and how caption parts are joined."""

import json
import math

import pytest


class Later:
    """Calls that are due, for a test to make."""

    def __init__(self):
        self.calls = []

    def __call__(self, seconds, call):
        self.calls.append(call)

    def come(self):
        calls, self.calls = self.calls, []
        for call in calls:
            call()


@pytest.fixture
def sent(host, tmp_path):
    """(events, clock, list of what was sent, calls that are due) for a run of 100 steps."""
    from pistachio.bridge.events import RunEvents

    folder = tmp_path / "anna"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"settings": {"num_steps": 100}}))
    now, messages, later = [0.0], [], Later()
    events = RunEvents(node_id="7", folder=folder, send=lambda name, data: messages.append((name, data)), later=later, clock=lambda: now[0])
    return events, now, messages, later


def step(number: int, loss: float = 1.0) -> dict:
    return {"kind": "train", "step": number, "loss": loss, "loss_ema": 1.0, "lr": 1e-4, "seconds": 0.001}


def test_quick_steps_share_messages_and_none_is_left_out(sent):
    events, now, messages, later = sent
    for number in range(1, 101):
        now[0] = number / 256
        events(step(number))
    assert [data["step"] for _, data in messages] == [1, 27, 53, 79, 100]
    assert [row[0] for _, data in messages for row in data["rows"]] == list(range(1, 101))
    assert [data["sequence"] for _, data in messages] == [1, 2, 3, 4, 5] and len({data["sitting"] for _, data in messages}) == 1
    assert len(later.calls) == 1  # one at a time, however many steps wait


def test_many_pages_get_fewer_messages_and_every_step(sent):
    events, now, messages, _ = sent
    events.listeners = lambda: 10
    for number in range(1, 101):
        now[0] = number / 256
        events(step(number))
    assert [data["step"] for _, data in messages] == [1, 65, 100]
    assert [row[0] for _, data in messages for row in data["rows"]] == list(range(1, 101))


def test_a_step_waits_for_no_other_step(sent):
    events, now, messages, later = sent
    events(step(1))
    now[0] = 0.01
    events(step(2))  # and the third takes minutes
    assert [data["step"] for _, data in messages] == [1]
    now[0] = 0.11
    later.come()
    assert [data["step"] for _, data in messages] == [1, 2]
    later.come()
    assert len(messages) == 2


def test_what_comes_after_steps_is_sent_after_them(sent):
    events, _, messages, _ = sent
    for number in (1, 2, 3):
        events(step(number))
    events({"kind": "phase", "step": 3, "phase": "evaluating"})
    assert [(name, data["step"]) for name, data in messages] == [("pistachio.step", 1), ("pistachio.step", 3), ("pistachio.phase", 3)]
    assert events.state()["phase"] == "evaluating" and events.state()["sequence"] == 3


def test_memory_comes_along_once_a_second_beside_the_plan(sent):
    from pistachio.bridge.planning import device_name

    events, now, messages, _ = sent
    plan = {"plan": {"phases": {"step": 5_000_000, "evaluation": 7_000_000}}, "situation": {"device": device_name(events.memory.device)}}
    for number in range(1, 31):
        now[0] = number * 0.1
        if number == 20:
            (events.folder / "plan.json").write_text(json.dumps(plan))
        events(step(number))
    said = [data["memory"] for _, data in messages if "memory" in data]
    assert len(said) == 3 and [memory["planned_bytes"] for memory in said] == [None, None, 7_000_000]
    assert all(0 < memory["used_bytes"] <= memory["peak_bytes"] < memory["total_bytes"] for memory in said)


def test_a_plan_for_another_device_is_not_held_against_this_one(sent):
    events, *_ = sent
    (events.folder / "plan.json").write_text(json.dumps({"plan": {"phases": {"step": 1}}, "situation": {"device": "another card"}}))
    assert events.memory.now()["planned_bytes"] is None


def test_nothing_else_is_ever_dropped(sent):
    events, _, messages, _ = sent
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
    events, now, messages, _ = sent
    now[0] = 50.0
    events(step(40))
    now[0] = 60.0
    events(step(50))
    assert [data["seconds_left"] for _, data in messages] == [None, pytest.approx(50.0)]


def test_numbers_that_browsers_can_not_read_become_null(sent):
    events, _, messages, _ = sent
    events(step(1, loss=math.nan))
    assert messages[0][1]["loss"] is None and messages[0][1]["rows"] == [[1, 1.0, 0.001]]
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
