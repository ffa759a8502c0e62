"""pyproject.toml, requirements.txt and the licence, by the rules of the registry and of ComfyUI-Manager."""

import re
import subprocess
import sys
import tomllib

import pytest

FLOOR = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(>=\d+(\.\d+)*)?$")


def requirements(file) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def name_of(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_registry_takes_it(project):
    about, comfy = project["project"], project["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", about["name"]) and "comfyui" not in about["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["urls"]["Repository"].startswith("https://github.com/")
    assert about["license"] == {"file": "LICENSE"}
    assert comfy["PublisherId"] and comfy["DisplayName"] == "Pistachio" and comfy["Icon"].startswith("https://")
    assert comfy["requires-comfyui"] == ">=0.3.75"
    assert "web" not in comfy  # WEB_DIRECTORY says it


def test_the_icon_is_in_the_repository(project, repository):
    assert (repository / project["tool"]["comfy"]["Icon"].split("/main/")[1]).is_file()


def test_both_lists_of_requirements_are_one(project, repository):
    assert sorted(project["project"]["dependencies"]) == sorted(requirements(repository / "requirements.txt"))


def test_requirements_are_floors(repository):
    assert [line for line in requirements(repository / "requirements.txt") if not FLOOR.match(line)] == []


def test_nothing_that_comfyui_brings_itself(repository, comfyui):
    ours = {name_of(line) for line in requirements(repository / "requirements.txt")}
    theirs = {name_of(line) for line in requirements(comfyui / "requirements.txt")}
    assert not ours & theirs
    assert not ours & {"torch", "torchvision", "torchaudio", "torchsde", "xformers", "triton", "bitsandbytes", "numpy", "accelerate", "peft"}


def test_the_changelog_has_this_version(project, repository):
    assert f"## {project['project']['version']}" in (repository / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_whole(repository):
    text = (repository / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert all(f"\n{number}. " in text for number in range(1, 10))


def test_the_entry_imports_no_comfyui(repository):
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('pack', {str(repository / '__init__.py')!r}, submodule_search_locations=[{str(repository)!r}])\n"
        "module = sys.modules['pack'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "assert not {'torch', 'comfy', 'folder_paths', 'server', 'nodes'} & set(sys.modules), sorted(sys.modules)\n"
        "assert not hasattr(module, 'NODE_CLASS_MAPPINGS')\n"
        "assert module.WEB_DIRECTORY == './js' and callable(module.comfy_entrypoint)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository / "tests")
    assert ran.returncode == 0, ran.stderr
