"""Pieces of API prompts over the tiny models: loaders, an empty latent, a sampler.

Only stock nodes. Knows the tiny models' file names; knows nothing of a server.
"""

from .tiny_models import FILES


def loader_prompt(family: str, *, first_id: int = 1) -> tuple[dict, list, list, list]:
    """Loader nodes of an API prompt, and the links to their MODEL, CLIP and VAE."""
    files, node = FILES[family], str(first_id)
    if "checkpoint" in files:
        prompt = {node: {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": files["checkpoint"]}}}
        return prompt, [node, 0], [node, 1], [node, 2]
    text, vae = str(first_id + 1), str(first_id + 2)
    encoders = files["text_encoders"]
    text_inputs = {f"clip_name{index}": name for index, name in enumerate(encoders, 1)} if len(encoders) > 1 else {"clip_name": encoders[0]}
    loader = {"sd3": ("TripleCLIPLoader", {}), "flux": ("DualCLIPLoader", {"type": "flux"}), "wan21": ("CLIPLoader", {"type": "wan"})}
    class_type, type_input = loader[family]
    prompt = {
        node: {"class_type": "UNETLoader", "inputs": {"unet_name": files["network"], "weight_dtype": "default"}},
        text: {"class_type": class_type, "inputs": {**text_inputs, **type_input}},
        vae: {"class_type": "VAELoader", "inputs": {"vae_name": files["vae"]}},
    }
    return prompt, [node, 0], [text, 0], [vae, 0]


def latent_node(family: str, *, width: int = 64, height: int = 64) -> dict:
    """The empty latent that people put under a sampler of this family."""
    class_type = {"sd15": "EmptyLatentImage", "sdxl": "EmptyLatentImage", "wan21": "EmptyHunyuanLatentVideo"}.get(family, "EmptySD3LatentImage")
    inputs = {"width": width, "height": height, "batch_size": 1}
    return {"class_type": class_type, "inputs": inputs | ({"length": 1} if family == "wan21" else {})}


def generation_prompt(family: str, *, text: str, lora: str | None = None, seed: int = 1, steps: int = 2) -> dict:
    """A whole prompt that loads, generates and saves one picture (node "16"), with a LoRA by the stock loader if one is named."""
    prompt, model, clip, vae = loader_prompt(family)
    if lora is not None:
        prompt["10"] = {"class_type": "LoraLoaderModelOnly", "inputs": {"model": model, "lora_name": lora, "strength_model": 1.0}}
        model = ["10", 0]
    return prompt | {
        "11": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}},
        "12": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "13": latent_node(family),
        "14": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "positive": ["11", 0], "negative": ["12", 0], "latent_image": ["13", 0], "seed": seed, "steps": steps,
                "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            },
        },
        "15": {"class_type": "VAEDecode", "inputs": {"samples": ["14", 0], "vae": vae}},
        "16": {"class_type": "SaveImage", "inputs": {"images": ["15", 0], "filename_prefix": f"tiny_{family}"}},
    }
