"""The review over HTTP: what is listed and changed, who is refused, and that the node passes on what was decided."""

import json
import shutil
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest

from support.pictures import write_folder
from support.server import Refused

A, B, C = (f"picture-0{number}.png" for number in (1, 2, 3))


@pytest.fixture
def folder(server, request):
    path = server.base / "input" / f"review_{request.node.name.replace('[', '_').replace(']', '')[:60]}"
    return write_folder(path, 8, size=(40, 40))


def listed(server, folder) -> dict:
    found = server.get(f"/pistachio/review?folder={quote(folder.name)}")
    return found | {"pictures": {picture["name"]: picture for picture in found["pictures"]}}


def post(server, path, folder, **body):
    return server.post(f"/pistachio/review/{path}", {"folder": folder.name, **body})


def test_captions_marks_and_undo(server, folder):
    before = listed(server, folder)["pictures"][A]["caption"]
    answer = post(server, "caption", folder, name=A, text="by hand", seen=before)
    assert answer["pictures"][0]["is_edited"] and answer["undo"] == "the caption of picture-01.txt"
    post(server, "mark", folder, names=[B, C], mark="excluded", on=True)
    now = listed(server, folder)
    assert now["pictures"][A]["caption"] == "by hand" and now["pictures"][B]["is_excluded"] and now["undo"] == f"excluding {B}, {C}"
    with pytest.raises(Refused) as refused:
        post(server, "caption", folder, name=A, text="too late", seen=before)
    assert refused.value.status == 409 and refused.value.body["now"] == "by hand"
    assert [post(server, "undo", folder)["words"] for _ in range(2)] == [f"excluding {B}, {C}", "the caption of picture-01.txt"]
    assert (folder / "picture-01.txt").read_text().strip() == before
    assert post(server, "redo", folder)["pictures"][0]["caption"] == "by hand"


def test_odd_names_and_their_pictures(server, folder):
    names = ["50% \N{SLIGHTLY SMILING FACE} #1?&+.png", "two\nlines.png", "sub folder/a b.png"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / A, folder / name)
        post(server, "caption", folder, name=name, text=f"of {name!r}", seen=None)
        assert listed(server, folder)["pictures"][name]["caption"] == f"of {name!r}"
        picture = server.request(f"/pistachio/thumbnail?folder={folder.name}&file={quote(name, safe='')}&size=64")
        assert picture.startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "picture-01.txt", "gone.png"])
def test_nothing_outside_the_folder(server, folder, name):
    for path, body in (("caption", {"name": name, "text": "x", "seen": None}), ("mark", {"names": [name], "mark": "excluded", "on": True})):
        with pytest.raises(Refused) as refused:
            post(server, path, folder, **body)
        assert refused.value.status == 400 and "error" in refused.value.body
    with pytest.raises(Refused) as refused:
        server.request(f"/pistachio/thumbnail?folder={folder.name}&file={quote(name, safe='')}")
    assert refused.value.status == 404
    with pytest.raises(Refused) as refused:
        server.get("/pistachio/review?folder=" + quote("../../etc"))
    assert refused.value.status == 400 and "outside" in refused.value.body["error"]


@pytest.mark.parametrize("headers, status", [
    ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ({"Content-Type": "application/json", "Origin": "https://example.com"}, 403),
    ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, 403),
    ({"Content-Type": "application/json"}, 200),
])
def test_only_its_own_pages_may_change_anything(server, folder, headers, status):
    body = json.dumps({"folder": folder.name, "names": [A], "mark": "excluded", "on": True}).encode()
    request = urllib.request.Request(f"{server.url}/pistachio/review/mark", data=body, headers=headers)
    try:
        answered = urllib.request.urlopen(request).status
    except urllib.error.HTTPError as error:
        answered = error.code
    assert answered == status and (folder / ".review.json").exists() == (status == 200)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"folder": 3}', b'{"folder": "x", "names": "a", "mark": "excluded", "on": 1}', b"\xff\xfe"])
def test_a_request_that_makes_no_sense(server, body):
    with pytest.raises(Refused) as refused:
        server.request("/pistachio/review/mark", body=body)
    assert refused.value.status == 400 and refused.value.body["error"]


def test_the_node_passes_on_what_was_decided(server, folder):
    prompt = {
        "load": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": folder.name}},
        "review": {"class_type": "PistachioReviewDataset", "inputs": {"dataset": ["load", 0]}},
        "split": {"class_type": "PistachioSplitDataset", "inputs": {"dataset": ["review", 0]}},
    }

    def run():
        result = server.run_ok(prompt)
        cached = {node for event in result.of_type("execution_cached") for node in event.data["nodes"]}
        return result.outputs, cached

    run()
    outputs, cached = run()
    assert {"load", "review", "split"} <= cached and outputs["review"]["pistachio_review"][0]["folder"] == str(folder)
    post(server, "mark", folder, names=[A], mark="excluded", on=True)
    post(server, "mark", folder, names=[B, C], mark="held_out", on=True)
    outputs, cached = run()
    assert not {"review", "split"} & cached
    assert any("7 pictures go on" in note for note in outputs["review"]["pistachio_review"][0]["notes"])
    assert "5 pictures to train on, 2 held out" in outputs["split"]["text"][0] and "marked in the review" in outputs["split"]["text"][0]
