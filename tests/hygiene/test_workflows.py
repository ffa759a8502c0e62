"""The bundled workflows as files: whole graphs, every base model with its address, a note and a thumbnail.

That the canvas reads them and that they run is for the end-to-end tests.
"""

import json
import tomllib
from urllib.parse import urlparse

import pytest

MODEL_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
MODEL_HOSTS = {"huggingface.co", "civitai.com"}  # the canvas offers downloads from these alone


@pytest.fixture(scope="module")
def workflows(repository) -> dict:
    """File name -> graph."""
    files = sorted((repository / "workflows").glob("*.json"))
    assert files, "workflows/ has no .json"
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def model_files(node) -> list[str]:
    values = node.get("widgets_values") or []
    values = values.values() if isinstance(values, dict) else values
    return [value for value in values if isinstance(value, str) and value.endswith(MODEL_SUFFIXES)]


def test_links_join_nodes_that_are_there(workflows):
    for name, graph in workflows.items():
        nodes = {node["id"]: node for node in graph["nodes"]}
        links = {link[0]: link for link in graph["links"]}
        assert nodes and len(nodes) == len(graph["nodes"]) and len(links) == len(graph["links"]), name
        for link_id, source, source_slot, target, target_slot, _ in graph["links"]:
            assert link_id in (nodes[source]["outputs"][source_slot]["links"] or []), (name, link_id)
            assert nodes[target]["inputs"][target_slot]["link"] == link_id, (name, link_id)
        for node in graph["nodes"]:
            joined = {entry.get("link") for entry in node.get("inputs") or []} - {None}
            assert joined <= set(links), (name, node["id"])


def test_every_base_file_can_be_fetched_from_the_canvas(workflows):
    for name, graph in workflows.items():
        for node in graph["nodes"]:
            if node["type"].startswith(("Lora", "Pistachio")):
                continue  # a LoRA here is what the graph itself makes
            listed = {model["name"]: model for model in node.get("properties", {}).get("models", [])}
            assert set(model_files(node)) == set(listed), (name, node["id"], node["type"])
            for model in listed.values():
                address = urlparse(model["url"])
                assert address.scheme == "https" and address.netloc in MODEL_HOSTS, (name, model)
                assert address.path.endswith(MODEL_SUFFIXES) and model["directory"], (name, model)


def test_our_nodes_say_where_they_come_from(workflows, repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, graph in workflows.items():
        ours = [node for node in graph["nodes"] if node["type"].startswith("Pistachio")]
        assert ours, name
        for node in ours:
            assert node.get("properties", {}).get("cnr_id") == project["name"], (name, node["type"])
            assert node["properties"].get("ver"), (name, node["type"])


def test_every_workflow_explains_itself(workflows, repository):
    for name, graph in workflows.items():
        assert any(node["type"] in ("Note", "MarkdownNote") for node in graph["nodes"]), name
        assert (repository / "workflows" / name).with_suffix(".jpg").is_file(), f"workflows/{name} has no thumbnail"
