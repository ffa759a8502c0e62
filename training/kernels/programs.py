"""A kernel's source with its constants, compiled for a card and kept on disk.

A file is named by the hash of all that decides its content, carries a checksum, and is written at once or not at all: two
hosts may share the folder, and a broken file is compiled again. Knows nothing of what a kernel computes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from ...dataset.files import atomic_write_bytes
from ..errors import PistachioError
from . import nvrtc
from .nvrtc import Resources

logger = logging.getLogger("pistachio")

SOURCES = Path(__file__).resolve().parent / "sources"
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}


@dataclass(frozen=True, slots=True)
class Program:
    """`source`: a file of `sources/` without its suffix. `constants`: names and values for the preprocessor, sorted."""

    source: str
    constants: tuple[tuple[str, int], ...]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in self.constants)

    @property
    def text(self) -> str:
        return source_text("common") + source_text(self.source)


def program(source: str, **constants: int) -> Program:
    return Program(source, tuple(sorted((name, int(value)) for name, value in constants.items())))


@lru_cache(maxsize=None)
def source_text(name: str) -> str:
    return (SOURCES / f"{name}.cu").read_text(encoding="utf-8")


def target_of(major: int, minor: int) -> str | None:
    """What to compile for a card: itself, or the nearest before it of its generation, whose code it runs too. None: the compiler knows neither.

    What is of one architecture alone (Hopper's `a`) is not used, so it is not needed."""
    fitting = [known for known in nvrtc.architectures() if known // 10 == major and known % 10 <= minor]
    return f"sm_{max(fitting)}" if fitting else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Binary:
    code: bytes
    resources: tuple[Resources, ...]
    from_cache: bool


def build(wanted: Program, target: str, folder: Path | None) -> Binary:
    """From the folder where it is there and whole, else compiled (and kept, where there is a folder)."""
    if folder is None:
        code, resources = nvrtc.compile_cubin(wanted.text, target, wanted.options)
        return Binary(code=code, resources=resources, from_cache=False)
    path = folder / f"{key_of(wanted, target)}.kernel"
    kept = _read(path)
    if kept is not None:
        return kept
    code, resources = nvrtc.compile_cubin(wanted.text, target, wanted.options)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, _packed(code, resources))
    except (OSError, PistachioError) as error:  # a full disk; on Windows also another ComfyUI that reads the file right now
        logger.warning("A compiled kernel can't be kept, so it is compiled again the next time: %s", error)
    return Binary(code=code, resources=resources, from_cache=False)


def key_of(wanted: Program, target: str) -> str:
    parts = (wanted.text, target, *wanted.options, *map(str, nvrtc.version()))
    return f"{wanted.source}-{target}-" + hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:32]


def _packed(code: bytes, resources: tuple[Resources, ...]) -> bytes:
    head = json.dumps({"sha256": hashlib.sha256(code).hexdigest(), "resources": [asdict(r) for r in resources]})
    return head.encode("utf-8") + b"\n" + code


def _read(path: Path) -> Binary | None:
    try:
        head, _, code = path.read_bytes().partition(b"\n")
        told = json.loads(head)
        if told["sha256"] != hashlib.sha256(code).hexdigest():
            return None
        return Binary(code=code, resources=tuple(Resources(**r) for r in told["resources"]), from_cache=True)
    except (OSError, ValueError, KeyError, TypeError):
        return None
