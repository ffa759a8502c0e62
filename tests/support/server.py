"""A real ComfyUI server with this pack in it, and a client for its HTTP and websocket API.

Starts `main.py` on the CPU in a folder of its own; knows nothing of what the tests queue.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

START_TIMEOUT_SECONDS = 180
REQUEST_TIMEOUT_SECONDS = 60
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class Refused(Exception):
    """The server answered with an error status; `body` is its JSON (`node_errors` for a prompt) or text."""

    def __init__(self, status: int, body: Any):
        super().__init__(f"HTTP {status}: {json.dumps(body)[:2000]}")
        self.status, self.body = status, body


@dataclass(frozen=True, slots=True)
class Event:
    type: str
    data: dict
    seconds: float  # since listening began


@dataclass(kw_only=True, slots=True)
class Listener:
    """Collects what the server sends over one websocket, from a thread of its own."""

    client_id: str
    socket: websocket.WebSocket
    events: list[Event] = field(default_factory=list)
    previews: int = 0  # binary messages
    changed: threading.Condition = field(default_factory=threading.Condition)
    is_open: bool = True

    def start(self) -> Listener:
        threading.Thread(target=self._receive, daemon=True).start()
        return self

    def _receive(self) -> None:
        started = time.monotonic()
        while True:
            try:
                message = self.socket.recv()
            except (websocket.WebSocketException, OSError):
                message = ""
            with self.changed:
                if isinstance(message, bytes) and message:
                    self.previews += 1
                elif message:
                    content = json.loads(message)
                    self.events.append(Event(content["type"], content.get("data") or {}, time.monotonic() - started))
                else:
                    self.is_open = False
                self.changed.notify_all()
            if not message:
                return

    def wait_for(self, wanted: Callable[[Event], bool], *, timeout_seconds: float) -> Event:
        """The first event, past or future, that is wanted."""
        deadline, seen = time.monotonic() + timeout_seconds, 0
        with self.changed:
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self.is_open:
                    reason = "the connection closed" if not self.is_open else f"it did not come in {timeout_seconds:.0f} s"
                    raise TimeoutError(f"No such event: {reason}. Came: {[event.type for event in self.events][-20:]}")
                self.changed.wait(remaining)

    def of_type(self, name: str) -> list[Event]:
        with self.changed:
            return [event for event in self.events if event.type == name]

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    prompt_id: str
    status: str  # one of ENDS
    message: dict  # the data of the closing event: for an error `exception_message`, `traceback`, `node_id`
    outputs: dict  # node id -> what the node shows, from the history
    events: list[Event]

    def of_type(self, name: str) -> list[Event]:
        return [event for event in self.events if event.type == name]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        target.symlink_to(source, target_is_directory=source.is_dir())


class Server:
    """`with Server(...) as server:` or `start()` and `stop()`; may be killed and started again on the same folder."""

    def __init__(self, *, comfyui: Path, base: Path, front_end: Path | None, pack: Path, port: int | None = None, arguments: tuple[str, ...] = ()):
        self.comfyui, self.base, self.front_end, self.pack = comfyui, base, front_end, pack
        self.port = port or free_port()
        self.arguments = arguments
        self.process: subprocess.Popen | None = None
        self.log_path = base / "server.log"
        for folder in ("models/loras", "input", "output", "temp", "user", "custom_nodes"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        link(pack, base / "custom_nodes" / "pistachio")
        link(Path(__file__).parent / "tiny_host", base / "custom_nodes" / "pistachio_tiny_host")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # --- its life ---

    def start(self) -> Server:
        command = [
            sys.executable, str(self.comfyui / "main.py"), "--cpu", "--base-directory", str(self.base), "--port", str(self.port),
            "--database-url", f"sqlite:///{self.base / 'user' / 'test.db'}", "--disable-auto-launch", "--disable-api-nodes",
            *(("--front-end-root", str(self.front_end)) if self.front_end else ()), *self.arguments,
        ]
        with open(self.log_path, "ab") as log:
            # The models are so small that a second thread costs more than it gives, and far more when another process wants the core.
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.base, env=environment)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with status {self.process.returncode} while starting:\n{self.log()[-6000:]}")
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(f"ComfyUI did not start in {START_TIMEOUT_SECONDS} s:\n{self.log()[-6000:]}")
            time.sleep(0.2)

    def stop(self) -> None:
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """As a crash would: nothing can be saved."""
        self.process.kill()
        self.process.wait()
        self.process = None

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *exception) -> None:
        self.stop()

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # --- HTTP ---

    def request(self, path: str, *, body: bytes | None = None, content_type: str = "application/json", method: str | None = None) -> bytes:
        request = urllib.request.Request(self.url + path, data=body, method=method)
        if body is not None:
            request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            content = error.read()
            try:
                answer = json.loads(content)
            except ValueError:
                answer = content.decode(errors="replace")
            raise Refused(error.code, answer) from error

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def post(self, path: str, content: Any) -> Any:
        answer = self.request(path, body=json.dumps(content).encode())
        return json.loads(answer) if answer else None

    def object_info(self) -> dict:
        return self.get("/object_info")

    def history(self, prompt_id: str) -> dict:
        return self.get(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def upload(self, picture: Path, *, subfolder: str = "") -> dict:
        boundary = uuid.uuid4().hex
        fields = {"subfolder": subfolder, "type": "input", "overwrite": "true"}
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
        parts.append(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + picture.read_bytes() + b"\r\n")
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
        return json.loads(self.request("/upload/image", body=body, content_type=f"multipart/form-data; boundary={boundary}"))

    # --- prompts ---

    def listen(self) -> Listener:
        client_id = uuid.uuid4().hex
        connection = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=START_TIMEOUT_SECONDS)
        connection.settimeout(None)
        return Listener(client_id=client_id, socket=connection).start()

    def queue(self, prompt: dict, *, client_id: str = "", extra_data: dict | None = None) -> str:
        """Prompt id; `Refused` (400, with `node_errors`) when the validation fails."""
        content = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex, "extra_data": extra_data or {}}
        answer = self.post("/prompt", content)
        return answer["prompt_id"]

    def finish(self, listener: Listener, prompt_id: str, *, timeout_seconds: float) -> Result:
        end = listener.wait_for(
            lambda event: event.type in ENDS and event.data.get("prompt_id") == prompt_id, timeout_seconds=timeout_seconds
        )
        deadline = time.monotonic() + 10  # the history is written just after the closing event
        while not (history := self.history(prompt_id)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return Result(
            prompt_id=prompt_id, status=end.type, message=end.data, outputs=history.get("outputs", {}), events=list(listener.events)
        )

    def run(self, prompt: dict, *, timeout_seconds: float = 300) -> Result:
        """Queue a prompt and wait for its end, whatever it is."""
        listener = self.listen()
        try:
            return self.finish(listener, self.queue(prompt, client_id=listener.client_id), timeout_seconds=timeout_seconds)
        finally:
            listener.close()

    def run_ok(self, prompt: dict, *, timeout_seconds: float = 300) -> Result:
        result = self.run(prompt, timeout_seconds=timeout_seconds)
        if result.status != "execution_success":
            trace = "".join(result.message.get("traceback") or [])
            raise AssertionError(f"{result.status}: {result.message.get('exception_message')}\n{trace}")
        return result
