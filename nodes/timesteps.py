"""What an objective means for a model, as a picture."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..bridge.noise import HostNoise
from ..training.config import ObjectiveConfig
from ..training.timestep_chart import draw_timestep_chart, objective_curves, sentences
from .schema import Objective, schema
from .shown import image_tensor, shown


class TimestepPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioTimestepPlot",
            display_name="Timestep Plot",
            category="Pistachio/train",
            description="Draws how often Train LoRA looks at each noise level of a model, and how much an error there counts. Nothing is trained.",
            search_aliases=["lora", "train", "kohya", "timestep distribution", "sigma", "shift", "snr", "loss weighting", "noise schedule"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, as for Train LoRA: its shift and its noise schedule are drawn."),
                Objective.Input("objective", optional=True, tooltip="From Objective Settings. Not connected: Train LoRA's defaults."),
                io.Int.Input("width", default=1024, optional=True, min=16, max=16384, step=16, tooltip="Of the pictures; counts for shift 'resolution' alone."),
                io.Int.Input("height", default=1024, optional=True, min=16, max=16384, step=16, tooltip="Of the pictures; counts for shift 'resolution' alone."),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The plot, 900 pixels wide.")],
        )

    @classmethod
    def execute(cls, model, objective=None, width=1024, height=1024) -> io.NodeOutput:
        config = objective or ObjectiveConfig()
        noise = HostNoise(model, device=torch.device("cpu"))
        curves = objective_curves(config, noise, noise.latent_shape(width, height))
        chart = draw_timestep_chart(config, curves)
        return io.NodeOutput(image_tensor(chart), ui=shown(image=chart, sentences=sentences(curves, config)))
