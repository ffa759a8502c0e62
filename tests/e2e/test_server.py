"""The live server comes up with the pack in it, says nothing bad about it, and generates with every tiny family."""

import urllib.error
import urllib.request

import pytest

from support import tiny_models
from support.prompts import generation_prompt
from support.server import Refused


def test_the_pack_loads_without_a_word_of_complaint(server):
    info = server.object_info()
    ours = {name: node for name, node in info.items() if name.startswith("Pistachio")}
    assert "PistachioTrainLora" in ours
    assert all(node["category"].startswith("Pistachio/") for node in ours.values())
    assert not [name for name in info if "pistachio" in name.lower() and not name.startswith("Pistachio")]
    # Up to the first prompt: other tests of the same server queue bad input on purpose.
    log = server.log().split("got prompt")[0]
    assert "Starting server" in log and "IMPORT FAILED" not in log
    complaints = [line for line in log.splitlines() if "pistachio" in line.lower() and any(word in line for word in ("WARN", "ERROR", "Warning", "Error"))]
    assert complaints == []


def test_a_page_never_mixes_scripts_of_two_versions(server):
    for name in ("pistachio.js", "words.mjs", "words/zh.mjs"):
        with urllib.request.urlopen(f"{server.url}/extensions/pistachio/{name}", timeout=60) as answer:
            assert answer.headers["Cache-Control"] in ("no-cache", "no-store"), name
        asked = urllib.request.Request(answer.url, headers={"If-None-Match": answer.headers["ETag"]})
        with pytest.raises(urllib.error.HTTPError) as unchanged:  # what is still the same is not sent again
            urllib.request.urlopen(asked, timeout=60)
        assert unchanged.value.code == 304


@pytest.mark.parametrize("family", tiny_models.FILES)
def test_stock_nodes_generate_with_the_tiny_family(server, family):
    prompt = generation_prompt(family, text="a portrait of a woman")
    result = server.run_ok(prompt)
    saved = result.outputs["16"]["images"]
    assert len(saved) == 1 and (server.base / "output" / saved[0]["filename"]).stat().st_size > 0


def test_a_refused_prompt_names_the_node(server):
    prompt = generation_prompt("sd15", text="")
    prompt["1"]["inputs"]["ckpt_name"] = "none.safetensors"
    with pytest.raises(Refused) as refused:
        server.queue(prompt)
    assert refused.value.status == 400 and "1" in refused.value.body["node_errors"]
