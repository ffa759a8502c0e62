"""The nodes' surface against what stands behind it: settings dataclasses, stock loaders, the canvas's rules."""

import asyncio
import inspect
import json
from dataclasses import fields

import pytest

from pistachio.training.config import AdapterConfig, EvaluationConfig, LoggingConfig, ObjectiveConfig, OptimizerConfig

SETTINGS = {
    "PistachioAdapterSettings": AdapterConfig,
    "PistachioOptimizerSettings": OptimizerConfig,
    "PistachioObjectiveSettings": ObjectiveConfig,
    "PistachioEvaluationSettings": EvaluationConfig,
    "PistachioLoggingSettings": LoggingConfig,
}
ON_TRAIN_LORA = {"prior_fraction", "start_from_hash"}  # fields that are filled elsewhere


@pytest.fixture(scope="module")
def ours(host):
    """Node id -> class, registered with the host."""
    import nodes as host_nodes
    from pistachio.nodes import NODES

    classes = {node.GET_SCHEMA().node_id: node for node in NODES}
    host_nodes.NODE_CLASS_MAPPINGS.update(classes)
    return classes


def validate(prompt: dict, node_id: str) -> list[dict]:
    """The host's own check of one node and all before it; its errors."""
    import execution

    found = []
    validated = {}
    asyncio.run(execution.validate_inputs("test", prompt, node_id, validated))
    for _, errors, _ in validated.values():
        found.extend(errors)
    return found


def test_the_list_is_in_the_order_of_work(ours):
    ids = list(ours)
    assert ids[0] == "PistachioLoadImageFolder"
    assert ids.index("PistachioCaptionDataset") < ids.index("PistachioSplitDataset") < ids.index("PistachioEncodeDataset") < ids.index("PistachioTrainLora")


def test_every_output_says_what_it_is(ours):
    for node_id, node in ours.items():
        for output in node.GET_SCHEMA().outputs:
            assert output.display_name and output.tooltip, (node_id, output.id)


@pytest.mark.parametrize("node_id", SETTINGS)
def test_settings_nodes_offer_every_field_at_its_default(ours, node_id):
    config = SETTINGS[node_id]
    inputs = {entry.id: entry for entry in ours[node_id].GET_SCHEMA().inputs}
    assert set(inputs) == {field.name for field in fields(config)} - ON_TRAIN_LORA
    made = ours[node_id].execute(**{name: entry.default for name, entry in inputs.items()}).args[0]
    assert made == config() == ours[node_id].execute().args[0]


def test_tags_become_a_list(ours):
    made = ours["PistachioLoggingSettings"].execute(tags=" anna, test ,,").args[0]
    assert made.tags == ("anna", "test")


def test_defaults_on_the_canvas_and_in_code_are_the_same(ours):
    compared = 0
    for node_id, node in ours.items():
        parameters = inspect.signature(node.execute).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            continue
        schema = node.GET_SCHEMA()
        assert set(parameters) == {entry.id for entry in schema.inputs}, node_id
        for entry in schema.inputs:
            given = parameters[entry.id].default
            assert entry.optional == (given is not inspect.Parameter.empty), (node_id, entry.id)
            if entry.optional and getattr(entry, "default", None) is not None:
                assert given == entry.default, (node_id, entry.id)
                compared += 1
    assert compared > 30


def test_a_caption_option_of_each_kind(ours):
    node = ours["PistachioCaptionOptions"]
    assert node.execute().args[0] == (2, 3, 23, 27)
    assert node.execute(lighting=False, ages=True).args[0] == (2, 23, 27, 22)


def test_folded_inputs_are_marked_only_where_the_host_can_fold(ours, host):
    shown = {entry.id: entry.as_dict() for entry in ours["PistachioOptimizerSettings"].GET_SCHEMA().inputs}
    assert ("advanced" in shown["beta1"]) == (host.version >= (0, 4))
    assert "advanced" not in shown["learning_rate"]


@pytest.mark.parametrize("source, slot", [("PistachioTrainLora", 1), ("PistachioSelectCheckpoint", 0)])
def test_lora_names_go_into_the_stock_loader(ours, host, source, slot):
    """The stock loader's menu is a list of files, and its value is not known before the run."""
    (host.models / "loras").mkdir(exist_ok=True)
    prompt = {
        "1": {"class_type": source, "inputs": {}},
        "2": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["3", 0], "lora_name": ["1", slot], "strength_model": 1.0}},
        "3": {"class_type": "UNETLoader", "inputs": {}},
    }

    def mismatches(link) -> list[str]:
        prompt["2"]["inputs"]["lora_name"] = link
        return [e["extra_info"]["input_name"] for e in validate(prompt, "2") if e["type"] == "return_type_mismatch"]

    assert mismatches(["1", slot]) == []
    wrong = 2 if source == "PistachioTrainLora" else 1
    assert mismatches(["1", wrong]) == ["lora_name"], "a link of another type must be refused, or this test proves nothing"


def test_names_that_can_not_be_folders_are_refused_before_running(ours):
    for name in ("../x", "", "a/b", ".hidden", "x."):
        errors = validate({"1": {"class_type": "PistachioTrainLora", "inputs": {"run_name": name}}}, "1")
        (told,) = [e for e in errors if e["type"] == "custom_validation_failed"]
        assert told["extra_info"]["input_name"] == "run_name" and "can't be a run name" in told["details"]


def test_a_run_that_is_not_there_is_refused_before_running(ours):
    errors = validate({"1": {"class_type": "PistachioLoadRun", "inputs": {"run": "none of these"}}}, "1")
    assert [e["type"] for e in errors] == ["custom_validation_failed"]
    assert "no run 'none of these'" in errors[0]["details"]


def test_english_says_what_the_canvas_says(ours, repository):
    english = json.loads((repository / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert list(english) == list(ours)
    for node_id, node in ours.items():
        schema, entry = node.GET_SCHEMA(), english[node_id]
        assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
        assert {i: e["tooltip"] for i, e in entry["inputs"].items()} == {e.id: e.tooltip for e in schema.inputs}
        assert [(e["name"], e["tooltip"]) for e in entry["outputs"].values()] == [(o.display_name, o.tooltip) for o in schema.outputs]
