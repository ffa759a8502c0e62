"""Every node as the canvas shows it: its id, tooltips, help page and translations."""

import json
import re

import pytest

# As the mission names them; more may be added, none may go.
PROMISED = {
    "PistachioLoadImageFolder", "PistachioLoadJoyCaption", "PistachioCaptionDataset", "PistachioSplitDataset", "PistachioEncodeDataset",
    "PistachioTrainLora", "PistachioSelectCheckpoint", "PistachioLossChart", "PistachioLoadRun",
}
SECRET = re.compile(r"(^|_)(api_?key|key|token|secret|password)($|_)")


def shown_inputs(schema) -> list:
    return [entry for entry in schema.inputs or [] if getattr(entry, "id", None)]


@pytest.fixture(scope="module")
def locales(repository) -> dict:
    """Language -> its nodeDefs.json."""
    files = sorted((repository / "locales").glob("*/nodeDefs.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def test_the_promised_nodes_are_there(schemas):
    assert PROMISED <= set(schemas)


def test_ids_and_categories(schemas):
    for node_id, schema in schemas.items():
        assert re.fullmatch(r"Pistachio([A-Z][A-Za-z0-9]*)", node_id)
        assert re.fullmatch(r"Pistachio/\S.*", schema.category), (node_id, schema.category)
        assert schema.display_name and schema.description, node_id


def test_every_input_has_a_tooltip(schemas):
    without = [f"{node_id}.{entry.id}" for node_id, schema in schemas.items() for entry in shown_inputs(schema) if not entry.tooltip]
    assert without == []


def test_inputs_and_outputs_have_different_ids(schemas):
    # ComfyUI 0.3.75 confuses them.
    for node_id, schema in schemas.items():
        outputs = {entry.id for entry in schema.outputs or []}
        assert not outputs & {entry.id for entry in shown_inputs(schema)}, node_id


def test_no_secret_is_ever_in_a_graph(schemas):
    # A workflow is embedded in every picture that it makes.
    named = [f"{node_id}.{entry.id}" for node_id, schema in schemas.items() for entry in shown_inputs(schema) if SECRET.search(entry.id)]
    assert named == []


def test_every_node_has_a_help_page(schemas, repository):
    for node_id, schema in schemas.items():
        page = repository / "js" / "docs" / node_id / "en.md"
        assert page.is_file(), f"{page.relative_to(repository)} is missing"
        text = page.read_text(encoding="utf-8")
        assert len(text) > 200, f"{page.relative_to(repository)} says next to nothing"
        names = {entry.id for entry in shown_inputs(schema)} | {entry.display_name for entry in shown_inputs(schema)} - {None}
        unknown = [entry.id for entry in shown_inputs(schema) if entry.id not in text and (entry.display_name or entry.id) not in text]
        assert unknown == [], f"{page.relative_to(repository)} does not explain {unknown} (of {sorted(names)})"


def test_no_help_page_without_its_node(schemas, repository):
    pages = {page.parent.name for page in (repository / "js" / "docs").glob("*/*.md")}
    assert pages <= set(schemas)


def test_english_has_every_node_and_input(schemas, locales):
    english = locales["en"]
    for node_id, schema in schemas.items():
        assert node_id in english, f"locales/en/nodeDefs.json has no {node_id}"
        entry = english[node_id]
        assert entry.get("display_name") and entry.get("description"), node_id
        missing = [shown.id for shown in shown_inputs(schema) if shown.id not in entry.get("inputs", {})]
        assert missing == [], f"locales/en/nodeDefs.json: {node_id} lacks {missing}"


def test_no_language_knows_what_is_not_there(schemas, locales):
    for language, entries in locales.items():
        assert set(entries) <= set(schemas), language
        for node_id, entry in entries.items():
            shown = {one.id for one in shown_inputs(schemas[node_id])}
            assert set(entry.get("inputs", {})) <= shown, (language, node_id)


def test_every_locale_file_parses_and_matches_english(repository):
    folders = sorted(path for path in (repository / "locales").iterdir() if path.is_dir())
    english = {file.name for file in (repository / "locales" / "en").glob("*.json")}
    assert "nodeDefs.json" in english
    for folder in folders:
        for file in folder.glob("*.json"):
            assert file.name in english, f"{folder.name}/{file.name} has no English twin"
            assert isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
