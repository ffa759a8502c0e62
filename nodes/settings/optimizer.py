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
            search_aliases=["lora", "train", "kohya", "learning rate", "adamw", "8bit", "prodigy", "adafactor", "lion", "came", "schedule free", "scheduler", "warmup", "ema"],
            inputs=[
                io.Combo.Input("name", options=list(OPTIMIZERS), default=default(OptimizerConfig, "name"), optional=True, tooltip="The optimiser. prodigy finds the learning rate itself (set it to 1); schedule-free wants schedule constant; library takes the class named below.", **ADVANCED),
                io.Float.Input(
                    "learning_rate", default=default(OptimizerConfig, "learning_rate"), optional=True, min=1e-7, max=10.0, step=1e-6, round=1e-8,
                    tooltip="Size of a step: 1e-4 is usual; 1 for prodigy. Too high gives noise or NaN; too low learns nothing in the given steps.",
                ),
                io.Combo.Input("schedule", options=list(SCHEDULES), default=default(OptimizerConfig, "schedule"), optional=True, tooltip="How the learning rate falls over the run. cosine, linear, polynomial and rex reach zero at its end; cosine-with-restarts rises again num_cycles - 1 times; constant stays."),
                io.Int.Input("warmup_steps", default=default(OptimizerConfig, "warmup_steps"), optional=True, min=0, max=100_000, tooltip="Steps in which the learning rate rises from zero."),
                io.Float.Input("weight_decay", default=default(OptimizerConfig, "weight_decay"), optional=True, min=0.0, max=1.0, step=0.001, round=1e-6, tooltip="Pulls the LoRA's weights towards zero.", **ADVANCED),
                io.Float.Input("beta1", default=default(OptimizerConfig, "beta1"), optional=True, min=0.0, max=0.9999, step=0.001, round=1e-6, tooltip="Memory of the gradient, of the adamw family, prodigy and schedule-free.", **ADVANCED),
                io.Float.Input("beta2", default=default(OptimizerConfig, "beta2"), optional=True, min=0.0, max=0.99999, step=0.001, round=1e-6, tooltip="Memory of the gradient's size, of the same optimisers.", **ADVANCED),
                io.Float.Input("epsilon", default=default(OptimizerConfig, "epsilon"), optional=True, min=1e-16, max=1e-2, step=1e-8, round=1e-16, tooltip="Guard against division by zero, of the same optimisers.", **ADVANCED),
                io.Float.Input("clip_norm", default=default(OptimizerConfig, "clip_norm"), optional=True, min=0.0, max=1000.0, step=0.1, tooltip="Largest norm of the gradient; longer ones are shortened. 0 switches it off.", **ADVANCED),
                io.Float.Input(
                    "ema_decay", default=default(OptimizerConfig, "ema_decay"), optional=True, min=0.0, max=0.9999, step=0.001, round=1e-6,
                    tooltip="The saved weights are a running average over about 1 / (1 - decay) steps. 0: automatic, a twelfth of the run.", **ADVANCED,
                ),
                io.String.Input("library", default=default(OptimizerConfig, "library"), optional=True, placeholder="torch.optim.RAdam", tooltip="Of name 'library': an optimiser of an installed package, e.g. torch.optim.RAdam or pytorch_optimizer.Lamb.", **ADVANCED),
                io.String.Input("optimizer_args", default=default(OptimizerConfig, "optimizer_args"), optional=True, placeholder="betas=0.9,0.99 d_coef=1", tooltip="Further settings of the optimiser, key=value, separated by spaces. An error lists those it has.", **ADVANCED),
                io.Int.Input("num_cycles", default=default(OptimizerConfig, "num_cycles"), optional=True, min=1, max=1000, tooltip="Of cosine-with-restarts: how many times it falls.", **ADVANCED),
                io.Float.Input("power", default=default(OptimizerConfig, "power"), optional=True, min=0.01, max=20.0, step=0.1, round=1e-6, tooltip="Of polynomial: 1 falls in a straight line, more falls sooner.", **ADVANCED),
                io.Float.Input("min_lr_ratio", default=default(OptimizerConfig, "min_lr_ratio"), optional=True, min=0.0, max=1.0, step=0.01, round=1e-6, tooltip="The schedule ends at this share of the learning rate, not at zero.", **ADVANCED),
                io.Boolean.Input("decay_magnitudes", default=default(OptimizerConfig, "decay_magnitudes"), optional=True, tooltip="Weight decay for vectors too, such as DoRA's magnitudes. Off: for matrices alone.", **ADVANCED),
                io.Float.Input("lora_plus_ratio", default=default(OptimizerConfig, "lora_plus_ratio"), optional=True, min=0.01, max=100.0, step=1.0, round=1e-6, tooltip="LoRA+: learning rate of a LoRA's B matrices over that of its A matrices. 1 is off; 4 to 16 learns faster.", **ADVANCED),
                io.Float.Input("text_encoder_lr_ratio", default=default(OptimizerConfig, "text_encoder_lr_ratio"), optional=True, min=0.0, max=10.0, step=0.1, round=1e-6, tooltip="The text encoder's learning rate over the model's, when a CLIP is connected to Train LoRA. It overfits sooner, so half is usual.", **ADVANCED),
            ],
            outputs=[Optimizer.Output("optimizer", display_name="optimizer", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(OptimizerConfig(**values))
