"""The published archive: what is in it, and the strings by which the registry's scan holds a release back."""

import ast
import re
from pathlib import Path

import pytest

ANY_FILE = {
    "subprocess": r"subprocess",
    "os.system": r"os\.system|os\.popen|os\.spawn|os\.exec",
    "sockets": r"import socket\b|from socket\b|socket\.(socket|create_connection|connect)",
    "environment": r"os\.environ|os\.getenv|\bgetenv\(",
    "imports by name": r"importlib\.import_module\(|__import__\(",
    "databases": r"sqlite3\.connect|psycopg|pymysql|mysql\.connector|MongoClient|create_engine\(",
    "packages at runtime": r"pip\.main|ensurepip|pip\._internal",
    "pickles": r"pickle\.loads?\(|weights_only\s*=\s*False|trust_remote_code\s*=\s*True",
}
PYTHON = {"eval and exec": r"(?<!\w)(eval|exec)\("}  # model.eval() too: a plain-text rule does not see the dot
SCRIPT = {"eval": r"(?<![\w.])eval\(|new Function\("}


def test_it_holds_the_pack_and_nothing_for_developers(archive):
    names = {path.as_posix() for path in archive}
    tops = {path.parts[0] for path in archive}
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md"} <= names
    assert {"nodes", "bridge", "dataset", "training", "js", "locales", "workflows"} <= tops
    assert not {"tests", "benchmarks", "demo", "dev.py", ".ci", ".github"} & tops


def test_no_install_script(archive):
    assert not {path.name for path in archive} & {"install.py", "prestartup_script.py", "setup.py"}


@pytest.mark.parametrize("rule", [*ANY_FILE, *PYTHON, *SCRIPT])
def test_no_string_that_delays_a_release(archive, text_of, rule):
    pattern = re.compile((ANY_FILE | PYTHON | SCRIPT)[rule])
    suffixes = {".py"} if rule in PYTHON else {".js", ".mjs"} if rule in SCRIPT else None
    found = []
    for path in archive:
        text = text_of(path)
        if text is None or (suffixes and path.suffix not in suffixes):
            continue
        found += [f"{path}:{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]
    assert found == []


def test_it_is_small(archive, repository):
    size_bytes = sum((repository / path).stat().st_size for path in archive)
    assert size_bytes < 8_000_000, f"{size_bytes / 1e6:.1f} MB"


def test_every_python_file_parses_on_the_oldest_python(archive, text_of):
    for path in archive:
        if path.suffix == ".py":
            ast.parse(text_of(path), filename=str(path), feature_version=(3, 10))


def test_one_script_is_the_browsers_entry(archive):
    # ComfyUI imports every .js under the web folder by itself; helpers are .mjs.
    scripts = [path.as_posix() for path in archive if path.suffix == ".js" and path.parts[0] == "js"]
    assert len(scripts) == 1, scripts


def test_scripts_meet_the_host_in_one_file_and_hard_code_no_address(archive, text_of):
    scripts = [path for path in archive if path.suffix in (".js", ".mjs")]
    importing = [path.as_posix() for path in scripts if re.search(r"scripts/(app|api|ui|widgets)\.js", text_of(path))]
    assert len(importing) <= 1, importing
    assert [path.as_posix() for path in scripts if re.search(r"""["'`]/?extensions/""", text_of(path))] == []


def test_templates_are_in_one_flat_folder(archive):
    # ComfyUI serves the first of these names that is there.
    rivals = {"example_workflows", "example", "examples", "workflow"}
    assert not rivals & {path.parts[0] for path in archive}
    nested = [path.as_posix() for path in archive if path.parts[0] == "workflows" and len(path.parts) > 2 and path.suffix == ".json"]
    assert nested == []
    assert [path for path in archive if path.parent == Path("workflows") and path.suffix == ".json"]
