"""Dropped files and the listing of folders over HTTP: who may send, nothing outside input, nothing half, nothing overwritten."""

import socket
import time
import urllib.error
import urllib.request
from urllib.parse import quote

import pytest

from support.pictures import write_folder
from support.server import Refused

BYTES = "application/octet-stream"


def send(server, folder, path, data, **headers) -> int:
    request = urllib.request.Request(f"{server.url}/pistachio/upload?folder={quote(folder, safe='')}&path={quote(path, safe='')}", data=data, headers={"Content-Type": BYTES, **headers})
    try:
        return urllib.request.urlopen(request, timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def picture(server, tmp_path_factory) -> bytes:
    return (write_folder(tmp_path_factory.mktemp("given"), 1, size=(40, 40)) / "picture-01.png").read_bytes()


def everything(server) -> set:
    return {path for path in (server.base / "input").rglob("*") if "upload_" in str(path)}


def test_nothing_outside_input_and_nobody_elses_pages(server, picture):
    before = everything(server)
    for folder, path in (("../upload_x", "a.png"), ("/etc", "a.png"), ("output/upload_x", "a.png"), ("", "a.png"), (".hidden", "a.png"), ("upload_x", "../a.png"), ("upload_x", "/a.png"), ("upload_x", "a.py")):
        assert send(server, folder, path, picture) == 400, (folder, path)
    assert send(server, "upload_x", "a.png", picture, **{"Content-Type": "text/plain"}) == 415
    assert send(server, "upload_x", "a.png", picture, **{"Sec-Fetch-Site": "cross-site"}) == 403
    assert send(server, "upload_x", "a.png", picture, Origin="https://example.com") == 403
    assert everything(server) == before
    assert send(server, "upload_x", "a.png", picture) == 200
    assert (server.base / "input" / "upload_x" / "a.png").read_bytes() == picture


def test_a_connection_that_breaks_off_leaves_nothing(server, picture):
    head = f"POST /pistachio/upload?folder=upload_half&path=a.png HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: {BYTES}\r\nContent-Length: 5000000\r\n\r\n"
    half = server.base / "input" / "upload_half"
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + picture)
        deadline = time.monotonic() + 20
        while not half.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert half.exists()
    while half.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not half.exists()


def test_folders_are_listed_within_the_places_alone(server):
    write_folder(server.base / "input" / "upload_listed" / "one", 2, size=(32, 32))
    (server.base / "input" / "upload_listed" / "out").symlink_to("/etc")
    places = server.get("/pistachio/folders")
    assert [place["folder"] for place in places["folders"]] == ["input", "output"]
    level = server.get("/pistachio/folders?at=upload_listed")
    assert [(folder["folder"], folder["num_pictures"], folder["num_captioned"]) for folder in level["folders"]] == [("upload_listed/one", 2, 2)]
    assert [step["at"] for step in level["trail"]] == ["input", "upload_listed"]
    beside = server.get("/pistachio/folders?beside=upload_listed/one")
    assert (beside["at"], beside["chosen"]) == ("upload_listed", "upload_listed/one")
    assert server.get("/pistachio/folders?beside=is_not_there")["at"] == "input"
    for at in ("/etc", "../..", "upload_listed/out"):
        with pytest.raises(Refused) as refused:
            server.get(f"/pistachio/folders?at={quote(at, safe='')}")
        assert refused.value.status == 400
    there = server.get("/pistachio/folder?folder=upload_listed/one")
    assert there["exists"] and there["takes_files"] and len(there["first"]) == 2 and there["max_bytes"] > 0
    gone = server.get("/pistachio/folder?folder=output/gone")
    assert not gone["exists"] and not gone["takes_files"] and "does not exist" in gone["problem"]
