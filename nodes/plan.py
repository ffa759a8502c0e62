"""Planning on the canvas: what one form does not ask."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.families import family_of
from ..bridge.plan import resolution_for, run_name_for
from ..training.messages import counted, message
from .schema import Dataset, schema
from .shown import shown


class PlanTraining(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioPlanTraining",
            display_name="Plan Training",
            category="Pistachio/train",
            description="Finds what suits the base model and the pictures: the training size, and a name for the run that is the same when you press Run again and another one when model, pictures or captions are.",
            search_aliases=["lora", "train", "kohya", "auto", "automatic settings", "recommended settings"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, straight from its loader."),
                Dataset.Input("dataset", tooltip="Captioned pictures, best from Split Dataset: another choice of held-out pictures is another run."),
            ],
            outputs=[
                io.String.Output("planned_name", display_name="run_name", tooltip="For run_name of Train LoRA."),
                io.Int.Output("planned_resolution", display_name="resolution", tooltip="For resolution of Encode Dataset: 512 for SD1.5 and video models, 1024 for the others. Smaller pictures are not enlarged."),
            ],
        )

    @classmethod
    def execute(cls, model, dataset) -> io.NodeOutput:
        resolution = resolution_for(model)
        name = run_name_for(model, dataset, resolution)
        words = counted(
            "node.plan", len(dataset.pictures), "{family}: {count} picture at {resolution} pixels. The run and its LoRA are called '{run}'.",
            "{family}: {count} pictures at {resolution} pixels. The run and its LoRA are called '{run}'.",
            family=family_of(model.model), resolution=resolution, run=name,
        )
        rest = message("node.plan_rest", "Number of steps and memory are planned by Train LoRA.")
        return io.NodeOutput(name, resolution, ui=shown(sentences=(words, rest)))
