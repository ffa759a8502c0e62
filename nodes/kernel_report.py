"""Which kernels run on this machine and why, and whether they are right here."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.kernel_report import report_kernels
from ..bridge.progress import NodeProgress, check_interrupted
from ..training.config.memory import MemoryConfig
from ..training.kernels.door import parse_setting
from .schema import ADVANCED, default, problem, schema
from .shown import shown

LIMIT_SECONDS = 30


class KernelReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioKernelReport",
            display_name="Kernel Report",
            category="Pistachio/train",
            description="Shows what runs each operation of a training step on this machine and why: CUDA kernel, library or PyTorch. Tests each of them in at most half a minute. Trains nothing.",
            search_aliases=["train", "cuda", "kernel", "self test", "gpu", "nvrtc", "driver", "compute capability"],
            is_output_node=True,
            inputs=[
                io.Boolean.Input("self_test", default=True, optional=True, tooltip="Call every implementation that this machine can run on small numbers and compare it with PyTorch in float64. The first time kernels are compiled, which takes seconds."),
                io.String.Input("kernels", default=default(MemoryConfig, "kernels"), optional=True, tooltip="The setting to explain, as on Memory Settings: auto, torch, library or cuda, or 'operation=kind' pairs with commas."),
                io.Int.Input("limit_seconds", default=LIMIT_SECONDS, optional=True, min=1, max=600, tooltip="The self-test begins no further check after so many seconds; the report says which were not made.", **ADVANCED),
            ],
            outputs=[io.String.Output("report", display_name="report", tooltip="Markdown: the card, its driver and compiler, what runs each operation and why not another, and the self-test.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, kernels=None) -> bool | str:
        return problem(parse_setting, kernels)

    @classmethod
    def execute(cls, self_test=True, kernels=default(MemoryConfig, "kernels"), limit_seconds=LIMIT_SECONDS) -> io.NodeOutput:
        node_id = cls.hidden.unique_id if cls.hidden else None
        progress = NodeProgress(node_id, unit="checks") if node_id and self_test else None
        text, gist = report_kernels(kernels, self_test=self_test, limit_seconds=limit_seconds, progress=progress, check_interrupted=check_interrupted)
        return io.NodeOutput(text, ui=shown(sentences=gist))
