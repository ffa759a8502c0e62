"""What a run takes of memory while it trains, beside what its plan predicted. Reads counters; decides nothing.

On a card it is what torch has allocated there, which is what a plan predicts. Elsewhere it is the whole process, of which
a plan's tensors are only a part.
"""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import psutil
import torch

from ..training.run import RunFolder
from .planning import device_name


class LiveMemory:
    def __init__(self, run_folder: Path):
        self.folder = RunFolder(run_folder)
        self.device = comfy.model_management.get_torch_device()
        self.process = psutil.Process()
        self.total_bytes = self._total_bytes()
        self.peak_bytes = 0
        self.plan_stamp, self.planned_bytes = None, None

    def now(self) -> dict:
        """`used_bytes` and its `peak_bytes` of `total_bytes`; `planned_bytes` is null where nothing was planned for this device."""
        if self.device.type == "cuda":
            used, self.peak_bytes = torch.cuda.memory_allocated(self.device), torch.cuda.max_memory_allocated(self.device)
        else:
            used = self.process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, used)
        return {
            "place": "card" if self.device.type == "cuda" else "process", "used_bytes": used, "peak_bytes": self.peak_bytes,
            "total_bytes": self.total_bytes, "planned_bytes": self._planned(),
        }

    def _total_bytes(self) -> int:
        return torch.cuda.get_device_properties(self.device).total_memory if self.device.type == "cuda" else psutil.virtual_memory().total

    def _planned(self) -> int | None:
        """Read again when the file changes: an out-of-memory at the first step leads to a leaner plan."""
        try:
            stamp = (self.folder.path / "plan.json").stat().st_mtime_ns
        except OSError:
            stamp = None
        if stamp != self.plan_stamp:
            self.plan_stamp = stamp
            plan = self.folder.plan()
            phases = plan["plan"].get("phases") if plan and plan["situation"]["device"] == device_name(self.device) else None
            self.planned_bytes = max(phases.values()) if phases else None
        return self.planned_bytes
