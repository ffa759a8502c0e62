"""The kernels' report for the device that the host trains on: asks, tests if wanted, and can be cancelled."""

from __future__ import annotations

from typing import Callable

import comfy.model_management
import torch

from ..training.kernels.door import Door, opened
from ..training.kernels.report import markdown, sentences
from ..training.kernels.selftest import Finding, run


def report_kernels(
    setting: str, *, self_test: bool, limit_seconds: float, progress: Callable[[int, int], None] | None = None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> tuple[str, tuple[str, ...]]:
    """(Markdown, its gist in sentences). PistachioError for a setting that there is not. A run's own choices stay as they are."""
    device = comfy.model_management.get_torch_device()
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    asked, used = Door(setting, device), opened(device)
    findings: list[Finding] | None = None
    if self_test:

        def told(done: int, total: int) -> None:
            check_interrupted()
            if progress is not None:
                progress(done, total)

        # All that could run, not what the setting chooses.
        findings = run(Door("cuda", device), limit_seconds=limit_seconds, told=told)
    return markdown(asked, findings, used=used), sentences(asked, findings)
