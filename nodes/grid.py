"""Candidates of a run side by side on the canvas: the loss chooses a checkpoint, a person looks at it."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import folders
from ..bridge.grid import GridSettings, checkpoint_grid
from ..bridge.progress import NodeProgress, check_interrupted
from ..bridge.sampling import SAMPLERS, SCHEDULERS
from .schema import ADVANCED, RunHandle, schema
from .shown import image_tensor, run_sentences, shown


class CheckpointGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCheckpointGrid",
            display_name="Checkpoint Grid",
            category="Pistachio/train",
            description="Draws the same prompts and seeds with the chosen checkpoint, both ends of the tie and the last one, side by side. Best loss is not always best looks: this is how to check.",
            search_aliases=["lora", "train", "kohya", "compare checkpoints", "xy plot", "contact sheet", "lora grid"],
            is_output_node=True,
            inputs=[
                RunHandle.Input("run", tooltip="From Train LoRA or Load Run."),
                io.Model.Input("model", tooltip="The base model, without the run's LoRA: each checkpoint is put on it in turn."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.String.Input("prompts", default="", multiline=True, optional=True, placeholder="empty: captions of held-out pictures", tooltip="One prompt a line, trigger word included. Empty: the captions of two held-out pictures."),
                io.Int.Input("num_seeds", default=2, min=1, max=16, optional=True, tooltip="Pictures for each prompt and checkpoint."),
                io.Int.Input("seed", default=0, min=0, max=2**53 - 1, optional=True, control_after_generate=False, tooltip="Of the first picture of each prompt; the next ones count up. The same for every checkpoint."),
                io.Boolean.Input("with_base", default=False, optional=True, tooltip="Also a column without the LoRA."),
                io.Int.Input("steps", default=20, min=1, max=1000, optional=True, tooltip="Sampling steps.", **ADVANCED),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1, optional=True, tooltip="Guidance. 0: automatic by the kind of model.", **ADVANCED),
                io.Combo.Input("sampler", options=list(SAMPLERS), default="euler", optional=True, tooltip="As on KSampler.", **ADVANCED),
                io.Combo.Input("scheduler", options=list(SCHEDULERS), default="normal", optional=True, tooltip="As on KSampler.", **ADVANCED),
                io.String.Input("negative_prompt", default="", multiline=True, optional=True, tooltip="What the pictures should not show.", **ADVANCED),
                io.Int.Input("width", default=0, min=0, max=16384, step=8, optional=True, tooltip="Pixels. 0: as trained.", **ADVANCED),
                io.Int.Input("height", default=0, min=0, max=16384, step=8, optional=True, tooltip="Pixels. 0: as trained.", **ADVANCED),
            ],
            outputs=[
                io.Image.Output("image", display_name="image", tooltip="The labelled grid; the chosen checkpoint is framed."),
                io.String.Output("drawn_steps", display_name="steps", tooltip="The steps that were drawn, left to right. Any of them can be written on Select Checkpoint."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return folders.loras_fingerprint()

    @classmethod
    def execute(
        cls, run, model, clip, vae, prompts="", num_seeds=2, seed=0, with_base=False, steps=20, cfg=0.0, sampler="euler",
        scheduler="normal", negative_prompt="", width=0, height=0,
    ) -> io.NodeOutput:
        settings = GridSettings(
            prompts=tuple(line.strip() for line in prompts.splitlines() if line.strip()), negative_prompt=negative_prompt, seed=seed,
            num_seeds=num_seeds, num_steps=steps, cfg=cfg, sampler=sampler, scheduler=scheduler, width=width, height=height, with_base=with_base,
        )
        grid, columns, _ = checkpoint_grid(
            run, model, clip, vae, settings, progress=NodeProgress(cls.hidden.unique_id), check_interrupted=check_interrupted,
        )
        listed = ", ".join(str(column.step) for column in columns if column.step)
        sentences = (f"Left to right: {'; '.join(f'{c.title} ({chr(44).join(c.roles)})' for c in columns)}.", *run_sentences(run))
        return io.NodeOutput(image_tensor(grid), listed, ui=shown(image=grid, sentences=sentences))
