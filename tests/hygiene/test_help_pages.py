"""Help pages: a picture and an example each, in every language, in step with each other and with the schemas.

The host opens js/docs/<node>/<language>.md and takes a picture's address from js/docs on.
"""

import json
import re

import pytest
from PIL import Image

LANGUAGES = {"en": "Example", "zh": "示例"}
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
SWITCHES = {"on": True, "off": False, "开": True, "关": False}
HOST_NODES = {"加载CLIP", "UNet加载器", "保存图像"}  # as the host's own Chinese names them


@pytest.fixture(scope="module")
def pages(repository, schemas) -> dict:
    """(language, node id) -> text."""
    files = {(language, node_id): repository / "js" / "docs" / node_id / f"{language}.md" for language in LANGUAGES for node_id in schemas}
    missing = [f"{node_id}/{language}.md" for (language, node_id), file in files.items() if not file.is_file()]
    assert missing == []
    return {key: file.read_text(encoding="utf-8") for key, file in files.items()}


@pytest.fixture(scope="module")
def chinese(repository) -> dict:
    return json.loads((repository / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


def inputs_of(schema) -> dict:
    return {entry.id: entry for entry in schema.inputs or [] if getattr(entry, "id", None)}


def rows_of(text: str) -> list[list[str]]:
    """Rows of the page's tables of inputs: those with a `name` first."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0].lstrip("| ").startswith("`")]


def headings(text: str) -> list[str]:
    return [line.split(" ")[0] for line in text.splitlines() if re.match(r"#+ \S", line)]


def codes(text: str) -> set[str]:
    """What is written as code; a <placeholder> may be in the page's own language."""
    return {re.sub(r"<[^>]+>", "<>", code) for code in CODE.findall(text)}


def test_every_page_has_a_picture_and_an_example(pages, repository):
    for (language, node_id), text in pages.items():
        (picture,) = PICTURE.findall(text)
        assert picture[1] == f"{node_id}/node.webp", (language, node_id)
        assert (repository / "js" / "docs" / picture[1]).is_file(), f"{picture[1]} is missing: tests/support/take_help_pictures.py takes it"
        section = re.search(rf"^## {LANGUAGES[language]}$(.+?)^## ", text, re.MULTILINE | re.DOTALL)
        assert section and len(PICTURE.sub("", section[1]).strip()) > 40, f"{node_id}/{language}.md has no example"


def test_pictures_are_light_and_show_something(schemas, repository):
    sizes_bytes = {}
    for node_id in schemas:
        file = repository / "js" / "docs" / node_id / "node.webp"
        sizes_bytes[node_id] = file.stat().st_size
        with Image.open(file) as picture:
            assert 450 <= picture.width <= 1000 and 250 <= picture.height <= 2000, (node_id, picture.size)
            grey = picture.convert("L").resize((64, 64))
        assert grey.getextrema()[1] - grey.getextrema()[0] > 60, f"{node_id}'s picture is empty"
    assert {node_id: size for node_id, size in sizes_bytes.items() if size > 45_000} == {}
    assert sum(sizes_bytes.values()) < 1_500_000


def test_pages_name_every_input_and_none_that_is_not_there(pages, schemas):
    for (language, node_id), text in pages.items():
        inputs = inputs_of(schemas[node_id])
        assert [name for name in inputs if f"`{name}`" not in text] == [], (language, node_id)
        tables = re.findall(r"^\| (?:Input|输入) .*\n(?:\|.*\n)+", text, re.MULTILINE)
        named = {name for table in tables for row in rows_of(table) for name in CODE.findall(row[0])}
        assert named <= set(inputs), (language, node_id, named - set(inputs))


def test_defaults_are_the_schemas(pages, schemas):
    compared = 0
    for (language, node_id), text in pages.items():
        inputs = inputs_of(schemas[node_id])
        for table in re.findall(r"^\| (?:Input \| Default|输入 \| 默认) .*\n(?:\|.*\n)+", text, re.MULTILINE):
            for row in rows_of(table):
                names, told = CODE.findall(row[0]), row[1]
                if len(names) != 1 or not told:
                    continue
                default = getattr(inputs[names[0]], "default", None)
                if told in SWITCHES:
                    assert default is SWITCHES[told], (language, node_id, names[0])
                elif re.fullmatch(r"-?[\d.]+(e-\d+)?", told):
                    assert float(default) == float(told), (language, node_id, names[0])
                elif told.startswith("`"):
                    assert str(default) == told.strip("`"), (language, node_id, names[0])
                elif told in ("empty", "空"):
                    assert not default, (language, node_id, names[0])
                compared += 1
    assert compared > 150


def test_languages_are_in_step(pages, schemas):
    for node_id in schemas:
        english, other = pages["en", node_id], pages["zh", node_id]
        assert headings(english) == headings(other), node_id
        assert [row[0].count("`") for row in rows_of(english)] == [row[0].count("`") for row in rows_of(other)], node_id
        assert codes(english) ^ codes(other) == set(), (node_id, "in English alone", codes(english) - codes(other), "in Chinese alone", codes(other) - codes(english))


def test_chinese_pages_call_things_as_the_canvas_does(pages, schemas, chinese, repository):
    names = {entry["display_name"].removesuffix(" (Pistachio)") for entry in chinese.values()} | HOST_NODES
    names |= set(re.findall(r'"([^"\n]+)",?$', (repository / "js" / "words" / "zh.mjs").read_text(encoding="utf-8"), re.MULTILINE))  # buttons
    for node_id in schemas:
        text = pages["zh", node_id]
        assert text.startswith(f"# {chinese[node_id]['display_name']}\n"), node_id
        assert set(re.findall(r"「([^」]+)」", text)) - {chinese[node_id]["display_name"]} <= names, node_id
        for row in rows_of(text):
            for name, label in re.findall(r"`(\w+)` ([^`、]+?)(?=、|$)", row[0]):
                given = chinese[node_id]["inputs"].get(name, {}).get("name")
                assert given is None or label.strip() == given, (node_id, name, label, given)
