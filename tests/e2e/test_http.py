"""The job over HTTP: a prompt runs it, events come as it goes, the history is there, and a cancelled run resumes exactly."""

import json

import pytest

from support.jobs import training_job
from support.pictures import write_folder
from support.server import Refused

FOLDER = "http_pictures"
NUM_STEPS = 12
FAMILY = "wan21"  # the quickest of the tiny ones
RUN_TIMEOUT_SECONDS = 600


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    return write_folder(server.base / "input" / FOLDER, 8)


def job(run_name: str, **changes) -> dict:
    return training_job(FAMILY, folder=FOLDER, run_name=run_name, num_steps=NUM_STEPS, **changes)


def numbers(details: dict) -> list[dict]:
    """Everything measured, without wall-clock times; notes say that a run was resumed."""
    return [
        {key: value for key, value in row.items() if key != "seconds"} for row in details["metrics"] if row["kind"] in ("train", "eval", "probe")
    ]


@pytest.fixture(scope="module")
def whole(server):
    """The result and the history of a run that nothing interrupted."""
    result = server.run_ok(job("whole"), timeout_seconds=RUN_TIMEOUT_SECONDS)
    return result, server.get("/pistachio/runs/whole")


def test_every_step_and_evaluation_comes_as_an_event(whole):
    result, details = whole
    for name in ("pistachio.step", "pistachio.evaluation", "pistachio.finished"):
        assert all(event.data["run"] == "whole" and event.data["node_id"] == "train" for event in result.of_type(name))
    steps = [event.data["step"] for event in result.of_type("pistachio.step")]
    assert steps == sorted(set(steps)) and steps[-1] == NUM_STEPS
    evaluations = [event.data["step"] for event in result.of_type("pistachio.evaluation")]
    assert evaluations == [row["step"] for row in details["metrics"] if row["kind"] == "eval"]
    (finished,) = result.of_type("pistachio.finished")
    assert finished.data["chosen_step"] == details["chosen_step"] and finished.data["verdict"] == details["verdict"]
    kinds = [event.type for event in result.events]
    assert kinds.index("pistachio.step") < kinds.index("pistachio.finished") < kinds.index("execution_success")


def test_events_are_numbers_that_a_browser_can_read(whole):
    result, _ = whole
    for event in result.events:
        if event.type.startswith("pistachio."):
            json.dumps(event.data, allow_nan=False)


def test_the_history_is_served(server, whole):
    _, details = whole
    listed = {run["name"]: run for run in server.get("/pistachio/runs")["runs"]}
    assert listed["whole"]["status"] == "finished"
    assert [row["step"] for row in details["metrics"] if row["kind"] == "train"] == list(range(1, NUM_STEPS + 1))
    assert details["config"]["settings"]["num_steps"] == NUM_STEPS
    assert len(details["dataset"]["pictures"]) == 8
    assert details["report"]["chosen_step"] in details["checkpoints"] or details["report"]["chosen_step"] == 0


@pytest.mark.parametrize("name", ["none_of_this_name", "..", "%2e%2e%2f%2e%2e", "a/b"])
def test_an_unknown_run_is_not_found(server, name):
    with pytest.raises(Refused) as refused:
        server.get(f"/pistachio/runs/{name}")
    assert refused.value.status in (403, 404, 405)


def test_a_finished_run_is_returned_at_once(server, whole):
    _, before = whole
    again = server.run_ok(job("whole"), timeout_seconds=RUN_TIMEOUT_SECONDS)
    assert again.of_type("pistachio.step") == []
    assert server.get("/pistachio/runs/whole")["metrics"] == before["metrics"]


@pytest.mark.parametrize("stop_at", [4, 7])
def test_a_cancelled_run_is_saved_and_ends_with_the_same_numbers(server, whole, stop_at):
    name = f"cancelled_at_{stop_at}"
    listener = server.listen()
    try:
        prompt_id = server.queue(job(name), client_id=listener.client_id)
        listener.wait_for(
            lambda event: event.type == "pistachio.step" and event.data["run"] == name and event.data["step"] >= stop_at,
            timeout_seconds=RUN_TIMEOUT_SECONDS,
        )
        server.interrupt()
        assert server.finish(listener, prompt_id, timeout_seconds=RUN_TIMEOUT_SECONDS).status == "execution_interrupted"
    finally:
        listener.close()
    halted = server.get(f"/pistachio/runs/{name}")
    assert halted["status"] == "interrupted"
    done = max(row["step"] for row in halted["metrics"] if row["kind"] == "train")
    assert stop_at <= done < NUM_STEPS

    resumed = server.run_ok(job(name), timeout_seconds=RUN_TIMEOUT_SECONDS)
    steps = [event.data["step"] for event in resumed.of_type("pistachio.step")]
    assert steps[0] == done + 1
    ended, (_, expected) = server.get(f"/pistachio/runs/{name}"), whole
    assert ended["status"] == "finished"
    assert numbers(ended) == numbers(expected)
    assert ended["chosen_step"] == expected["chosen_step"] and ended["verdict"] == expected["verdict"]
