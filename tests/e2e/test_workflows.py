"""Each bundled workflow on the real canvas: parsed, checked against the server's nodes, and run with the tiny models.

What is exchanged for the run is the table in `support.tiny_workflows`; the graph is the bundled one.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from support import tiny_workflows
from support.canvas import Canvas
from support.pictures import draw, write_folder

FILES = tiny_workflows.BUNDLED
RUN_TIMEOUT_SECONDS = 900
WIDGET_KINDS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    return server.object_info()


@pytest.fixture(scope="module")
def page(browser, server):
    """One canvas for the whole file; every workflow is loaded into it."""
    write_folder(server.base / "input" / tiny_workflows.FOLDER, 8, trigger_word="ohwx")
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open()
    context.close()


@pytest.fixture(scope="module")
def prompt_of(page):
    """`prompt_of(name)` -> the API prompt that the canvas makes of a bundled workflow."""
    prompts: dict[str, dict] = {}

    def get(name: str) -> dict:
        if name not in prompts:
            page.load(FILES[name])
            prompts[name] = page.prompt()
        return prompts[name]

    return get


def by_type(prompt: dict, node_type: str) -> tuple[str, dict]:
    (found,) = [(node_id, node["inputs"]) for node_id, node in prompt.items() if node["class_type"] == node_type]
    return found


def choices(spec: list) -> list:
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])


# ---- on the canvas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_canvas_reads_it_as_it_was_written(page, name):
    written = json.loads(FILES[name].read_text(encoding="utf-8"))
    page.load(written)
    assert [node for node in page.nodes() if node["missing"] and node["type"] != "MarkdownNote"] == []
    read = page.page.evaluate("() => window.app.graph.serialize()")
    assert _links(read) == _links(written)
    for node in written["nodes"]:
        (same,) = [other for other in read["nodes"] if other["id"] == node["id"]]
        assert [value for value in same.get("widgets_values", []) if value is not None] == node["widgets_values"], node["type"]
        assert same["properties"].get("models") == node["properties"].get("models")
    assert len(read["groups"]) == len(written["groups"])
    # The host asks a registry on the internet about every pack, which a machine without one can't.
    assert [error for error in page.our_errors() if "api.comfy.org" not in error] == []


def _links(graph: dict) -> set:
    nodes = {node["id"]: node for node in graph["nodes"]}
    return {
        (origin, nodes[origin]["outputs"][slot]["name"], target, nodes[target]["inputs"][target_slot]["name"])
        for _, origin, slot, target, target_slot, *_ in graph["links"]
    }


@pytest.mark.parametrize("name", FILES)
def test_no_node_is_smaller_than_its_widgets(page, name):
    """Where JoyCaption is installed: the offer to download it comes some time after the graph, and makes its node grow."""
    page.page.route("**/pistachio/captioner?**", lambda route: route.fulfill(json={"state": "here", "folder": "", "is_own": False}))
    page.load(FILES[name])
    sizes = page.page.evaluate("() => window.app.graph._nodes.map(n => [n.type, n.size[0], n.size[1], ...n.computeSize()])")
    page.page.unroute("**/pistachio/captioner?**")
    cramped = [row for row in sizes if row[1] < row[3] or row[2] < row[4]]
    assert cramped == []


@pytest.mark.parametrize("name", FILES)
def test_the_server_has_its_nodes_inputs_and_values(prompt_of, object_info, name):
    prompt = prompt_of(name)
    files = {file["name"] for node in json.loads(FILES[name].read_text())["nodes"] for file in node["properties"].get("models", [])}
    for node in prompt.values():
        info = object_info[node["class_type"]]
        required, optional = info["input"].get("required", {}), info["input"].get("optional", {})
        assert set(required) <= set(node["inputs"]), node["class_type"]
        unknown = set(node["inputs"]) - set(required) - set(optional)
        assert unknown <= {"preview"}, node["class_type"]  # what the canvas itself adds to Preview Any
        for key, value in node["inputs"].items():
            if key in unknown:
                continue
            spec = required.get(key) or optional[key]
            where = f"{node['class_type']}.{key} = {value!r}"
            if isinstance(value, list):
                given = object_info[prompt[value[0]]["class_type"]]["output"][value[1]]
                assert given in (spec[0], "*") or spec[0] == "*" or given in str(spec[0]).split(","), where
            elif isinstance(spec[0], list) or spec[0] == "COMBO":
                assert value in choices(spec) or value in files or node["class_type"] in ("PistachioLoadRun", "LoadImage"), where
            else:
                assert isinstance(value, WIDGET_KINDS[spec[0]]), where
                if spec[0] in ("INT", "FLOAT"):
                    assert spec[1].get("min", value) <= value <= spec[1].get("max", value), where


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("train_character")])
def test_every_setting_is_the_nodes_default(prompt_of, object_info, name):
    """So that what is shown is what a train node without settings nodes does."""
    for node in prompt_of(name).values():
        if not node["class_type"].endswith("Settings"):
            continue
        for key, value in node["inputs"].items():
            assert value == object_info[node["class_type"]]["input"]["optional"][key][1]["default"], (node["class_type"], key)


# ---- run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny_workflows.FILES)
def test_it_trains_and_generates(server, prompt_of, family):
    if family == "sd35":
        tiny_workflows.write_sd35_checkpoint(server.base / "models")
    name = f"my_character_{family}"
    for place in (server.base / "output" / "pistachio" / name, server.base / "models" / "loras" / f"{name}.safetensors"):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    log_before = len(server.log())
    prompt = tiny_workflows.swap(prompt_of(f"train_character_{family}"), tiny_workflows.swaps(family))
    result = server.run_ok(prompt, timeout_seconds=RUN_TIMEOUT_SECONDS)

    with safe_open(server.base / "models" / "loras" / f"{name}.safetensors", framework="pt") as lora:
        assert len(list(lora.keys())) > 10
        assert any(lora.get_tensor(key).abs().max() > 0 for key in lora.keys() if ".lora_B." in key or "lora_up" in key)
        (base_file,) = {value for node in prompt.values() for key, value in node["inputs"].items() if key in ("ckpt_name", "unet_name")}
        assert lora.metadata()["ss_sd_model_name"] == base_file and lora.metadata()["modelspec.trigger_phrase"] == "ohwx"
    details = server.get(f"/pistachio/runs/{name}")
    assert details["status"] == "finished" and details["last_step"] == tiny_workflows.NUM_STEPS
    assert [row["step"] for row in details["metrics"] if row["kind"] == "train"] == list(range(1, tiny_workflows.NUM_STEPS + 1))

    saver = next(node_id for node_id, node in prompt.items() if node["class_type"] in ("SaveImage", "SaveAnimatedWEBP"))
    for saved in result.outputs[saver]["images"]:
        with Image.open(server.base / "output" / saved["subfolder"] / saved["filename"]) as picture:
            assert picture.size == (64, 64)
            assert picture.convert("RGB").getextrema() != ((0, 0),) * 3
    log = server.log()[log_before:]
    assert "lora key not loaded" not in log and "ERROR lora" not in log
    assert "JoyCaption" not in log  # every picture had its caption


def test_caption_only_shows_the_captions(server, prompt_of):
    prompt = prompt_of("caption_only")
    result = server.run_ok(prompt)
    captions = result.outputs[by_type(prompt, "PreviewAny")[0]]["text"][0].splitlines()
    assert len(captions) == 8 and all("ohwx" in line for line in captions)


def test_caption_and_review_goes_from_the_folder_to_a_split(server, prompt_of):
    prompt = prompt_of("caption_and_review")
    result = server.run_ok(prompt)
    (told,) = result.outputs[by_type(prompt, "PistachioReviewDataset")[0]]["pistachio_review"]
    assert told["notes"][0] == "8 pictures go on." and Path(told["folder"]).name == tiny_workflows.FOLDER
    assert "4 held out" in result.outputs[by_type(prompt, "PistachioSplitDataset")[0]]["text"][0]


@pytest.mark.parametrize("name", tiny_workflows.SHEETS)
def test_a_character_sheet_is_made_once_and_reviewed(server, prompt_of, name):
    folder = server.base / "input" / tiny_workflows.SHEET_FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    draw(0, size=(96, 128))[0].save(server.base / "input" / tiny_workflows.REFERENCE)
    prompt = tiny_workflows.swap(prompt_of(name), tiny_workflows.SHEETS[name])
    first = server.run_ok(prompt, timeout_seconds=RUN_TIMEOUT_SECONDS)
    saver, _ = by_type(prompt, "PistachioSaveToDataset")
    count = by_type(prompt, "PistachioCharacterSheet")[1]["pictures"]
    assert f"{count} saved." in " ".join(first.outputs[saver]["text"])
    made = {path.name: Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))}
    assert [picture.size for picture in made.values()] == [(256, 256), (208, 320)][:count]
    assert all(low < high for picture in made.values() for low, high in picture.getextrema())
    captions = [(folder / name).with_suffix(".txt").read_text(encoding="utf-8") for name in made]
    assert all(caption.startswith("ohwx person, ") for caption in captions) and len(set(captions)) == count

    again = server.run_ok(prompt)
    assert "of the sheet are made." in " ".join(again.outputs[saver]["text"])
    ran = {prompt[event.data["node"]]["class_type"] for event in again.of_type("executing") if event.data.get("node") in prompt}
    assert "PistachioCheckDataset" in ran and "KSampler" not in ran
    assert {path.name for path in folder.glob("*.png")} == set(made)


def test_continue_run_goes_on_from_the_last_step(server, prompt_of):
    train = tiny_workflows.swap(prompt_of("train_character_sdxl"), tiny_workflows.swaps("sdxl", run_name="to_be_continued"))
    server.run_ok(train, timeout_seconds=RUN_TIMEOUT_SECONDS)
    before = [row for row in server.get("/pistachio/runs/to_be_continued")["metrics"] if row["kind"] == "train"]
    total = tiny_workflows.NUM_STEPS + 2
    table = tiny_workflows.swaps("sdxl", num_steps=total) | {"PistachioLoadRun": {"run": "to_be_continued"}}
    server.run_ok(tiny_workflows.swap(prompt_of("continue_run"), table), timeout_seconds=RUN_TIMEOUT_SECONDS)
    details = server.get("/pistachio/runs/to_be_continued")
    rows = [row for row in details["metrics"] if row["kind"] == "train"]
    assert details["status"] == "finished" and [row["step"] for row in rows] == list(range(1, total + 1))
    assert rows[: tiny_workflows.NUM_STEPS] == before
