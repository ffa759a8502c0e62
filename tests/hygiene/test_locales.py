"""Every language says what English says: the same files and keys, nothing empty, and what must be typed left as it is.

The canvas passes each text through vue-i18n, where @, {, } and | are commands: a text with one of them shows as something else.
"""

import copy
import json
import re

import pytest

COMMANDS = set("@{}|")
WORD_ENDS = r"(?![\w-])"
AFTER = {"on": ":"}  # elsewhere it is a word of the English sentence
KEPT = {
    "code in backticks": re.compile(r"`[^`]+`"),
    "placeholder": re.compile(r"\{\w*\}|<\w+>|\[\w+\]|%[sd]"),
    "quoted value": re.compile(r"(?<!\w)'[^']+'(?!\w)"),
    "id": re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)+"),
    "file or path": re.compile(r"\w+(?:[./]\w+)*\.(?:json|txt|yaml|gguf|png|md)\b|\b(?:models|input|output|docs)/\w*"),
    "number": re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-\d+)?"),
}


def texts(entry, path=()) -> dict:
    """Path of keys -> text, for every text of a translation file."""
    if not isinstance(entry, dict):
        return {path: entry}
    return {key: text for name, below in entry.items() for key, text in texts(below, (*path, name)).items()}


def problems(english: dict, other: dict) -> list[str]:
    """What a translation file lacks, has too much, leaves empty or changes that must stay."""
    expected, given = texts(english), texts(other)
    told = [f"{'.'.join(path)} is missing" for path in expected if path not in given]
    told += [f"{'.'.join(path)} is not in English" for path in given if path not in expected]
    for path in expected.keys() & given.keys():
        text = given[path]
        if not isinstance(text, str) or not text.strip():
            told.append(f"{'.'.join(path)} is empty")
        elif path[-1] != "name":  # a label stands for its id, so the id itself is what is translated
            for what, pattern in KEPT.items():
                told += [f"{'.'.join(path)} lacks the {what} {word}" for word in pattern.findall(expected[path]) if word not in text]
    return sorted(told)


@pytest.fixture(scope="module")
def files(repository) -> dict:
    """Language -> file name -> its content."""
    return {
        folder.name: {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))}
        for folder in sorted((repository / "locales").iterdir()) if folder.is_dir()
    }


@pytest.fixture(scope="module")
def translated(files) -> dict:
    """The languages beside English; without one, the tests below would prove nothing."""
    others = {language: contents for language, contents in files.items() if language != "en"}
    assert "zh" in others
    return others


def test_every_language_has_what_english_has(files, translated):
    for language, contents in translated.items():
        assert set(contents) == set(files["en"]), language
        for name, english in files["en"].items():
            assert problems(english, contents[name]) == [], f"locales/{language}/{name}"


def test_a_key_that_is_missing_is_told(files):
    english = files["en"]["nodeDefs.json"]
    assert problems(english, english) == []
    for path in (("PistachioTrainLora",), ("PistachioTrainLora", "inputs", "seed"), ("PistachioTrainLora", "outputs", "0", "tooltip")):
        short = copy.deepcopy(english)
        holder = short
        for name in path[:-1]:
            holder = holder[name]
        del holder[path[-1]]
        assert any(told.startswith(".".join(path)) and told.endswith("is missing") for told in problems(english, short)), path
        assert problems(short, english), "a key that English lacks must be told too"


def test_what_is_empty_or_changed_is_told():
    english = {"node": {"tooltip": "Press `R` in {folder}, then set num_steps to 12 or 'auto' in models/loras."}}
    assert problems(english, {"node": {"tooltip": " "}}) == ["node.tooltip is empty"]
    for word in ("`R`", "{folder}", "num_steps", "12", "'auto'", "models/loras"):
        (told,) = problems(english, {"node": {"tooltip": english["node"]["tooltip"].replace(word, "...")}})
        assert told.endswith(word)


def test_no_text_holds_a_command_of_the_canvas(files):
    held = [
        f"{language}/{name}: {'.'.join(path)}"
        for language, contents in files.items() for name, content in contents.items()
        for path, text in texts(content).items() if COMMANDS & set(text)
    ]
    assert held == []


def test_option_values_are_named_as_they_are(schemas, files, translated):
    """A tooltip that explains an option must name it as the canvas lists it."""
    for language, contents in translated.items():
        lacking = []
        for node_id, schema in schemas.items():
            for entry in schema.inputs or []:
                values = [value for value in getattr(entry, "options", None) or [] if isinstance(value, str)]
                english = files["en"]["nodeDefs.json"][node_id]["inputs"][entry.id]["tooltip"]
                other = contents["nodeDefs.json"][node_id]["inputs"][entry.id]["tooltip"]
                named = [value for value in values if re.search(rf"(?<![\w-]){re.escape(value)}{AFTER.get(value, WORD_ENDS)}", english)]
                lacking += [f"{node_id}.{entry.id}: {value}" for value in named if value not in other]
        assert lacking == [], language


def test_nodes_are_named_as_the_canvas_names_them(files, translated):
    for language, contents in translated.items():
        english, other = files["en"]["nodeDefs.json"], contents["nodeDefs.json"]
        names = {entry["display_name"].removesuffix(" (Pistachio)"): node_id for node_id, entry in english.items()}
        given = texts(other)
        wrong = [
            f"{'.'.join(path)}: {name}"
            for path, text in texts(english).items() if path[-1] in ("description", "tooltip")
            for name, node_id in names.items()
            if re.search(rf"\b{re.escape(name)}\b", text) and other[node_id]["display_name"].removesuffix(" (Pistachio)") not in given[path]
        ]
        assert wrong == [], language


def test_the_host_serves_every_language(schemas, repository, files, tmp_path, monkeypatch):
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "pistachio").mkdir()
    (tmp_path / "pistachio" / "locales").symlink_to(repository / "locales", target_is_directory=True)
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(tmp_path)])
    served = CustomNodeManager().build_translations()
    assert set(served) == set(files)
    for language, contents in files.items():
        assert served[language]["nodeDefs"] == contents["nodeDefs.json"]
        assert served[language]["nodeCategories"] == contents["main.json"]["nodeCategories"]
