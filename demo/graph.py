"""The demo's prompts in API form: the bundled training workflow with the tiny base's files, and a generation graph.

Nodes are named, not numbered, so that results are found by what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from .captions import TRIGGER
from .install import CLIP_NAME, DIT_NAME, VAE_NAME

RUN_NAME = "pistachio_demo"
SIZE_PX = 96
# The base is so small that a real character's defaults (1e-4, 1600 steps) would not move it.
TRAINING = {
    "num_steps": 400, "batch_size": 4, "seed": 7, "prior_preservation": 0.8,
    "run_name": RUN_NAME, "trigger_word": TRIGGER,
}
LEARNING_RATE = 1e-3
SAMPLER = {"steps": 10, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One row of the contact sheet: a LoRA (or none) and a prompt for each seed."""

    name: str
    lora: str | None
    prompts: tuple[tuple[str, int], ...]  # (text, seed)


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def loaders() -> dict:
    return {
        "model": node("UNETLoader", unet_name=DIT_NAME, weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name=CLIP_NAME, type="sd3"),
        "vae": node("VAELoader", vae_name=VAE_NAME),
    }


def training(folder: str) -> dict:
    """Pictures -> captions -> split -> encode -> train -> choose. `folder`: below the host's input folder."""
    return loaders() | {
        "pictures": node("PistachioLoadImageFolder", folder=folder),
        "joycaption": node("PistachioLoadJoyCaption"),
        "captions": node("PistachioCaptionDataset", dataset=["pictures", 0], captioner=["joycaption", 0], trigger_word=TRIGGER),
        "split": node("PistachioSplitDataset", dataset=["captions", 0]),
        "encode": node(
            "PistachioEncodeDataset", dataset=["split", 0], vae=["vae", 0], clip=["clip", 0], trigger_word=TRIGGER, resolution=SIZE_PX
        ),
        "optimizer": node("PistachioOptimizerSettings", learning_rate=LEARNING_RATE),
        "objective": node("PistachioObjectiveSettings", timestep_distribution="uniform"),
        "train": node("PistachioTrainLora", model=["model", 0], encoded=["encode", 0], optimizer=["optimizer", 0], objective=["objective", 0], **TRAINING),
        "choose": node("PistachioSelectCheckpoint", run=["train", 2]),
        "chart": node("PistachioLossChart", run=["train", 2]),
    }


def install_last(step: int) -> dict:
    return {
        "run": node("PistachioLoadRun", run=RUN_NAME),
        "last": node("PistachioSelectCheckpoint", run=["run", 0], step=step, lora_name=f"{RUN_NAME}_last"),
    }


def generation(arms: list[Arm]) -> dict:
    """One picture for each prompt of each arm, through stock nodes alone."""
    graph = loaders() | {
        "empty": node("CLIPTextEncode", clip=["clip", 0], text=""),
        "latent": node("EmptySD3LatentImage", width=SIZE_PX, height=SIZE_PX, batch_size=1),
    }
    for arm in arms:
        model = ["model", 0]
        if arm.lora:
            graph[f"{arm.name}-lora"] = node("LoraLoaderModelOnly", model=model, lora_name=arm.lora, strength_model=1.0)
            model = [f"{arm.name}-lora", 0]
        for index, (text, seed) in enumerate(arm.prompts):
            key = f"{arm.name}-{index:02d}"
            graph[f"{key}-text"] = node("CLIPTextEncode", clip=["clip", 0], text=text)
            graph[f"{key}-sample"] = node(
                "KSampler", model=model, positive=[f"{key}-text", 0], negative=["empty", 0], latent_image=["latent", 0], seed=seed, **SAMPLER
            )
            graph[f"{key}-decode"] = node("VAEDecode", samples=[f"{key}-sample", 0], vae=["vae", 0])
            graph[f"{key}-save"] = node("SaveImage", images=[f"{key}-decode", 0], filename_prefix=f"demo/{key}")
    return graph
