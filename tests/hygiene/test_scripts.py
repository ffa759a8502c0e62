"""The canvas's scripts as they lie here, with no build step: TypeScript finds nothing, their units pass, the host is left as it is."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from support.javascript import without_comments

OLDEST_NODE = 20
SCRIPTS = {".js", ".mjs"}
# What would draw on the host's canvas (gone in its newer renderer), reach into the host's classes, or need a build.
FORBIDDEN = {
    "changes a prototype": re.compile(r"(?:\.prototype|\.__proto__)\b|\bsetPrototypeOf\b"),
    "changes the host's classes": re.compile(r"\b(?:LGraphCanvas|LGraphNode|LGraph|LiteGraph|ComfyApp|ComfyApi)(?:\.\w+)+\s*=(?!=)"),
    "wraps the host's functions": re.compile(r"\b(?:app|api|hostApp|hostApi|app\.graph|app\.canvas|app\.ui)\.\w+\s*=(?!=)"),
    "draws on the host's canvas": re.compile(r"\bon(?:Draw\w+|Bounding)\b|\bdraw(?:Node|NodeWidgets|Connections)\b|\bgetContext\b"),
    "has a widget that the canvas draws": re.compile(r"\baddCustomWidget\b|\bcomputeSize\s*(?:=(?!=)|:)|\bcomputeSize\([^)]*\)\s*\{|\bdraw\s*:\s*(?:function|\()"),
    "watches each new node type": re.compile(r"\bbeforeRegisterNodeDef\b"),
    "needs a build": re.compile(r"from\s+[\"'](?![./])|\brequire\(|\bimport\([\"'](?![./])"),
}
HOST_SCRIPT = re.compile(r"[\"'][^\"']*/scripts/(?:app|api)\.js[\"']")
BUILD_FILES = {"package.json", "package-lock.json", "vite.config.js", "rollup.config.js", "webpack.config.js"}


def problems(source: str) -> list[str]:
    code = without_comments(source)
    return [what for what, pattern in FORBIDDEN.items() if pattern.search(code)]


@pytest.fixture(scope="module")
def scripts(repository) -> dict[str, str]:
    files = sorted(path for path in (repository / "js").rglob("*") if path.suffix in SCRIPTS)
    return {str(path.relative_to(repository)): path.read_text(encoding="utf-8") for path in files}


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.fail(f"These tests need node on PATH: install Node.js {OLDEST_NODE} or newer (on Debian and Ubuntu: apt-get install npm).")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        pytest.fail(f"{found} is {version}: install Node.js {OLDEST_NODE} or newer.")
    return found


def test_every_script_is_type_checked(node, repository, scripts):
    checker = repository / ".host" / "node" / "node_modules" / "typescript" / "bin" / "tsc"
    if not checker.is_file():
        pytest.fail("TypeScript is not installed: run `python dev.py test hygiene`, which installs what tests/package.json names.")
    assert [name for name, source in scripts.items() if not source.startswith("// @ts-check\n")] == []
    assert [name for name, source in scripts.items() if "@ts-nocheck" in source] == []
    command = [node, str(checker), "-p", str(repository / "tests" / "tsconfig.json")]
    found = subprocess.run([*command, "--listFiles"], capture_output=True, text=True, cwd=repository)
    lines = found.stdout.splitlines()
    assert found.returncode == 0, "\n".join(line for line in lines if "error" in line) + found.stderr
    checked = {str(Path(line).resolve().relative_to(repository)) for line in lines if Path(line).resolve().is_relative_to(repository / "js")}
    assert checked == set(scripts)


def test_the_units_pass(node, repository):
    files = sorted(str(path) for path in (repository / "tests" / "js").glob("*.test.mjs"))
    assert files
    run = subprocess.run([node, "--test", *files], capture_output=True, text=True, cwd=repository)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    assert re.search(r"^# pass [1-9]", run.stdout, re.M) and re.search(r"^# (?:skipped|todo) 0$", run.stdout, re.M), run.stdout[-2000:]


def test_the_host_is_left_as_it_is(scripts, tree):
    assert {name: told for name, source in scripts.items() if (told := problems(source))} == {}
    assert [name for name, source in scripts.items() if HOST_SCRIPT.search(source)] == ["js/host.mjs"]
    assert [str(path) for path in tree if path.name in BUILD_FILES and path.parts[0] != "tests"] == []


def test_what_is_forbidden_is_told():
    for source in (
        "LGraphNode.prototype.onAdded = own;", "Object.setPrototypeOf(app, own);", "LiteGraph.NODE_WIDGET_HEIGHT = 30;", "app.queuePrompt = own;",
        "node.onDrawForeground = (context) => {};", "node.addCustomWidget(widget);", "const widget = { draw: (context) => {} };",
        "beforeRegisterNodeDef(type) {}", 'import { html } from "lit";', "widget.computeSize = () => [1, 2];", 'element.getContext("2d");',
    ):
        assert problems(source), source
    for source in ("// node.onDrawForeground", "node.onRemoved = function () {};", 'import { app } from "../../scripts/app.js";', "this.draw();", "app.graph.add(node);", "const [, height] = node.computeSize();"):
        assert problems(source) == [], source
