"""Evaluation settings on the canvas; every input is optional."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import EvaluationConfig
from ...training.config.evaluation import BUDGETS, MAX_FOLDS
from ..schema import ADVANCED, SETTINGS, Evaluation, default, schema


class EvaluationSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioEvaluationSettings",
            display_name="Evaluation Settings",
            category=SETTINGS,
            description="How often the loss on the held-out pictures is measured, and when the run may stop by itself. Each evaluation is also a checkpoint.",
            search_aliases=["lora", "train", "kohya", "validation loss", "early stopping", "checkpoints", "save every"],
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
                io.Int.Input(
                    "folds", default=default(EvaluationConfig, "folds"), optional=True, min=0, max=MAX_FOLDS,
                    tooltip="For few pictures. K: as many runs that each hold out other pictures, then one on all pictures for the number of steps that was best on average; it takes K times as long. 0: off. 5 is usual.",
                ),
                io.Boolean.Input(
                    "refit", default=default(EvaluationConfig, "refit"), optional=True,
                    tooltip="After the choice, train again on all pictures for the chosen number of steps. That result is not measured. With continue_run on Train LoRA: by that finished run's choice, as a new run.",
                ),
                io.Combo.Input(
                    "budget", options=list(BUDGETS), default=default(EvaluationConfig, "budget"), optional=True,
                    tooltip="What the 10 % of the run for evaluations are counted in. forward passes: the same plan on every machine. seconds: measured over the first steps of this run.", **ADVANCED,
                ),
            ],
            outputs=[Evaluation.Output("evaluation", display_name="evaluation", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(EvaluationConfig(**values))
