"""Optimizer settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import OPTIMIZERS, SCHEDULES, OptimizerConfig
from ..schema import ADVANCED, SETTINGS, Optimizer, default, schema


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioOptimizerSettings",
            display_name="Optimizer Settings",
            category=SETTINGS,
            description="How fast the LoRA learns and how the learning rate changes over the run.",
            search_aliases=["learning rate", "adamw", "scheduler", "warmup", "ema"],
            inputs=[
                io.Combo.Input("name", options=list(OPTIMIZERS), default=default(OptimizerConfig, "name"), optional=True, tooltip="The optimiser.", **ADVANCED),
                io.Float.Input(
                    "learning_rate", default=default(OptimizerConfig, "learning_rate"), optional=True, min=1e-7, max=1.0, step=1e-6, round=1e-8,
                    tooltip="Size of a step: 1e-4 is usual. Too high gives noise or NaN; too low learns nothing in the given steps.",
                ),
                io.Combo.Input("schedule", options=list(SCHEDULES), default=default(OptimizerConfig, "schedule"), optional=True, tooltip="cosine falls to zero by the end of the run; constant stays."),
                io.Int.Input("warmup_steps", default=default(OptimizerConfig, "warmup_steps"), optional=True, min=0, max=100_000, tooltip="Steps in which the learning rate rises from zero."),
                io.Float.Input("weight_decay", default=default(OptimizerConfig, "weight_decay"), optional=True, min=0.0, max=1.0, step=0.001, round=1e-6, tooltip="Pulls the LoRA's weights towards zero.", **ADVANCED),
                io.Float.Input("beta1", default=default(OptimizerConfig, "beta1"), optional=True, min=0.0, max=0.9999, step=0.001, round=1e-6, tooltip="AdamW's memory of the gradient.", **ADVANCED),
                io.Float.Input("beta2", default=default(OptimizerConfig, "beta2"), optional=True, min=0.0, max=0.99999, step=0.001, round=1e-6, tooltip="AdamW's memory of the gradient's size.", **ADVANCED),
                io.Float.Input("epsilon", default=default(OptimizerConfig, "epsilon"), optional=True, min=1e-16, max=1e-2, step=1e-8, round=1e-16, tooltip="AdamW's guard against division by zero.", **ADVANCED),
                io.Float.Input("clip_norm", default=default(OptimizerConfig, "clip_norm"), optional=True, min=0.0, max=1000.0, step=0.1, tooltip="Largest norm of the gradient; longer ones are shortened. 0 switches it off.", **ADVANCED),
                io.Float.Input(
                    "ema_decay", default=default(OptimizerConfig, "ema_decay"), optional=True, min=0.0, max=0.9999, step=0.001, round=1e-6,
                    tooltip="The saved weights are a running average over about 1 / (1 - decay) steps. 0: automatic, a twelfth of the run.", **ADVANCED,
                ),
            ],
            outputs=[Optimizer.Output("optimizer", display_name="optimizer", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(OptimizerConfig(**values))
