"""What a run may use of the machine, and what of it the plan may not choose by itself."""

from __future__ import annotations

from dataclasses import dataclass

from .check import check

AUTO = "auto"
KEEP_CHOICES = (AUTO, "everything", "products", "attention", "blocks")
BASE_FORMATS = (AUTO, "as-loaded", "fp8-row", "int8-convrot", "nf4")
PLACES = (AUTO, "device", "cpu")
ATTENTIONS = (AUTO, "cudnn", "flash", "flash-attn", "efficient", "xformers", "math")
GRAPHS = (AUTO, "on", "off")
COMPILES = ("off", "blocks")
BATCHES = ("as-set", "effective")
NODE = "in Memory Settings"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """Not part of a run's identity: what is learned is the same, but for rounding and the base's format."""

    limit_gb: float = 0.0  # of the device's memory, in 10^9 bytes; 0 asks the card
    keep: str = AUTO  # what each block keeps for its backward
    keep_in_ram: bool = False  # what blocks keep waits in pinned memory of the computer
    blocks_streamed: int = -1  # blocks whose weights stay in the computer's memory; -1 is automatic
    base_format: str = AUTO  # auto: as loaded, unless nothing else fits
    optimizer_state: str = AUTO
    weight_average: str = AUTO
    attention: str = AUTO
    cuda_graph: str = AUTO
    compile: str = "off"
    kernels: str = AUTO  # what runs a step's operations: "auto", "torch", "library", "cuda", or "operation=kind,..." (docs/kernels.md)
    batch: str = "as-set"  # effective: batch size and accumulation may change, their product not

    def __post_init__(self):
        from ..kernels.door import parse_setting  # which needs none of the configuration

        parse_setting(self.kernels)
        check(self.limit_gb >= 0, f"The memory limit is {self.limit_gb} GB. Set it to 0 (ask the card) or above {NODE}.")
        check(self.blocks_streamed >= -1, f"{self.blocks_streamed} blocks are to be streamed. Set -1 (automatic), 0 (none) or more {NODE}.")
        for name, value, choices in (
            ("keep", self.keep, KEEP_CHOICES), ("base_format", self.base_format, BASE_FORMATS), ("optimizer_state", self.optimizer_state, PLACES),
            ("weight_average", self.weight_average, PLACES), ("attention", self.attention, ATTENTIONS), ("cuda_graph", self.cuda_graph, GRAPHS),
            ("compile", self.compile, COMPILES), ("batch", self.batch, BATCHES),
        ):
            check(value in choices, f"{name} is '{value}'. Choose one of {', '.join(choices)} {NODE}.")
