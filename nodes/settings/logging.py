"""Logging settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import WANDB_MODES, LoggingConfig
from ..schema import ADVANCED, SETTINGS, Logging, default, schema


class LoggingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoggingSettings",
            display_name="Logging Settings",
            category=SETTINGS,
            description="Sends the run's numbers and samples to Weights & Biases or TensorBoard too, and says how often the run is saved. The run folder has the numbers in any case.",
            search_aliases=["lora", "train", "kohya", "wandb", "weights and biases", "tensorboard"],
            inputs=[
                io.Combo.Input(
                    "wandb", options=list(WANDB_MODES), default=default(LoggingConfig, "wandb"), optional=True,
                    tooltip="offline writes into the run folder, for 'wandb sync' later. online needs 'wandb login' once in a terminal: keys never belong in a workflow.",
                ),
                io.String.Input("project", default=default(LoggingConfig, "project"), optional=True, tooltip="The project's name on Weights & Biases."),
                io.String.Input("entity", default=default(LoggingConfig, "entity"), optional=True, tooltip="User or team on Weights & Biases. Empty: your own.", **ADVANCED),
                io.String.Input("tags", default="", optional=True, tooltip="Tags of the run, separated by commas.", **ADVANCED),
                io.Boolean.Input("tensorboard", default=default(LoggingConfig, "tensorboard"), optional=True, tooltip="Event files in the run's folder 'tensorboard', for 'tensorboard --logdir output/pistachio'. Needs the package tensorboard."),
                io.Float.Input(
                    "save_state_minutes", default=default(LoggingConfig, "save_state_minutes"), optional=True, min=0.0, max=1440.0, step=1.0,
                    tooltip="The run is saved at every evaluation, on cancel, and when so many minutes have passed: a crash repeats no more than that. 0: at evaluations only. The numbers don't depend on it.", **ADVANCED,
                ),
            ],
            outputs=[Logging.Output("logging", display_name="logging", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, tags="", **values) -> io.NodeOutput:
        return io.NodeOutput(LoggingConfig(**values, tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip())))
