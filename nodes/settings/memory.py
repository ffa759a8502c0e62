"""Memory settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import replace
from ...training.config.memory import ATTENTIONS, BASE_FORMATS, BATCHES, COMPILES, GRAPHS, KEEP_CHOICES, PLACES, MemoryConfig
from ...training.memory.cards import ASK_THE_CARD, PRESETS, preset
from ..schema import ADVANCED, SETTINGS, Memory, default, schema


class MemorySettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioMemorySettings",
            display_name="Memory Settings",
            category=SETTINGS,
            description="What a run may use of the card, and what of its plan you want to set yourself. Not connected, a run on a card plans by itself; on a CPU nothing is planned.",
            search_aliases=["lora", "train", "kohya", "vram", "low vram", "gradient checkpointing", "blocks to swap", "offload", "out of memory"],
            inputs=[
                io.Combo.Input("card", options=list(PRESETS), default=ASK_THE_CARD, optional=True, tooltip="Plan for a card of this size. 'ask the card' takes what is free on the one that is there. A size sets limit_gb and batch; what you set below yourself counts."),
                io.Float.Input("limit_gb", default=default(MemoryConfig, "limit_gb"), optional=True, min=0.0, max=1024.0, step=0.1, tooltip="Most of the card's memory that the run may use, in GB (10^9 bytes). 0: what is free."),
                io.Combo.Input("keep", options=list(KEEP_CHOICES), default=default(MemoryConfig, "keep"), optional=True, tooltip="What each block keeps for its backward. everything: the quickest and the largest. blocks: its inputs alone, and it runs again. attention and products lie between. auto: the quickest that fits."),
                io.Boolean.Input("keep_in_ram", default=default(MemoryConfig, "keep_in_ram"), optional=True, tooltip="What blocks keep waits in the computer's memory, copied beside the computation.", **ADVANCED),
                io.Int.Input("blocks_streamed", default=default(MemoryConfig, "blocks_streamed"), optional=True, min=-1, max=1000, tooltip="Blocks whose weights wait in the computer's memory and pass through the card. -1: as few as fit; 0: none.", **ADVANCED),
                io.Combo.Input("base_format", options=list(BASE_FORMATS), default=default(MemoryConfig, "base_format"), optional=True, tooltip="How the base's weights lie on the card. auto: as loaded, and in 8 or 4 bits only where nothing else fits.", **ADVANCED),
                io.Combo.Input("optimizer_state", options=list(PLACES), default=default(MemoryConfig, "optimizer_state"), optional=True, tooltip="Where the optimiser's state lives. auto: on the card while it fits.", **ADVANCED),
                io.Combo.Input("weight_average", options=list(PLACES), default=default(MemoryConfig, "weight_average"), optional=True, tooltip="Where the averaged weights live. auto: on the card while they fit.", **ADVANCED),
                io.Combo.Input("attention", options=list(ATTENTIONS), default=default(MemoryConfig, "attention"), optional=True, tooltip="Which implementation of attention. auto: the fastest of a short race at the start. A CPU has one.", **ADVANCED),
                io.Combo.Input("cuda_graph", options=list(GRAPHS), default=default(MemoryConfig, "cuda_graph"), optional=True, tooltip="Record the step once and play it again: quicker for SD1.5, SDXL and small pictures on an NVIDIA card.", **ADVANCED),
                io.Combo.Input("compile", options=list(COMPILES), default=default(MemoryConfig, "compile"), optional=True, tooltip="blocks: compile the model's blocks with torch.compile. Takes minutes at the start, and needs a compiler that Windows lacks as it comes.", **ADVANCED),
                io.Combo.Input("batch", options=list(BATCHES), default=default(MemoryConfig, "batch"), optional=True, tooltip="as-set: batch size and accumulation as on Train LoRA. effective: the plan may split their product anew, which learns the same.", **ADVANCED),
                io.String.Input("kernels", default=default(MemoryConfig, "kernels"), optional=True, tooltip="What runs a step's operations: auto, torch, library or cuda, or 'operation=kind' pairs with commas (docs/kernels.md).", **ADVANCED),
            ],
            outputs=[Memory.Output("memory", display_name="memory", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, card=ASK_THE_CARD, limit_gb=0.0, batch=default(MemoryConfig, "batch"), **values) -> io.NodeOutput:
        begun = preset(card)
        own = {"limit_gb": limit_gb or begun.limit_gb, "batch": begun.batch if batch == default(MemoryConfig, "batch") else batch}
        return io.NodeOutput(replace(begun, **own, **values))
