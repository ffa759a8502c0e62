"""The tree and the archive as others see them: the registry, ComfyUI's canvas, a reader.

Files are those that git tracks or would track, so that a new file is judged before it is committed.
"""

import subprocess
from pathlib import Path

import pytest

from support import host as host_module

BINARY = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".safetensors", ".pt", ".npz", ".woff2", ".mp4"}


def list_files(repository: Path, *arguments: str) -> list[Path]:
    # The exception is for a checkout that another user of the machine made, as happens in CI.
    command = ["git", "-c", f"safe.directory={repository}", "-C", str(repository), "ls-files", "-z", "--cached", "--others", *arguments]
    listed = subprocess.run(command, capture_output=True, text=True)
    assert listed.returncode == 0, f"The files cannot be listed; these tests need a git checkout.\n{listed.stderr}"
    return sorted({Path(name) for name in listed.stdout.split("\0") if name and (repository / name).is_file()})


@pytest.fixture(scope="session")
def tree(repository) -> list[Path]:
    """Relative paths of the whole repository."""
    return list_files(repository, "--exclude-standard")


@pytest.fixture(scope="session")
def archive(repository, tree) -> list[Path]:
    """Relative paths of what the registry would publish: the tree without what .comfyignore names."""
    ignored = set(list_files(repository, "--ignored", f"--exclude-from={repository / '.comfyignore'}"))
    return [path for path in tree if path not in ignored]


@pytest.fixture(scope="session")
def text_of(repository):
    """`text_of(path)` -> its text, or None for pictures, weights and the like."""

    def read(path: Path) -> str | None:
        return None if path.suffix in BINARY else (repository / path).read_text(encoding="utf-8")

    return read


@pytest.fixture(scope="session")
def comfyui(request) -> Path:
    root = request.config.getoption("--comfyui")
    if root is None:
        pytest.fail("These tests need ComfyUI: run `python dev.py test hygiene`, or give its folder with --comfyui=PATH.")
    return Path(root)


@pytest.fixture(scope="session")
def schemas(comfyui, tmp_path_factory) -> dict:
    """Node id -> its schema, as a real ComfyUI gets them from the pack."""
    import asyncio

    import pistachio

    host_module.boot(comfyui, tmp_path_factory.mktemp("comfyui"))

    async def node_classes():
        extension = await pistachio.comfy_entrypoint()
        return await extension.get_node_list()

    schemas = [node.GET_SCHEMA() for node in asyncio.run(node_classes())]
    return {schema.node_id: schema for schema in schemas}
