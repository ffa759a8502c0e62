"""What the benchmarks share: the pack under its own name, a host in this process, tiny models and their captions.

Knows where things are in a checkout; knows nothing of what is measured.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[1]
CAPTIONS = (
    "a portrait of a woman with red hair",
    "a photo of a man in a blue coat",
    "a drawing of a woman with glasses",
    "a portrait of a man with a green hat",
)


def _load_package(name: str, folder: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def load_packages() -> None:
    """`pistachio` and the tests' `support`, without the repository's root on sys.path: its `nodes` would shadow ComfyUI's."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    _load_package("pistachio", ROOT)
    _load_package("support", ROOT / "tests" / "support")


@contextmanager
def booted_host(comfyui: Path, *, cpu: bool = True) -> Iterator:
    """A support.host.Host whose folders are temporary; a process has one."""
    load_packages()
    from support import host

    with tempfile.TemporaryDirectory(prefix="pistachio-bench-") as base:
        yield host.boot(Path(comfyui), Path(base), cpu=cpu)


def load_tiny(host, family: str):
    """A support.tiny_models.Tiny whose network is nobody else's: every call reads the file again."""
    from support import tiny_models

    tiny_models.place(host.models, tiny_models.kept_folder(ROOT, host.version), family)
    return tiny_models.load(family)


def tiny_workload(host, family: str, *, batch: int, size: int, rank: int, pictures: int = 4):
    """A bench_arms.Workload of seeded latents, `size` x `size`, and real captions through the family's tiny text encoder."""
    import torch
    from bench_arms import Workload

    tiny = load_tiny(host, family)
    shape = (*tiny.latent_shape[:-2], size, size)
    return Workload(
        model=tiny.model, batch=batch, rank=rank,
        latents=[torch.randn(shape, generator=torch.Generator().manual_seed(100 + i)) for i in range(pictures)],
        captions=[tiny.condition(CAPTIONS[i % len(CAPTIONS)]) for i in range(pictures)],
    )


def environment(host) -> dict:
    import torch

    return {
        "host_version": ".".join(map(str, host.version)),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "processor": _processor(),
        "num_threads": torch.get_num_threads(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def write_json(path: Path | None, value: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
