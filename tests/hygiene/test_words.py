"""What the canvas says stands in tables, one a language: the same keys and placeholders, each key said, each said key there."""

import ast
import json
import re
from pathlib import Path

import pytest

from support.javascript import spoken_literals, without_comments

ENTRY = re.compile(r'^  "(?P<key>[\w.]+)":\s+(?P<text>"(?:[^"\\]|\\.)*"),$')
PLACEHOLDER = re.compile(r"\{(\w+)\}")
SAID = re.compile(r"\b(?:say|sayCounted)\(\s*\"([\w.]+)\"")
COUNTED = re.compile(r"\bsayCounted\(\s*\"([\w.]+)\"")
KEY = re.compile(r"[\"'`]([a-z_]+(?:\.\w+)+)[\"'`]")  # a key in a table, that is said later


def table(text: str) -> dict[str, str]:
    entries = [ENTRY.match(line) for line in text.splitlines() if line.lstrip().startswith('"')]
    assert all(entries), "a line of a table is `\"key\": \"text\",`"
    found = {entry["key"]: entry["text"][1:-1] for entry in entries}
    assert len(found) == len(entries), "a key stands twice"
    return found


def server_sentences(sources: dict[str, str]) -> dict[str, str]:
    """Code -> English, from every `message("code", "English")` and `counted("code", count, "one", "other")` in Python."""
    found: dict[str, str] = {}
    for name, source in sources.items():
        for call in ast.walk(ast.parse(source)):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") not in ("message", "counted"):
                continue
            code, *texts = call.args[:1] + (call.args[1:2] if call.func.id == "message" else call.args[2:4])
            assert all(isinstance(part, ast.Constant) for part in (code, *texts)), f"{name}:{call.lineno}: the code and the English are written out"
            english = "|".join(text.value for text in texts)
            placeholders = set(PLACEHOLDER.findall(english)) - ({"count"} if call.func.id == "counted" else set())
            assert any(each.arg is None for each in call.keywords) or placeholders == {each.arg for each in call.keywords}, f"{name}:{call.lineno}: a value for each placeholder"
            assert found.setdefault(code.value, english) == english, f"{name}:{call.lineno}: {code.value} is another sentence elsewhere"
    return found


def differences(english: dict[str, str], other: dict[str, str]) -> list[str]:
    told = [f"{key} is missing" for key in english if key not in other] + [f"{key} is not in English" for key in other if key not in english]
    for key in english.keys() & other.keys():
        if not other[key].strip():
            told.append(f"{key} is empty")
        if set(PLACEHOLDER.findall(english[key])) != set(PLACEHOLDER.findall(other[key])):
            told.append(f"{key} has other placeholders")
    return sorted(told)


@pytest.fixture(scope="module")
def tables(repository) -> dict[str, dict[str, str]]:
    return {file.stem: table(file.read_text(encoding="utf-8")) for file in (repository / "js" / "words").glob("*.mjs")}


@pytest.fixture(scope="module")
def sources(repository) -> dict[str, str]:
    return {file.name: without_comments(file.read_text(encoding="utf-8")) for file in sorted((repository / "js").glob("*.*js"))}


def test_every_language_says_the_same(tables):
    assert set(tables) == {"en", "zh"}
    assert differences(tables["en"], tables["zh"]) == []


def test_a_difference_is_told():
    english = {"a.b": "{count} pictures", "a.c": "All"}
    assert differences(english, {"a.b": "{count} 张图片", "a.c": "全部"}) == []
    assert differences(english, {"a.b": "图片", "a.d": "全部"}) == ["a.b has other placeholders", "a.c is missing", "a.d is not in English"]
    assert differences(english, english | {"a.c": " "}) == ["a.c is empty"]


@pytest.fixture(scope="module")
def server(repository) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """What the server says in English, and the tables of the other languages, both by code."""
    sources = {str(file): file.read_text(encoding="utf-8") for part in ("training", "dataset", "bridge", "nodes") for file in (repository / part).rglob("*.py")}
    english = server_sentences({name: source for name, source in sources.items() if Path(name).name != "messages.py"})
    return english, {file.stem: table(file.read_text(encoding="utf-8")) for file in (repository / "js" / "words" / "server").glob("*.mjs")}


def test_every_language_has_what_the_server_says(server):
    english, tables = server
    assert len(english) > 20 and {language: differences(english, sentences) for language, sentences in tables.items()} == {"zh": []}


def test_the_server_names_nodes_as_the_canvas_names_them(repository, server):
    english, tables = server
    shown = {language: json.loads((repository / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")) for language in ("en", *tables)}
    for node_id, entry in shown["en"].items():
        name = re.compile(rf"\b{re.escape(entry['display_name'].removesuffix(' (Pistachio)'))}\b")
        for language, sentences in tables.items():
            own = shown[language][node_id]["display_name"].removesuffix(" (Pistachio)")
            assert [code for code, text in english.items() if name.search(text) and own not in sentences[code]] == [], own


def test_a_server_sentence_that_no_table_could_follow_is_told():
    assert server_sentences({"a.py": 'message("a.b", "Step {step}" ".", step=3); counted("a.c", n, "{count} one", "{count} in {other}", other=x)'}) == {"a.b": "Step {step}.", "a.c": "{count} one|{count} in {other}"}
    for source in ('message("a.b", f"Step {step}.")', 'message(code, "Step.")', 'message("a.b", "Step {step}.")', 'message("a.b", "One."); message("a.b", "Two.")'):
        with pytest.raises(AssertionError):
            server_sentences({"a.py": source})


def test_what_is_said_is_in_the_table_and_what_is_in_the_table_is_said(tables, sources):
    english = tables["en"]
    counted = {stem for source in sources.values() for stem in COUNTED.findall(source)}
    said = {key for source in sources.values() for key in SAID.findall(source)}
    stems = {key.rsplit(".", 1)[0] for key in english if key.endswith(".other")}
    assert sorted(key for key in said if key not in english and key not in stems) == []
    assert sorted(stem for stem in counted if {f"{stem}.one", f"{stem}.other"} - english.keys()) == []
    named = said | {key for source in sources.values() for key in KEY.findall(source)}
    unused = [key for key in english if key not in named and not (key.rsplit(".", 1)[0] in named and key.endswith((".one", ".other")))]
    assert unused == [], "keys that no script names; a key is written out in full where it is said"


def test_a_script_has_no_words_of_its_own(repository):
    files = sorted(path for path in (repository / "js").glob("*.*js"))
    assert {file.name: told for file in files if (told := spoken_literals(file.read_text(encoding="utf-8")))} == {}


def test_words_in_a_script_are_told():
    for source in (
        'button.textContent = "Stop and keep";', 'element("button", { title: `Install step ${step}` })', 'root.setAttribute("aria-label", "Pictures");',
        'toast("error", "It failed");', 'throw new Error("Restart it.");', 'element("h3", "", "Keys")', 'onCommand({ id, label: "Review" });', "title: `${count} pictures`",
    ):
        assert spoken_literals(source), source
    for source in ('button.textContent = say("panel.stop");', '// title: "Stop"', 'accept: "image/*"; // not a comment', 'element("div", "words", say("a.b"));', "title: `${name}`"):
        assert spoken_literals(source) == [], source


def test_every_phrase_that_the_server_sends_to_the_review_is_known_there(repository, sources):
    from pistachio.dataset import review

    known = sources["review_words.mjs"]
    assert [noun for noun in (*review._NOUNS.values(), *review._OPPOSITES.values()) if f'"{noun} "' not in known] == []
