"""Adapter settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.lora_import import start_file, with_start_hash
from ...training.config import ADAPTER_KINDS, TARGET_PRESETS, AdapterConfig
from ..schema import ADVANCED, SETTINGS, Adapter, default, problem, schema

EXPRESSIONS = ("include", "exclude", "rank_pattern")


class AdapterSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioAdapterSettings",
            display_name="Adapter Settings",
            category=SETTINGS,
            description="The type and size of the LoRA, which layers it changes, and what it starts from.",
            search_aliases=["lora", "train", "kohya", "lora rank", "network dim", "alpha", "target modules", "dora", "lokr", "loha", "lycoris", "rslora", "dropout", "resume from lora"],
            inputs=[
                io.Combo.Input(
                    "kind", options=list(ADAPTER_KINDS), default=default(AdapterConfig, "kind"), optional=True,
                    tooltip="lora: the usual one. dora: also learns each output's size, slower. lokr, loha: LyCORIS types with small files. All load in the stock LoRA loader.",
                ),
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
                    tooltip="Which layers: attention alone (smallest), the blocks' attention and MLP, all linear layers, or the convolutions of SD1.5 and SDXL too.",
                ),
                io.Boolean.Input(
                    "rank_stabilised", default=default(AdapterConfig, "rank_stabilised"), optional=True,
                    tooltip="rsLoRA: scale by alpha / sqrt(rank), so that a higher rank doesn't learn more slowly.", **ADVANCED,
                ),
                io.Float.Input(
                    "dropout", default=default(AdapterConfig, "dropout"), optional=True, min=0.0, max=0.99, step=0.05, round=1e-4,
                    tooltip="Share of the adapter's input values that each training step leaves out, against memorising. Off in evaluation. 0 is off.", **ADVANCED,
                ),
                io.Int.Input(
                    "lokr_factor", default=default(AdapterConfig, "lokr_factor"), optional=True, min=-1, max=4096,
                    tooltip="Of lokr: size of the smaller factor at most. -1: the most even split, the smallest file; 4 to 16: larger files that learn more. Not 0.", **ADVANCED,
                ),
                io.Int.Input(
                    "conv_rank", default=default(AdapterConfig, "conv_rank"), optional=True, min=0, max=512,
                    tooltip="Rank of convolutions larger than 1 x 1, with targets all-linear+conv. 0: as rank.", **ADVANCED,
                ),
                io.Float.Input(
                    "conv_alpha", default=default(AdapterConfig, "conv_alpha"), optional=True, min=0.0, max=1024.0, step=0.5,
                    tooltip="Alpha of those convolutions. 0: as alpha.", **ADVANCED,
                ),
                io.String.Input(
                    "include", default=default(AdapterConfig, "include"), optional=True, multiline=True, placeholder=r"blocks\.(1[0-9])\.",
                    tooltip="Regular expressions over layer paths, one a line: of the targets, only layers that one of them finds. Empty: all.", **ADVANCED,
                ),
                io.String.Input(
                    "exclude", default=default(AdapterConfig, "exclude"), optional=True, multiline=True, placeholder="cross_attn",
                    tooltip="Regular expressions over layer paths, one a line: layers that stay as they are.", **ADVANCED,
                ),
                io.String.Input(
                    "rank_pattern", default=default(AdapterConfig, "rank_pattern"), optional=True, multiline=True, placeholder=r"ffn\.=32",
                    tooltip="A regular expression, =, and the rank of the layers it finds; one a line, the first that finds a layer counts. Alpha stays.", **ADVANCED,
                ),
                io.String.Input(
                    "start_from", default=default(AdapterConfig, "start_from"), optional=True, placeholder="my_character.safetensors",
                    tooltip="A LoRA in models/loras to go on from, of any trainer and the same kind. Empty: from nothing. The held-out comparison stays with the base model.", **ADVANCED,
                ),
            ],
            outputs=[Adapter.Output("adapter", display_name="adapter", tooltip="For Train LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, include=None, exclude=None, rank_pattern=None, start_from=None):
        for name, value in zip(EXPRESSIONS, (include, exclude, rank_pattern)):
            told = problem(lambda text, name=name: AdapterConfig(**{name: text}), value)
            if told is not True:
                return told
        return problem(start_file, (start_from or "").strip() or None)

    @classmethod
    def fingerprint_inputs(cls, start_from=None, **inputs):
        # Another file under the same name is another start.
        return with_start_hash(AdapterConfig(start_from=start_from or "")).start_from_hash

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(AdapterConfig(**values))
