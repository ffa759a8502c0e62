"""Models of the host's own classes that write text, as CLIPs: a few thousand random weights beside their embeddings.

For hosts that can write text; the answers are noise that depends on the picture, the prompt and the seed.
"""

from __future__ import annotations

import contextlib

import torch

NAME = "qwen3vl_4b"
LANGUAGE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "lm_head": False,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 3, "deepstack_visual_indexes": [0, 1]}
VISION_COMMON = {"num_heads": 2}
END_EVERY = 12  # every so many-th token ends an answer, of a vocabulary of 151,936


@contextlib.contextmanager
def _small():
    """The host's classes read their sizes from tables of the published models."""
    from comfy.text_encoders import qwen3vl

    kept = dict(qwen3vl.QWEN3VL_CONFIGS), dict(qwen3vl.QWEN3VL_VISION), dict(qwen3vl.QWEN3VL_VISION_COMMON)
    published = qwen3vl.QWEN3VL_CONFIGS[NAME]
    qwen3vl.QWEN3VL_CONFIGS[NAME] = lambda **values: published(**{**values, **LANGUAGE})
    qwen3vl.QWEN3VL_VISION[NAME] = VISION
    qwen3vl.QWEN3VL_VISION_COMMON.update(VISION_COMMON)
    try:
        yield qwen3vl
    finally:
        for table, entries in zip((qwen3vl.QWEN3VL_CONFIGS, qwen3vl.QWEN3VL_VISION, qwen3vl.QWEN3VL_VISION_COMMON), kept):
            table.update(entries)


def load_vlm():
    """-> comfy.sd.CLIP that sees pictures."""
    with _small() as qwen3vl:
        clip = _clip(qwen3vl.te(model_type=NAME), qwen3vl.tokenizer(model_type=NAME))
    model = clip.cond_stage_model.get_submodule(f"{NAME}.transformer.model")
    model.config.stop_tokens = list(range(0, model.config.vocab_size, END_EVERY))
    return clip


def load_writer():
    """-> comfy.sd.CLIP that writes text and knows no pictures (Qwen3, as Z-Image has it)."""
    from comfy.text_encoders import llama, z_image

    published = llama.Qwen3_4BConfig
    llama.Qwen3_4BConfig = lambda **values: published(**{**values, **{name: value for name, value in LANGUAGE.items() if name != "lm_head"}})
    try:
        return _clip(z_image.te(), z_image.ZImageTokenizer)
    finally:
        llama.Qwen3_4BConfig = published


def _clip(model, tokenizer):
    import comfy.sd

    class Target:
        params: dict = {}

    Target.clip, Target.tokenizer = model, tokenizer
    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in clip.cond_stage_model.named_parameters():
            parameter.copy_(torch.ones_like(parameter) if "norm" in name and name.endswith("weight") else 0.15 * torch.randn(parameter.shape, generator=generator))
    return clip
