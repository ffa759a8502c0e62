"""Objective settings on the canvas; every input is optional. Prior preservation stands on Train LoRA."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.config import DELTA_SCHEDULES, LOSSES, SHIFTS, TIMESTEP_DISTRIBUTIONS, WEIGHTINGS, ObjectiveConfig
from ..schema import ADVANCED, SETTINGS, Objective, default, schema


def _number(name: str, low: float, high: float, step: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default(ObjectiveConfig, name), optional=True, min=low, max=high, step=step, round=1e-6, tooltip=tooltip, **ADVANCED,
    )


def _choice(name: str, options: tuple[str, ...], tooltip: str, *, folded: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        name, options=list(options), default=default(ObjectiveConfig, name), optional=True, tooltip=tooltip, **(ADVANCED if folded else {}),
    )


class ObjectiveSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioObjectiveSettings",
            display_name="Objective Settings",
            category=SETTINGS,
            description="Which noise levels are trained, and how an error at each of them counts. Timestep Plot draws what a setting gives.",
            search_aliases=["lora", "train", "kohya", "timestep", "min snr", "huber", "noise offset", "shift", "logit normal", "debiased"],
            inputs=[
                _choice("timestep_distribution", TIMESTEP_DISTRIBUTIONS, "Which noise levels are trained. auto: logit-normal for Flux, SD3.5 and Wan, uniform for SD1.5 and SDXL."),
                _number("logit_mean", -5.0, 5.0, 0.1, "Of logit-normal: above 0 trains noisier levels, below 0 cleaner ones."),
                _number("logit_std", 0.01, 10.0, 0.1, "Of logit-normal: width around its mean."),
                _number("sigmoid_scale", 0.01, 10.0, 0.1, "Of sigmoid: width around the middle."),
                _number("mode_scale", -1.0, 1.75, 0.01, "Of mode: above 0 trains the middle levels more, below 0 both ends."),
                _choice("shift", SHIFTS, "Pushes flow models to noisier levels. model: by as much as the model does when it generates. given: by shift_value. resolution: more for larger pictures, as Flux does."),
                _number("shift_value", 0.01, 100.0, 0.1, "Of shift 'given': 1 is none, 3 is SD3's."),
                _number("min_timestep", 0.0, 1.0, 0.01, "Cleaner noise levels than this are never trained. Sigma for flow models, timestep / 1000 for the others."),
                _number("max_timestep", 0.0, 1.0, 0.01, "Noisier levels than this are never trained."),
                io.Boolean.Input(
                    "stratified", default=default(ObjectiveConfig, "stratified"), optional=True,
                    tooltip="Spread the noise levels of a step evenly over the distribution: a steadier gradient at batch 4 and more.", **ADVANCED,
                ),
                _choice("loss", LOSSES, "mse suits clean pictures. huber and smooth-l1 count large errors less: for sets with odd pictures among them.", folded=True),
                _number("loss_delta", 1e-4, 100.0, 0.01, "Of huber and smooth-l1: the size of an error from which it counts in proportion, not squared."),
                _choice("delta_schedule", DELTA_SCHEDULES, "How loss_delta falls towards the noisy levels.", folded=True),
                _choice("weighting", WEIGHTINGS, "How much each noise level counts. min-snr and debiased suit SD1.5 and SDXL; sigma-sqrt and cosmap are SD3's, for flow models.", folded=True),
                _number("min_snr_gamma", 0.1, 100.0, 0.5, "Of min-snr: 5 is usual; lower holds the clean levels back more."),
                _number("noise_offset", 0.0, 1.0, 0.01, "Lets SD1.5 and SDXL learn very dark and very bright pictures: 0.03 to 0.1. 0 switches it off."),
                _number("input_perturbation", 0.0, 1.0, 0.01, "Extra noise that the model sees and is not asked to remove: 0.1 is usual. 0 switches it off."),
            ],
            outputs=[Objective.Output("objective", display_name="objective", tooltip="For Train LoRA and Timestep Plot.")],
        )

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        return io.NodeOutput(ObjectiveConfig(**values))
