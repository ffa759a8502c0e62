"""Samples while training, on the canvas."""

from __future__ import annotations

from comfy_api.latest import io

from ...bridge.sampling import SAMPLERS, SCHEDULERS, SampleSettings
from ...training.config.samples import SampleConfig
from ..schema import ADVANCED, SETTINGS, Samples, default, schema


class SampleSettingsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioSampleSettings",
            display_name="Sample Settings",
            category=SETTINGS,
            description="Pictures of the model in training, with the trigger word and without, from fixed seeds. They show on Train LoRA and lie in the run folder; the training itself is the same with and without them.",
            search_aliases=["lora", "train", "kohya", "sample prompts", "preview", "validation images", "sample every"],
            inputs=[
                io.Clip.Input("clip", tooltip="The same text encoder as on Encode Dataset. It encodes the prompts once, before training."),
                io.Vae.Input("vae", tooltip="The same VAE as on Encode Dataset. It decodes the samples."),
                io.String.Input(
                    "prompts", default="", multiline=True, optional=True, placeholder="one a line; empty: captions of held-out pictures",
                    tooltip="One a line, at most 16. [trigger] stands for the trigger word. Empty: the captions of the first two held-out pictures.",
                ),
                io.String.Input("negative_prompt", default=default(SampleConfig, "negative_prompt"), multiline=True, optional=True, tooltip="For every prompt. Unused where cfg is 1."),
                io.Boolean.Input("without_trigger", default=default(SampleConfig, "without_trigger"), optional=True, tooltip="Each prompt with the trigger word is also sampled without it, from the same noise: the character should be missing there."),
                io.Int.Input("every_evaluations", default=default(SampleConfig, "every_evaluations"), optional=True, min=1, max=200, tooltip="1: at every evaluation; 2: at every second one. Always before training and at the last. Each time costs as much as generating the pictures."),
                io.Int.Input("width", default=default(SampleConfig, "width"), optional=True, min=0, max=8192, step=8, tooltip="Pixels. 0: as the first picture is trained."),
                io.Int.Input("height", default=default(SampleConfig, "height"), optional=True, min=0, max=8192, step=8, tooltip="Pixels. 0: as the first picture is trained."),
                io.Int.Input("steps", default=default(SampleConfig, "num_steps"), optional=True, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=default(SampleConfig, "cfg"), optional=True, min=0.0, max=100.0, step=0.1, tooltip="Guidance. 0: automatic, 1 for models with built-in guidance (Flux dev), 4.5 for other flow models, 7 for SD1.5 and SDXL."),
                io.Combo.Input("sampler", options=list(SAMPLERS), default=default(SampleConfig, "sampler"), optional=True, tooltip="As on KSampler."),
                io.Combo.Input("scheduler", options=list(SCHEDULERS), default=default(SampleConfig, "scheduler"), optional=True, tooltip="As on KSampler."),
                io.Int.Input("seed", default=default(SampleConfig, "seed"), optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Of the first prompt; the next has the next. The same at every step, so that only the training shows.", **ADVANCED),
            ],
            outputs=[Samples.Output("samples", display_name="samples", tooltip="For Train LoRA.")],
        )

    @classmethod
    def execute(cls, clip, vae, prompts="", steps=default(SampleConfig, "num_steps"), **values) -> io.NodeOutput:
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        return io.NodeOutput(SampleSettings(config=SampleConfig(prompts=lines, num_steps=steps, **values), clip=clip, vae=vae))
