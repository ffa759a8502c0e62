"""The end of the one form on the canvas: what the LoRA has learned, in a handful of scenes."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import folders
from ..bridge.grid import GridSettings
from ..bridge.progress import NodeProgress, check_interrupted
from ..bridge.sampling import SAMPLERS, SCHEDULERS
from ..bridge.scenes import scene_pairs
from .schema import ADVANCED, RunHandle, schema
from .shown import chosen_step, image_tensor, run_sentences, shown

SCENES = """close-up portrait, soft window light
full body, walking through a city street at noon
sitting in a cafe, warm evening light
on a beach at sunset, from the side
in a snowy forest, wearing a red coat
pencil drawing on white paper"""
NEGATIVE = "blurry, lowres, watermark, text"


class TestSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioTestSheet",
            display_name="Test Sheet",
            category="Pistachio/train",
            description="Draws a handful of scenes twice from the same noise, by the base and with the run's chosen LoRA, on one labelled sheet: is the character there, and does it still do as it is told?",
            search_aliases=["lora", "train", "kohya", "test lora", "contact sheet", "before and after", "compare with base", "kohya samples"],
            is_output_node=True,
            inputs=[
                RunHandle.Input("run", tooltip="From Train LoRA or Load Run."),
                io.Model.Input("model", tooltip="The base model, without the run's LoRA: the node puts it on."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input("scenes", default=SCENES, multiline=True, optional=True, tooltip="One scene a line, without the trigger word: the run's own is put before each."),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, optional=True, control_after_generate=False, tooltip="Of the first scene; the next ones count up. The base gets the same."),
                io.Int.Input("steps", default=20, min=1, max=1000, optional=True, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip="Guidance. 0: automatic by the kind of model.", **ADVANCED),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="euler", optional=True, tooltip="As on KSampler.", **ADVANCED),
                io.Combo.Input("scheduler", options=list(SCHEDULERS), default="normal", optional=True, tooltip="As on KSampler.", **ADVANCED),
                io.String.Input("negative_prompt", default=NEGATIVE, multiline=True, optional=True, tooltip="What the pictures should not show.", **ADVANCED),
                io.Int.Input("width", default=0, min=0, max=16384, step=8, optional=True, tooltip="Pixels. 0: as trained.", **ADVANCED),
                io.Int.Input("height", default=0, min=0, max=16384, step=8, optional=True, tooltip="Pixels. 0: as trained.", **ADVANCED),
            ],
            outputs=[io.Image.Output("sheet", display_name="image", tooltip="The sheet, for Save Image.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        # Another checkpoint may be the chosen one by now.
        return folders.loras_fingerprint()

    @classmethod
    def execute(
        cls, run, model, clip, vae, scenes=SCENES, seed=0, steps=20, cfg=0.0, sampler="euler", scheduler="normal", negative_prompt=NEGATIVE,
        width=0, height=0,
    ) -> io.NodeOutput:
        settings = GridSettings(
            prompts=tuple(line.strip() for line in scenes.splitlines() if line.strip()), negative_prompt=negative_prompt, seed=seed,
            num_steps=steps, cfg=cfg, sampler=sampler, scheduler=scheduler, width=width, height=height,
        )
        sheet, _ = scene_pairs(
            run, chosen_step(run), model, clip, vae, settings, progress=NodeProgress(cls.hidden.unique_id), check_interrupted=check_interrupted,
        )
        return io.NodeOutput(image_tensor(sheet), ui=shown(image=sheet, sentences=run_sentences(run)))
