"""The download through the real huggingface_hub client, from a server on this machine that speaks the Hub's protocol."""

import hashlib
import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save

from pistachio.dataset.joycaption import download
from pistachio.dataset.joycaption.background import Downloads
from pistachio.dataset.joycaption.download import missing_files, resolve_model
from pistachio.training.errors import PistachioError

REPO = "someone/llama-joycaption-beta-one-hf-llava"
COMMIT = "a" * 40
SHARDS = {f"model-0000{i}-of-00002.safetensors": save({f"w{i}": torch.full((1250,), float(i))}) for i in (1, 2)}
SHARD_1, SHARD_2 = SHARDS
FILES = {
    "config.json": b'{"model_type": "llava"}', "tokenizer.json": b"{}", "tokenizer_config.json": b"{}", **SHARDS,
    "model.safetensors.index.json": json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(SHARDS)}}).encode(),
    "pytorch_model.bin": b"a pickle that nobody asked for", "README.md": b"words",
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(send_body=False)

    def do_GET(self):
        self._answer(send_body=True)

    def _answer(self, send_body):
        hub, path = self.server.hub, self.path.split("?")[0]
        hub.requests.append(path)
        headers = {"X-Repo-Commit": COMMIT}
        if path.startswith(f"/api/models/{REPO}"):
            if "/tree/" in path:
                body = json.dumps([{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in FILES.items()]).encode()
            else:
                siblings = [{"rfilename": n, "size": hub.sizes.get(n, len(d)), "blobId": _oid(d), **_lfs(n, d)} for n, d in FILES.items()]
                body = json.dumps({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith(f"/{REPO}/resolve/") and path.rsplit("/", 1)[-1] in FILES:
            name = path.rsplit("/", 1)[-1]
            if send_body and name in hub.broken:
                self.send_error(500)
                return
            if send_body:
                hub.bodies.append(name)
            body = hub.damaged[name].pop(0) if send_body and hub.damaged.get(name) else FILES[name]
            headers["ETag"] = f'"{_oid(body)}"'
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if send_body and "/resolve/" in path:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.halfway.set()
            if not hub.go_on.wait(20):
                return
            self.wfile.write(body[len(body) // 2 :])
        elif send_body:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def _lfs(name, data):
    return {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}} if name in SHARDS else {}


def _oid(data):
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.hub = SimpleNamespace(requests=[], bodies=[], sizes={}, broken=set(), damaged={}, halfway=threading.Event(), go_on=threading.Event(), url=f"http://127.0.0.1:{server.server_port}")
    server.hub.go_on.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


def test_downloads_once_and_then_needs_no_connection(hub, tmp_path):
    seen = []
    folder = resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url, progress=lambda done, total: seen.append((done, total)))
    assert folder == tmp_path / "llama-joycaption-beta-one-hf-llava"
    on_disk = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")}
    wanted = {n: d for n, d in FILES.items() if n not in ("pytorch_model.bin", "README.md")}
    assert on_disk == wanted
    assert seen[-1] == (sum(map(len, wanted.values())),) * 2
    hub.requests.clear()
    assert resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url) == folder
    assert resolve_model(folder, models_folder=None) == folder
    assert hub.requests == []


def test_a_failed_download_is_kept_and_resumed(hub, tmp_path):
    hub.broken.add("model-00002-of-00002.safetensors")
    with pytest.raises(PistachioError, match="queue again to go on"):
        resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    hub.broken.clear()
    hub.requests.clear()
    folder = resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    assert missing_files(folder) == []
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == SHARDS["model-00002-of-00002.safetensors"]


def test_disk_is_checked_before_the_first_byte(hub, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    hub.sizes["model-00001-of-00002.safetensors"] = free + 10**9
    with pytest.raises(PistachioError, match=r"needs .* GB more on the disk.*GB are free"):
        resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    assert not any("/resolve/" in path for path in hub.requests)
    assert not list(tmp_path.iterdir())


def test_offline_names_the_folder_to_fill(tmp_path):
    with pytest.raises(PistachioError, match="Hugging Face can't be reached") as caught:
        resolve_model(REPO, models_folder=tmp_path, endpoint="http://127.0.0.1:9")
    assert str(tmp_path / "llama-joycaption-beta-one-hf-llava") in str(caught.value)


def test_unknown_repo(hub, tmp_path):
    with pytest.raises(PistachioError, match=r"no 'someone/else' for you \(status 404\)"):
        resolve_model("someone/else", models_folder=tmp_path, endpoint=hub.url)


@pytest.mark.parametrize("name, words", [("", "No captioner is named"), ("just-a-name", "neither a folder"), ("/a/b", "neither a folder"), ("a/b/c", "neither a folder")])
def test_bad_names(tmp_path, name, words):
    with pytest.raises(PistachioError, match=words):
        resolve_model(name, models_folder=tmp_path)


def test_no_models_folder():
    with pytest.raises(PistachioError, match="no models folder"):
        resolve_model(REPO, models_folder=None)


def test_progress_counts_partial_files(tmp_path):
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.incomplete").write_bytes(b"x" * 10)
    assert download.size_on_disk(tmp_path) == 10
    assert download.size_on_disk(tmp_path / "none") == 0


def _flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_file_that_arrived_damaged_is_fetched_again(hub, tmp_path):
    """Same size, another bit: only the checksum tells."""
    hub.damaged[SHARD_1] = [_flipped(FILES[SHARD_1])]
    folder = resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    assert (folder / SHARD_1).read_bytes() == FILES[SHARD_1]
    assert hub.bodies.count(SHARD_1) == 2 and hub.bodies.count(SHARD_2) == 1


def test_a_file_that_stays_damaged_is_named_and_removed(hub, tmp_path):
    hub.damaged[SHARD_2] = [_flipped(FILES[SHARD_2])] * 2
    with pytest.raises(PistachioError, match=rf"damaged twice.*{SHARD_2} \(its checksum differs\)"):
        resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    folder = tmp_path / REPO.split("/")[1]
    assert not (folder / SHARD_2).exists() and (folder / SHARD_1).is_file()
    assert resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url) == folder
    assert hub.bodies.count(SHARD_1) == 1, "what arrived whole is not fetched again"


def test_a_cancel_is_heard_in_the_middle_of_a_file(hub, tmp_path):
    class Cancel(Exception):
        pass

    def stop():
        if hub.halfway.is_set():
            raise Cancel

    hub.go_on.clear()  # the server holds the second half of every file back
    with pytest.raises(Cancel):
        resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url, check_interrupted=stop)
    hub.go_on.set()
    folder = resolve_model(REPO, models_folder=tmp_path, endpoint=hub.url)
    assert missing_files(folder) == []


def test_an_offline_folder_that_was_cut_short_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    assert missing_files(folder) == []
    (folder / SHARD_2).write_bytes(FILES[SHARD_2][:-100])
    with pytest.raises(PistachioError, match=f"{SHARD_2} missing or cut short"):
        resolve_model(folder, models_folder=None)


def test_a_download_that_nobody_waits_for_is_cancelled_and_goes_on(hub, tmp_path):
    downloads = Downloads(endpoint=hub.url)
    assert downloads.state(REPO, tmp_path).state == "missing"
    hub.broken.add(SHARD_2)
    downloads.start(REPO, tmp_path)
    deadline = time.monotonic() + 30
    while downloads.state(REPO, tmp_path).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    failed = downloads.state(REPO, tmp_path)
    assert failed.state == "failed" and "kept" in failed.error and failed.done_bytes > 0
    hub.broken.clear()
    hub.halfway.clear()
    hub.go_on.clear()
    downloads.start(REPO, tmp_path)
    assert hub.halfway.wait(20) and downloads.state(REPO, tmp_path).state == "running"
    downloads.start(REPO, tmp_path)  # the one that runs goes on
    downloads.cancel(REPO, tmp_path)
    assert downloads.state(REPO, tmp_path).state == "missing"
    hub.go_on.set()
    downloads.start(REPO, tmp_path)
    while downloads.state(REPO, tmp_path).state == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    here = downloads.state(REPO, tmp_path)
    assert here.state == "here" and not here.error and here.folder == str(tmp_path / REPO.split("/")[1])
    assert hub.bodies.count(SHARD_1) == 1  # what was there was not fetched again
