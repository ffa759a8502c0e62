"""The bundled workflows as files: laid out to be read, with every base file's address, and of this pack's version."""

import json
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
from pistachio.version import VERSION
from support.build_workflows import TITLES, bundled

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
FILES = sorted(FOLDER.glob("*.json"))
TRAINING = [bundled(key) for key in TITLES if key.startswith("train_character_")]
TITLE_PX = 30
MODEL_WIDGETS = {
    "CheckpointLoaderSimple": 1, "UNETLoader": 1, "VAELoader": 1, "CLIPLoader": 1, "DualCLIPLoader": 2,
}
DIRECTORIES = {"checkpoints", "diffusion_models", "text_encoders", "vae"}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request) -> dict:
    return json.loads(request.param.read_text(encoding="utf-8"))


def box(node: dict) -> tuple[float, float, float, float]:
    """left, top, right, bottom, with the title bar."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_PX, x + width, y + height


def test_every_family_and_job_has_one():
    assert set(TITLES) == {
        *(f"train_character_{family}" for family in ("sd15", "sdxl", "sd35", "flux", "wan21")), "caption_only", "caption_and_review", "continue_run",
        "character_sheet", "character_sheet_kontext", "one_form",
    }
    assert {path.stem for path in FILES} == set(TITLES.values())


def test_titles_are_words_and_sort_in_the_order_of_the_work():
    assert list(TITLES.values()) == sorted(TITLES.values())
    assert all(re.fullmatch(r"\d\d [A-Z][A-Za-z0-9. ]+", title) for title in TITLES.values())


def test_no_two_nodes_overlap(workflow):
    boxes = {node["id"]: box(node) for node in workflow["nodes"]}
    overlapping = [
        (a, b) for a, one in boxes.items() for b, two in boxes.items()
        if a < b and one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]
    ]
    assert overlapping == []


def test_every_node_lies_in_one_group(workflow):
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        around = [
            group["title"] for group in workflow["groups"]
            if group["bounding"][0] <= left and group["bounding"][1] <= top
            and right <= group["bounding"][0] + group["bounding"][2] and bottom <= group["bounding"][1] + group["bounding"][3]
        ]
        assert len(around) == 1, (node["type"], around)


def test_data_flows_to_the_right_from_group_to_group(workflow):
    groups = sorted(workflow["groups"], key=lambda group: group["bounding"][0])
    assert [group["title"] for group in groups] == [group["title"] for group in workflow["groups"]]
    for before, after in zip(groups, groups[1:]):
        assert before["bounding"][0] + before["bounding"][2] <= after["bounding"][0]
    column = {
        node["id"]: next(index for index, group in enumerate(groups) if node["pos"][0] < group["bounding"][0] + group["bounding"][2])
        for node in workflow["nodes"]
    }
    backwards = [link for link in workflow["links"] if column[link[1]] > column[link[3]]]
    assert backwards == []


def test_it_explains_itself(workflow):
    notes = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert notes and notes[0].startswith("## ")


def test_every_base_file_can_be_found(workflow):
    for node in workflow["nodes"]:
        count = MODEL_WIDGETS.get(node["type"], 0)
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == node["widgets_values"][:count], node["type"]
        for model in models:
            address = urlparse(model["url"])
            assert address.scheme == "https" and address.netloc == "huggingface.co" and "/resolve/" in address.path
            assert Path(address.path).name == model["name"] and model["name"].endswith(".safetensors")
            assert model["directory"] in DIRECTORIES


def test_every_node_says_which_pack_it_is_from(workflow):
    for node in workflow["nodes"]:
        if node["type"].startswith("Pistachio"):
            assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == ("pistachio-lora", VERSION)
        elif node["type"] != "MarkdownNote":
            assert node["properties"]["cnr_id"] == "comfy-core"


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: path.stem)
def test_a_stock_loader_takes_the_trained_lora(path):
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    (loader,) = [node for node in nodes.values() if node["type"] == "LoraLoaderModelOnly"]
    link_id = next(slot["link"] for slot in loader["inputs"] if slot["name"] == "lora_name")
    _, origin, slot, *_ = next(link for link in workflow["links"] if link[0] == link_id)
    assert nodes[origin]["type"] == "PistachioTrainLora" and nodes[origin]["outputs"][slot]["name"] == "lora_name"


def test_nothing_of_the_builders_own_machine_is_in_it(workflow):
    text = json.dumps(workflow)
    assert "tiny_" not in text and "/tmp" not in text
