"""Loads the pack once, under the name `pistachio`, and the tests' shared helpers, under the name `support`.

The repository's root is never on sys.path: its folder `nodes` would shadow ComfyUI's module of that name.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Before torch is imported: the models are so small that a second thread costs more than it gives.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# `python -m pytest` puts the working folder there.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


def _load_package(name: str, folder: Path):
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load_package("pistachio", ROOT)
_load_package("support", TESTS / "support")


def pytest_addoption(parser):
    # Write them with "=": before this file is read, pytest takes a separate value for a folder of tests.
    parser.addoption(
        "--comfyui",
        default=os.environ.get("PISTACHIO_COMFYUI"),
        help="--comfyui=PATH: the ComfyUI checkout that the `nodes` and `e2e` tests run against (dev.py gives it)",
    )
    parser.addoption(
        "--front-end-root",
        default=os.environ.get("PISTACHIO_FRONT_END_ROOT"),
        help="--front-end-root=PATH: browser files of the frontend version that the checkout pins (dev.py gives it)",
    )
    parser.addoption("--one-renderer", action="store_true", help="tests of the canvas in one renderer (`dev.py test` of all suites gives it; `dev.py test e2e` runs both)")


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT
