"""A real ComfyUI in the test process, and tiny models loaded by its stock loaders.

One host a process: `dev.py test nodes --comfyui PATH` chooses which.
"""

from pathlib import Path

import pytest

from support import host as host_module
from support import tiny_models
from support.executing import Executor


@pytest.fixture(scope="session")
def host(request, tmp_path_factory):
    root = request.config.getoption("--comfyui")
    if root is None:
        pytest.fail("These tests need ComfyUI: run `python dev.py test nodes`, or give its folder with --comfyui=PATH.")
    return host_module.boot(Path(root), tmp_path_factory.mktemp("comfyui"))


@pytest.fixture(scope="session")
def tiny(host, repository):
    """`tiny(family)` -> support.tiny_models.Tiny, loaded once a session. Its network is shared: leave it as it was."""
    kept = tiny_models.kept_folder(repository, host.version)
    loaded: dict[str, tiny_models.Tiny] = {}

    def get(family: str) -> tiny_models.Tiny:
        if family not in loaded:
            tiny_models.place(host.models, kept, family)
            loaded[family] = tiny_models.load(family)
        return loaded[family]

    return get


@pytest.fixture(scope="module")
def executor(host):
    """support.executing.Executor: graphs run by ComfyUI's own executor, with one cache for the module."""
    return Executor()
