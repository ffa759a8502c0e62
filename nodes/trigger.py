"""The trigger word before it is trained: what the text encoders and the model know of it already."""

from __future__ import annotations

import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..bridge import trigger
from ..bridge.encode import check_clip
from ..bridge.progress import NodeProgress
from ..training.errors import PistachioError
from .schema import ADVANCED, Dataset, schema
from .shown import shown

GRID_SIDE = 512  # pixels of one of the four pictures on the node, at most


class CheckTrigger(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCheckTrigger",
            display_name="Check Trigger",
            category="Pistachio/caption",
            description="Tells how the model's text encoders read a trigger word, whether they know it already, whether it collides with the captions, and suggests ten others.",
            search_aliases=["lora", "train", "kohya", "trigger word", "token", "tokenizer", "rare token"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that the model is used with: its own tokenizers are asked."),
                io.String.Input("trigger_word", default="ohwx", tooltip="The word that is to stand for the character."),
                Dataset.Input("dataset", optional=True, tooltip="The set with its captions, to find the trigger among their words. Not connected: the captions are left out."),
                io.Model.Input("model", optional=True, tooltip="With the VAE: draws what the model makes of the word before training, from four seeds."),
                io.Vae.Input("vae", optional=True, tooltip="The model's VAE, for the four pictures."),
                io.String.Input("prompt", default="a photo of [trigger]", optional=True, tooltip="What the four pictures are asked for; [trigger] becomes the trigger word.", **ADVANCED),
                io.Int.Input("seed", default=0, optional=True, min=0, max=2**53 - 4, control_after_generate=False, tooltip="Other suggestions, and the first of the pictures' four seeds.", **ADVANCED),
                io.Int.Input("num_steps", default=20, optional=True, min=1, max=200, tooltip="Sampling steps of the pictures.", **ADVANCED),
                io.Float.Input("cfg", default=0.0, optional=True, min=0.0, max=30.0, step=0.1, tooltip="Guidance of the pictures. 0: 1 for distilled models, 4.5 for other flow models, 7 for the rest.", **ADVANCED),
                io.Int.Input("size", default=512, optional=True, min=64, max=2048, step=8, tooltip="Width and height of the pictures in pixels.", **ADVANCED),
            ],
            outputs=[
                io.String.Output("trigger", display_name="trigger_word", tooltip="The word that was checked."),
                io.String.Output("report", display_name="report", tooltip="What was found, one sentence a line."),
                io.String.Output("suggestions", display_name="suggestions", tooltip="Up to ten other words, one a line."),
                io.Image.Output("pictures", display_name="pictures", tooltip="What the model draws for it now, from four seeds. Nothing without MODEL and VAE."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, clip, trigger_word, dataset=None, model=None, vae=None, prompt="a photo of [trigger]", seed=0, num_steps=20, cfg=0.0, size=512,
    ) -> io.NodeOutput:
        check_clip(clip)
        if (model is None) != (vae is None):
            raise PistachioError("The preview needs the model and its VAE: connect both to Check Trigger, or neither.")
        captions = None
        if dataset is not None:
            captions = [text for picture in dataset.pictures for text in (picture.caption, *picture.more_captions) if text]
        report = trigger.check_trigger(clip, trigger_word, captions, seed=seed)
        pictures, grid = trigger.NOTHING_DRAWN, None
        if model is not None:
            pictures = trigger.draw(
                model, clip, vae, trigger.preview_prompt(prompt, report.trigger), seed=seed, num_steps=num_steps, cfg=cfg, size=size,
                progress=NodeProgress(cls.hidden.unique_id, unit="pictures drawn"),
            )
            grid = _grid(pictures)
        return io.NodeOutput(
            report.trigger, "\n".join(report.sentences), "\n".join(report.suggestions), pictures, ui=shown(image=grid, sentences=report.sentences),
        )


def _grid(pictures) -> Image.Image:
    """Two by two."""
    images = [Image.fromarray((picture.numpy() * 255).round().astype(np.uint8)) for picture in pictures]
    for image in images:
        image.thumbnail((GRID_SIDE, GRID_SIDE), Image.Resampling.LANCZOS)
    width, height = images[0].size
    grid = Image.new("RGB", (2 * width, 2 * height))
    for index, image in enumerate(images):
        grid.paste(image, (index % 2 * width, index // 2 * height))
    return grid
