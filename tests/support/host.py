"""ComfyUI inside the test process, on the CPU, with its folders in a temporary place.

The real thing: its loaders, samplers and prompt server object are imported from the given checkout. Boots once a process.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from . import tiny_host


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    root: Path  # the checkout
    base: Path  # models/, input/, output/, temp/, user/
    version: tuple[int, ...]

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def output(self) -> Path:
        return self.base / "output"


_booted: Host | None = None


def boot(root: Path, base: Path, *, cpu: bool = True) -> Host:
    global _booted
    root = Path(root).resolve()
    if _booted is not None:
        if _booted.root != root:
            raise RuntimeError(f"This process already runs ComfyUI from {_booted.root}; {root} needs one of its own.")
        return _booted
    if not (root / "comfy" / "sd.py").is_file():
        raise FileNotFoundError(f"{root} is no ComfyUI checkout (there is no comfy/sd.py). Give one with --comfyui.")
    for folder in ("models", "input", "output", "temp", "user", "web"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(root))

    import comfy.options

    comfy.options.enable_args_parsing(False)
    from comfy.cli_args import args

    # Before the first import of folder_paths and model_management, which read them once.
    args.cpu = cpu
    args.base_directory = str(base)
    args.front_end_root = str(base / "web")
    args.disable_api_nodes = True
    args.database_url = f"sqlite:///{base / 'user' / 'test.db'}"

    import torch

    torch.set_num_threads(1)  # the models are so small that a second thread costs more than it gives

    import utils.install_util  # noqa: F401  before `nodes`, which puts comfy/, with its utils.py, in front of it
    import comfyui_version
    import nodes  # noqa: F401
    import server

    server.PromptServer(asyncio.new_event_loop())
    tiny_host.read_sizes_from_files()
    version = tuple(int(part) for part in comfyui_version.__version__.split(".")[:3])
    _booted = Host(root=root, base=base, version=version)
    return _booted
