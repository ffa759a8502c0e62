"""What runs each operation here and why, in Markdown: card, driver, compiler, kept kernels, choices and a self-test.

Asks the door, the compiler and the driver; chooses nothing and changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch

from . import nvrtc
from .door import KINDS, Door, cache_folder
from .nvrtc import CompileFailed, CompilerMissing
from .programs import target_of
from .selftest import Finding
from .table import OPERATIONS

NO_CARD = "There is no CUDA card here: PyTorch runs every operation."


def markdown(door: Door, findings: list[Finding] | None = None, *, used: Door | None = None, folder: Path | None = None) -> str:
    """`door`: of the setting that is asked about; `used`: of the last run in this process; `findings`: None without a self-test."""
    rows = [("Setting", f"`{door.setting}`"), *_machine(door.device), *_compiler(door), *_kept(folder or cache_folder())]
    parts = [f"# Kernels on {_name(door.device)}", *([NO_CARD] if door.device.type != "cuda" else []), _table(("", ""), rows), "## What runs each operation", door.line]
    parts.append(_table(("operation", "runs in", *KINDS), [_operation(door, name) for name in OPERATIONS]))
    if used is not None:
        parts += ["## The last run here", used.line, *(f"- {note}" for note in used.notes)]
    if findings is not None:
        parts += ["## Self-test", summary(findings), _table(("what", "by", "result", "relative error"), [_finding(f) for f in findings])]
    return "\n\n".join(parts) + "\n"


def sentences(door: Door, findings: list[Finding] | None) -> tuple[str, ...]:
    """The report's gist, for the node."""
    told = [NO_CARD] if door.device.type != "cuda" else []
    told.append(door.line)
    if findings is not None:
        told.append(summary(findings))
        told += [f"{f.name} ({f.implementation}): {f.words}" for f in findings if f.passed is False]
    return tuple(told)


def summary(findings: list[Finding]) -> str:
    passed, failed = (sum(f.passed is value for f in findings) for value in (True, False))
    skipped, seconds = len(findings) - passed - failed, sum(f.seconds for f in findings)
    parts = [f"{passed} of {len(findings)} checks passed"]
    parts += [f"**{failed} failed**"] if failed else []
    parts += [f"{skipped} were not made"] if skipped else []
    return f"Self-test: {', '.join(parts)}, in {seconds:.1f} s."


# ---- the machine ---------------------------------------------------------


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper() if device.type == "cpu" else device.type


def _machine(device: torch.device) -> list[tuple[str, str]]:
    rows = [("PyTorch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")]
    if device.type != "cuda":
        return [("Device", device.type), *rows]
    found = torch.cuda.get_device_properties(device)
    return [
        ("Card", f"{found.name}, {found.total_memory / 1e9:.0f} GB, {found.multi_processor_count} multiprocessors"),
        ("Architecture", _architecture(found.major, found.minor)), ("Driver", driver_words()), *rows,
    ]


def _architecture(major: int, minor: int) -> str:
    own = f"sm_{major}{minor}"
    try:
        target = target_of(major, minor)
    except (CompilerMissing, CompileFailed):  # which has a row of its own
        return own
    return own if target in (own, None) else f"{own}, newer than the compiler: kernels are compiled for {target}, whose code it runs"


def driver_words() -> str:
    """The newest CUDA that the driver knows; torch has no other word for its version."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    if ask is None:
        return "not known: this PyTorch is built without CUDA"
    version = ask()
    return f"for CUDA up to {version // 1000}.{version % 1000 // 10}" if version else "none"


def _compiler(door: Door) -> list[tuple[str, str]]:
    try:
        major, minor = nvrtc.version()
        known = ", ".join(f"sm_{arch}" for arch in nvrtc.architectures())
    except (CompilerMissing, CompileFailed) as error:
        return [("Compiler", str(error))]
    return [("Compiler", f"NVRTC {major}.{minor}, for {known}")]


def _kept(folder: Path) -> list[tuple[str, str]]:
    try:
        sizes = [path.stat().st_size for path in folder.glob("*.kernel")]
    except OSError as error:
        return [("Compiled kernels", f"{folder} can't be read ({error})")]
    return [("Compiled kernels", f"{len(sizes)} in {folder}, {sum(sizes) / 1e6:.1f} MB" if sizes else f"none yet, kept in {folder}")]


# ---- tables --------------------------------------------------------------


def _operation(door: Door, name: str) -> tuple[str, ...]:
    chosen = door.choices[name]
    cells = []
    for kind in KINDS:
        if kind not in OPERATIONS[name].implementations:
            cells.append("–")
        elif kind == chosen.implementation:
            cells.append("**runs**")
        else:
            reason = door.why_not(name, kind)
            cells.append(f"can't: {reason}" if reason else f"can; '{door.setting}' doesn't ask for it")
    return f"`{name}`", chosen.implementation, *cells


def _finding(finding: Finding) -> tuple[str, ...]:
    result = {True: "right", False: "**WRONG**", None: "not tested"}[finding.passed]
    error = "" if finding.error is None else f"{finding.error:.1e}"
    return finding.name, finding.implementation, f"{result}: {finding.words}" if finding.words else result, error


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines)
