"""Over HTTP: what is told of a folder of an extra root and whether a dropped file is taken there, and who may have a run's folder opened."""

import asyncio
import json
import sys
import webbrowser
from urllib.parse import quote

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from support.pictures import write_folder

TELL = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"


@web.middleware
async def as_if_from(request, handler):
    """What a proxy's middleware does: the asker's own address."""
    return await handler(request.clone(remote=request.headers.get("X-Asker", request.remote)))


def asked(*questions):
    """[(status, JSON)] of (method, path, what the client is given) in turn."""
    from pistachio.bridge.folder_routes import add_folder_routes
    from pistachio.bridge.run_routes import add_run_routes
    from pistachio.bridge.upload_routes import add_upload_routes

    async def ask():
        routes = web.RouteTableDef()
        for add in (add_folder_routes, add_run_routes, add_upload_routes):
            add(routes)
        app = web.Application(middlewares=[as_if_from])
        app.add_routes(routes)
        async with TestClient(TestServer(app)) as client:
            answers = []
            for method, path, given in questions:
                answer = await client.request(method, path, **given)
                answers.append((answer.status, await answer.json()))
            return answers

    return asyncio.run(ask())


def test_a_picture_dropped_on_a_set_of_an_extra_root_makes_no_other_set_of_its_name(host, tmp_path):
    import folder_paths

    mia = write_folder(tmp_path / "characters" / "mia_extra", 5, size=(32, 32))
    folder_paths.add_model_folder_path("pistachio", str(tmp_path / "characters"))
    try:
        told = ("GET", "/pistachio/folder?folder=mia_extra", {})
        dropped = ("POST", "/pistachio/upload?folder=mia_extra&path=new.png", {"data": (mia / "picture-01.png").read_bytes(), "headers": {"Content-Type": "application/octet-stream"}})
        (status, before), (refused, why), (_, after) = asked(told, dropped, told)
    finally:
        del folder_paths.folder_names_and_paths["pistachio"]
    assert (status, before["exists"], before["num_pictures"], before["takes_files"]) == (200, True, 5, False)
    assert refused == 400 and "input folder" in why["error"] and after == before
    assert not (host.input / "mia_extra").exists()


@pytest.fixture
def opened(tmp_path):
    """The file with the address that the machine's program for folders was last given; a real program, which writes it down."""
    file = tmp_path / "opened.txt"
    webbrowser.register("telling", None, webbrowser.GenericBrowser([sys.executable, "-c", TELL, str(file), "%s"]), preferred=True)
    yield file
    webbrowser.register("telling", None, webbrowser.GenericBrowser(["false"]))  # asked in vain, and the machine's own comes next


def test_the_folder_of_a_run_is_opened_for_whoever_sits_at_the_machine(host, opened):
    folder = host.output / "pistachio" / "opened run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"id": "opened run"}))
    path = f"/pistachio/runs/{quote('opened run')}/show_folder"
    ((far, told),) = asked(("POST", path, {"json": {}, "headers": {"X-Asker": "203.0.113.20"}}))
    assert far == 400 and str(folder) in told["error"] and not opened.exists()
    (near, unknown) = asked(("POST", path, {"json": {}}), ("POST", "/pistachio/runs/..%2Fx/show_folder", {"json": {}}))
    assert near == (200, {"folder": str(folder)}) and opened.read_text() == folder.as_uri()
    assert unknown[0] == 400
