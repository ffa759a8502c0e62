"""Adapter settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import TARGET_PRESETS, AdapterConfig
from ..schema import ADVANCED, SETTINGS, Adapter, default, schema


class AdapterSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioAdapterSettings",
            display_name="Adapter Settings",
            category=SETTINGS,
            description="How large the LoRA is and which layers it changes.",
            search_aliases=["lora rank", "network dim", "alpha", "target modules"],
            inputs=[
                io.Combo.Input("kind", options=["lora"], default="lora", optional=True, tooltip="Type of adapter.", **ADVANCED),
                io.Int.Input(
                    "rank", default=default(AdapterConfig, "rank"), optional=True, min=1, max=512,
                    tooltip="Capacity. 8 to 32 is enough for one character; more makes a larger file that memorises sooner.",
                ),
                io.Float.Input(
                    "alpha", default=default(AdapterConfig, "alpha"), optional=True, min=0.1, max=1024.0, step=0.5,
                    tooltip="The LoRA's update is scaled by alpha / rank. Equal to the rank is usual; half of it halves the effect of the learning rate.",
                ),
                io.Combo.Input(
                    "targets", options=list(TARGET_PRESETS), default=default(AdapterConfig, "targets"), optional=True,
                    tooltip="Which layers: attention alone (smallest), all linear layers, or the convolutions of SD1.5 and SDXL too.",
                ),
            ],
            outputs=[Adapter.Output("adapter", display_name="adapter", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(AdapterConfig(**values))
