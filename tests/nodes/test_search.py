"""What a person types to find the pack's nodes: on hosts that take search words, each word finds every node that it fits."""

from dataclasses import fields

import pytest

TRAINING = {"TrainLora", "AdapterSettings", "OptimizerSettings", "EvaluationSettings", "EncodeDataset", "SplitDataset", "SelectCheckpoint", "LoadRun", "TestSheet"}
CAPTIONING = {"LoadJoyCaption", "LoadGGUFCaptioner", "CaptionerFromClip", "CaptionOptions", "CaptionDataset", "CaptionRules", "CaptionHistory", "ReviewDataset"}
BOTH = {"LoadImageFolder", "LoadVideoFolder", "CheckDataset"}
FOUND = {"lora": TRAINING | BOTH, "train": TRAINING | BOTH, "kohya": TRAINING | BOTH, "caption": CAPTIONING | BOTH, "joycaption": CAPTIONING | BOTH}


@pytest.mark.parametrize("word", FOUND)
def test_a_word_finds_the_nodes_that_it_fits(host, word):
    from comfy_api.latest import io
    from pistachio.nodes import NODES

    schemas = [node.GET_SCHEMA() for node in NODES]
    if "search_aliases" not in {field.name for field in fields(io.Schema)}:
        assert schemas and not any(hasattr(schema, "search_aliases") for schema in schemas)  # dropped, and the nodes are there all the same
        return
    found = {schema.node_id.removeprefix("Pistachio") for schema in schemas if word in schema.search_aliases}
    assert FOUND[word] <= found
