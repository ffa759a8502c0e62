"""Settings on the canvas: each node fills one dataclass of `training.config`, and every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.config import (
    OPTIMIZERS, SCHEDULES, TARGET_PRESETS, WANDB_MODES, AdapterConfig, EvaluationConfig, LoggingConfig, OptimizerConfig,
)
from .schema import ADVANCED, Adapter, Evaluation, Logging, Optimizer, default, schema

CATEGORY = "Pistachio/settings"


class AdapterSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioAdapterSettings",
            display_name="Adapter Settings",
            category=CATEGORY,
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


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioOptimizerSettings",
            display_name="Optimizer Settings",
            category=CATEGORY,
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


class EvaluationSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioEvaluationSettings",
            display_name="Evaluation Settings",
            category=CATEGORY,
            description="How often the loss on the held-out pictures is measured, and when the run may stop by itself. Each evaluation is also a checkpoint.",
            search_aliases=["validation loss", "early stopping", "checkpoints", "save every"],
            inputs=[
                io.Int.Input(
                    "num_evaluations", default=default(EvaluationConfig, "num_evaluations"), optional=True, min=1, max=200,
                    tooltip="Evaluations over the run, each with a saved checkpoint. More find the best step more finely and take longer.",
                ),
                io.Int.Input(
                    "timesteps_per_image", default=default(EvaluationConfig, "timesteps_per_image"), optional=True, min=1, max=64,
                    tooltip="Noise levels at which each held-out picture is measured. More give a steadier number.", **ADVANCED,
                ),
                io.Boolean.Input("early_stop", default=default(EvaluationConfig, "early_stop"), optional=True, tooltip="End the run when the held-out loss has stopped falling."),
                io.Int.Input("patience", default=default(EvaluationConfig, "patience"), optional=True, min=1, max=200, tooltip="Evaluations without a new best before the run ends.", **ADVANCED),
                io.Int.Input("min_evaluations", default=default(EvaluationConfig, "min_evaluations"), optional=True, min=1, max=200, tooltip="Never end before this many evaluations.", **ADVANCED),
            ],
            outputs=[Evaluation.Output("evaluation", display_name="evaluation", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(EvaluationConfig(**values))


class LoggingSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoggingSettings",
            display_name="Logging Settings",
            category=CATEGORY,
            description="Sends the run's numbers to Weights & Biases too. The run folder has them in any case.",
            search_aliases=["wandb", "weights and biases", "tensorboard"],
            inputs=[
                io.Combo.Input(
                    "wandb", options=list(WANDB_MODES), default=default(LoggingConfig, "wandb"), optional=True,
                    tooltip="offline writes into the run folder, for 'wandb sync' later. online needs 'wandb login' once in a terminal: keys never belong in a workflow.",
                ),
                io.String.Input("project", default=default(LoggingConfig, "project"), optional=True, tooltip="The project's name on Weights & Biases."),
                io.String.Input("entity", default=default(LoggingConfig, "entity"), optional=True, tooltip="User or team on Weights & Biases. Empty: your own.", **ADVANCED),
                io.String.Input("tags", default="", optional=True, tooltip="Tags of the run, separated by commas.", **ADVANCED),
            ],
            outputs=[Logging.Output("logging", display_name="logging", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, tags="", **values) -> io.NodeOutput:
        return io.NodeOutput(LoggingConfig(**values, tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip())))
