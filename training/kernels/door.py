"""The one door to the kernels: which implementation runs each operation, chosen once a process and device, said in one line.

Nothing here knows what an operation computes. A call that its chosen kernel can't take runs in torch, which is said once for
each reason and kept in `notes`: no fall back is silent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch

from ..errors import PistachioError
from . import nvrtc
from .glue import Unfit
from .launch import CudaLauncher, DriverError, Launcher
from .nvrtc import CompileFailed, CompilerMissing
from .programs import target_of
from .table import OPERATIONS

logger = logging.getLogger("pistachio")
KINDS = ("cuda", "library", "torch")
# No card has measured the kernels against torch yet: until one has, "auto" takes none of them. A product of 8-bit numbers
# has no fast form in plain torch, so there it is the library's.
AUTO = {name: "library" if operation.library and name.startswith("product_") else "torch" for name, operation in OPERATIONS.items()}
DEFAULT = "auto"
# Of training/quantization/formats.py: the library's product, and the kernel that does all of a LoRA linear.
PRODUCTS = {"int8-convrot": ("product_int8", "product_lora_int8"), "fp8-row": ("product_fp8", "product_lora_fp8")}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    operation: str
    implementation: str
    reason: str  # why not what was asked for; empty where it is


def cache_folder() -> Path:
    """Of this user, outside any ComfyUI: two of them share it."""
    return Path.home() / ".cache" / "pistachio" / "kernels"


def parse_setting(setting: str) -> dict[str, str]:
    """"auto", "torch", "library", "cuda", or "norm_modulate=cuda,adamw_=library"; raises PistachioError."""
    setting = setting.strip() or DEFAULT
    if setting in KINDS:
        return {name: setting for name in OPERATIONS}
    wanted = dict(AUTO)
    if setting == "auto":
        return wanted
    for part in setting.split(","):
        name, _, kind = (word.strip() for word in part.partition("="))
        if name not in OPERATIONS:
            raise PistachioError(f"Kernels '{setting}' in Memory Settings: there is no operation '{name}'. There are: {', '.join(OPERATIONS)}.")
        if kind not in OPERATIONS[name].implementations:
            raise PistachioError(f"Kernels '{setting}' in Memory Settings: '{name}' has no '{kind}'. It has: {', '.join(OPERATIONS[name].implementations)}.")
        wanted[name] = kind
    return wanted


class Door:
    def __init__(self, setting: str, device: torch.device, *, launcher: Launcher | None = None, folder: Path | None = None, said: Callable[[str], None] | None = None):
        """`launcher`: what starts kernels, else the driver; `folder`: where compiled kernels are kept; `said`: is given each note as it arises."""
        self.setting, self.device = setting.strip() or DEFAULT, device
        self.notes: list[str] = []
        self._said = said
        wanted = parse_setting(setting)
        self._why_no_cuda = "" if launcher else _why_no_cuda(device) if "cuda" in wanted.values() else "not asked for"
        self.launcher = launcher or (CudaLauncher(folder or cache_folder()) if not self._why_no_cuda else None)
        self.choices = {name: self._choose(name, kind) for name, kind in wanted.items()}

    def _choose(self, name: str, kind: str) -> Choice:
        has, reasons = OPERATIONS[name].implementations, []
        for candidate in KINDS[KINDS.index(kind):]:
            if candidate not in has:
                continue
            reason = self.why_not(name, candidate)
            if not reason:
                return Choice(operation=name, implementation=candidate, reason="; ".join(reasons))
            reasons.append(f"{candidate}: {reason}")
        raise AssertionError(f"{name} has no torch implementation")

    def why_not(self, name: str, kind: str) -> str:
        """The reason that this kind can't run the operation here; empty where it can."""
        if kind == "torch":
            return ""
        if kind == "cuda":
            return self._why_no_cuda or _too_old(self.device, OPERATIONS[name].least_for_cuda)
        return _why_no_library(self.device, OPERATIONS[name].least_capability)

    def implementation(self, name: str) -> str:
        return self.choices[name].implementation

    def multiplies_in(self, format: str) -> bool:
        """Are products with weights of this format to be taken in 8 bits? Only where that was asked for: it rounds inputs too."""
        names = PRODUCTS.get(format, ())
        asked = [name for name in names if self.setting in KINDS or f"{name}=" in self.setting.replace(" ", "")]
        return any(self.implementation(name) in ("library", "cuda") for name in asked)

    @property
    def line(self) -> str:
        """One sentence for the log and the report."""
        by_kind = {kind: [c.operation for c in self.choices.values() if c.implementation == kind] for kind in KINDS}
        parts = [f"{kind} for {', '.join(names) if len(names) < len(self.choices) else 'everything'}" for kind, names in by_kind.items() if names]
        reasons = sorted({c.reason for c in self.choices.values() if c.reason}) if self.setting != DEFAULT else []
        told = f" ({' | '.join(reasons)})" if reasons else ""
        return f"Kernels '{self.setting}' on {_device_name(self.device)}: {'; '.join(parts)}{told}."

    def report(self) -> dict:
        return {
            "setting": self.setting, "line": self.line, "notes": list(self.notes),
            "operations": {c.operation: {"implementation": c.implementation, "reason": c.reason} for c in self.choices.values()},
        }

    def call(self, name: str, *arguments):
        operation, kind = OPERATIONS[name], self.choices[name].implementation
        if kind == "torch":
            return operation.torch(*arguments)
        try:
            if kind == "cuda":
                return operation.cuda(self.launcher, *arguments)
            return operation.library(*arguments)
        except Unfit as reason:
            self.note(f"Kernel {name}: torch instead of {kind} for {reason}.")
        except (CompileFailed, CompilerMissing, OSError) as error:
            # Before anything has been started: nothing is half done.
            self.choices[name] = Choice(operation=name, implementation="torch", reason=f"{kind}: {error}")
            self.note(f"Kernel {name} can't be used here, torch runs it: {error}")
        return operation.torch(*arguments)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            logger.warning(text)
            if self._said is not None:
                self._said(text)


def _why_no_cuda(device: torch.device) -> str:
    if device.type != "cuda":
        return f"needs an NVIDIA card, not '{device.type}'"
    if torch.version.hip:
        return "needs an NVIDIA card; this torch is for AMD's"
    try:
        (major, minor), version = torch.cuda.get_device_capability(device), ".".join(map(str, nvrtc.version()))
        target = target_of(major, minor)
    except (CompilerMissing, CompileFailed, DriverError) as error:
        return str(error)
    if (major, minor) < (7, 5):
        return f"the card is too old (compute capability {major}.{minor}, at least 7.5 is needed)"
    if target is None:
        return f"the compiler that torch ships (NVRTC {version}) doesn't know the card (compute capability {major}.{minor})"
    return ""


def _why_no_library(device: torch.device, least: tuple[int, int]) -> str:
    if device.type != "cuda" or torch.version.hip:
        return f"needs an NVIDIA card, not '{device.type}'"
    return _too_old(device, least)


def _too_old(device: torch.device, least: tuple[int, int]) -> str:
    if device.type != "cuda":  # a launcher was given: it says itself what it can't run
        return ""
    found = torch.cuda.get_device_capability(device)
    return "" if found >= least else f"needs compute capability {least[0]}.{least[1]}, the card has {found[0]}.{found[1]}"


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type.upper() if device.type == "cpu" else device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


_doors: dict[torch.device, Door] = {}


def door_of(device: torch.device) -> Door:
    """The process's door for a device; opened as "auto" where nobody has opened it."""
    if device not in _doors:
        _doors[device] = Door(DEFAULT, device)
    return _doors[device]


def opened(device: torch.device) -> Door | None:
    """The process's door for a device, where one was opened."""
    return _doors.get(device)


def chosen(device: torch.device, name: str) -> str:
    """What runs an operation; "torch" where no door was opened."""
    opened = _doors.get(device)
    return "torch" if opened is None else opened.implementation(name)


def eight_bit_products(device: torch.device, format: str = "") -> bool:
    """`Door.multiplies_in` of the process's door, of any format where none is named; False where no door was opened."""
    opened = _doors.get(device)
    return opened is not None and (opened.multiplies_in(format) if format else any(map(opened.multiplies_in, PRODUCTS)))


def whole_products(device: torch.device, format: str) -> bool:
    """Is a LoRA linear over a weight of this format one kernel?"""
    door = _doors.get(device)
    return door is not None and door.multiplies_in(format) and door.implementation(PRODUCTS[format][1]) == "cuda"


def open_door(setting: str, device: torch.device, *, launcher: Launcher | None = None, folder: Path | None = None, said: Callable[[str], None] | None = None) -> Door:
    """Choose, say the line, and keep the choice for the process."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    _doors[device] = Door(setting, device, launcher=launcher, folder=folder, said=said)
    logger.info(_doors[device].line)
    return _doors[device]


def shut_doors() -> None:
    """Forget what was chosen: the next call chooses again."""
    _doors.clear()
