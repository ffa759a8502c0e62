"""A base model in fewer bits, on the canvas."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.progress import NodeProgress, check_interrupted
from ..bridge.quantize import quantize_base
from ..training.quantization.formats import FORMATS
from .schema import ADVANCED, schema
from .shown import shown


class QuantizeBase(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioQuantizeBase",
            display_name="Quantize Base",
            category="Pistachio/model",
            description="Stores the linear layers of a model's blocks in 8 or 4 bits, so that it trains and generates in half or a quarter of the memory. Gives another MODEL; the one given stays as it is.",
            search_aliases=["lora", "train", "quantize", "int8", "fp8", "nf4", "bitsandbytes", "low vram", "convrot"],
            inputs=[
                io.Model.Input("model", tooltip="A model that a loader gave, in 16 or 32 bits for the least error."),
                io.Combo.Input(
                    "format", options=list(FORMATS), default="int8-convrot", optional=True,
                    tooltip="int8-convrot: half of 16 bits with the least error, on any card. fp8-row: half, for cards that compute in fp8. nf4: about a quarter, with about ten times the error, by the package bitsandbytes.",
                ),
                io.String.Input("blocks", default="all", optional=True, tooltip="all, or the blocks to store so by their number: 0-18, 20. What stands outside of blocks (embeddings, the last layer) and all norms are always kept.", **ADVANCED),
                io.String.Input("keep", default="", optional=True, multiline=True, tooltip="Layers that stay as they are: regular expressions of their paths, one a line. The report names the layers with the largest errors.", **ADVANCED),
            ],
            outputs=[
                io.Model.Output("quantized", display_name="model", tooltip="For Train LoRA, KSampler and LoRA loaders, as any MODEL."),
                io.String.Output("report", display_name="report", tooltip="The bytes before and after, the relative errors of weights and outputs, the worst layers by name, and what was kept."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, format="int8-convrot", blocks="all", keep="") -> io.NodeOutput:
        node_id = cls.hidden.unique_id if cls.hidden else None
        progress = NodeProgress(node_id, unit="layers stored") if node_id else None
        made, report = quantize_base(model, format, blocks=blocks, keep=keep, progress=progress, check_interrupted=check_interrupted)
        text = report.text()
        return io.NodeOutput(made, text, ui=shown(sentences=tuple(text.splitlines())))
