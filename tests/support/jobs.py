"""The whole training job as an API prompt over the tiny models, and folders of pictures for it.

Knows the pack's node surface; knows nothing of a server.
"""

from __future__ import annotations

from .prompts import loader_prompt


def training_job(
    family: str = "sd15", *, folder: str = "my_character", run_name: str = "my_character", num_steps: int = 8, num_evaluations: int = 4,
    vae_of: str = "", clip_of: str = "", train: dict | None = None, optimizer: dict | None = None,
) -> dict:
    """Nodes "load", "split", "encode", "train" and so on; `vae_of` and `clip_of` take these from another family's files."""
    prompt, model, clip, vae = loader_prompt(family)
    if vae_of:
        loaders, _, _, vae = loader_prompt(vae_of, first_id=20)
        prompt |= loaders
    if clip_of:
        loaders, _, clip, _ = loader_prompt(clip_of, first_id=30)
        prompt |= loaders
    return prompt | {
        "load": {"class_type": "PistachioLoadImageFolder", "inputs": {"folder": folder, "recursive": True}},
        "split": {"class_type": "PistachioSplitDataset", "inputs": {"dataset": ["load", 0]}},
        "encode": {
            "class_type": "PistachioEncodeDataset",
            "inputs": {"dataset": ["split", 0], "vae": vae, "clip": clip, "trigger_word": "zwx", "resolution": 64},
        },
        "evaluation": {"class_type": "PistachioEvaluationSettings", "inputs": {"num_evaluations": num_evaluations, "timesteps_per_image": 2}},
        "optimizer": {"class_type": "PistachioOptimizerSettings", "inputs": {"warmup_steps": 2} | (optimizer or {})},
        "train": {
            "class_type": "PistachioTrainLora",
            "inputs": {
                "model": model, "encoded": ["encode", 0], "evaluation": ["evaluation", 0], "optimizer": ["optimizer", 0],
                "run_name": run_name, "num_steps": num_steps,
            } | (train or {}),
        },
        "chart": {"class_type": "PistachioLossChart", "inputs": {"run": ["train", 2]}},
    }
