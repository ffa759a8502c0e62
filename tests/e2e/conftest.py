"""A live ComfyUI server with the pack and the tiny models, and a real browser for its canvas.

`server` is shared by the whole session; a test that kills or restarts its server takes one from `start_server`.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import tiny_models
from support.server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


USUAL_RENDERER = "nodes 1"  # what ComfyUI 0.3.75, which the tests install, begins with


def pytest_collection_modifyitems(config, items):
    if config.getoption("--one-renderer"):
        items[:] = [item for item in items if _is_kept(item)]


def _is_kept(item) -> bool:
    name = item.callspec.id if hasattr(item, "callspec") else ""
    return "nodes " not in name or USUAL_RENDERER in name


@pytest.fixture(scope="session")
def comfyui(request) -> Path:
    root = request.config.getoption("--comfyui")
    if root is None:
        pytest.fail("These tests need ComfyUI: run `python dev.py test e2e`, or give its folder with --comfyui=PATH.")
    return Path(root).resolve()


@pytest.fixture(scope="session")
def front_end(request) -> Path | None:
    files = request.config.getoption("--front-end-root")
    return Path(files).resolve() if files else None


@pytest.fixture(scope="session")
def tiny_files(comfyui, repository) -> Path:
    """Folder with every tiny model's file, laid out like ComfyUI's models folder."""
    version = re.search(r'__version__ = "([\d.]+)"', (comfyui / "comfyui_version.py").read_text()).group(1)
    folder = tiny_models.kept_folder(repository, tuple(int(part) for part in version.split(".")[:3]))
    if not all((folder / name).exists() for name in tiny_models.BUILDERS):
        script = Path(tiny_models.__file__).parent / "write_tiny_models.py"
        written = subprocess.run([sys.executable, str(script), str(comfyui), str(folder)], capture_output=True, text=True)
        assert written.returncode == 0, f"The tiny models could not be written:\n{written.stderr[-6000:]}"
    return folder


@pytest.fixture(scope="session")
def start_server(comfyui, front_end, tiny_files, repository, tmp_path_factory):
    """`start_server()` -> a running server in a new folder; `start_server(base)` -> in that one. All end with the session."""
    started: list[Server] = []

    def start(base: Path | None = None, *arguments: str) -> Server:
        base = base or tmp_path_factory.mktemp("server")
        for name in tiny_models.BUILDERS:
            target = base / "models" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(tiny_files / name)
        server = Server(comfyui=comfyui, base=base, front_end=front_end, pack=repository, arguments=arguments)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server) -> Server:
    return start_server()


@pytest.fixture(scope="session")
def browser():
    """Chromium or Chrome from PATH, driven by playwright."""
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        pytest.fail("The tests of the canvas need Chromium or Chrome on PATH. On Debian and Ubuntu: apt-get install chromium.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


@pytest.fixture
def canvas(browser, server):
    """The shared server's canvas in a new page, opened. `support.canvas.Canvas` for a page of another kind."""
    from support.canvas import Canvas

    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    yield Canvas(page=context.new_page(), server=server).open()
    context.close()
