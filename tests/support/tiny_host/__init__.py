"""Lets ComfyUI's stock loaders read text encoders and Flux files of any size.

ComfyUI takes the sizes of CLIP and T5 from constants, so that a small file of the same layout does not load.
Here the sizes are read from the file instead; the classes, the loaders and every other line are ComfyUI's own,
and a file of the usual size loads as it always does. Used in the test process and, as a custom node, on the live server.
"""

import re
from functools import wraps

NODE_CLASS_MAPPINGS = {}  # a custom node folder must have one; there are no nodes here

# Key prefixes of the text encoders inside checkpoints, before ComfyUI's conversion.
CHECKPOINT_CLIP_L = ("cond_stage_model.transformer.text_model.", "conditioner.embedders.0.transformer.text_model.")
CHECKPOINT_CLIP_G = "conditioner.embedders.1.model."
# In a single file of SD3.5 the encoders' own files lie side by side.
SINGLE_FILE = tuple(f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))


def _count(state_dict, pattern: str) -> int:
    expression = re.compile(pattern)
    indices = {int(match.group(1)) for key in state_dict if (match := expression.match(key))}
    count = 0
    while count in indices:  # contiguous: a lone high index is only the mark by which a loader tells CLIP-G from CLIP-L
        count += 1
    return count


def _clip_sizes(state_dict, layers: str, up_projection: str) -> dict:
    return {
        "num_hidden_layers": _count(state_dict, re.escape(layers) + r"(\d+)\."),
        "intermediate_size": state_dict[f"{layers}0.{up_projection}.weight"].shape[0],
    }


def _t5_sizes(state_dict) -> dict:
    num_heads = state_dict["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    inner_size, model_size = state_dict["encoder.block.0.layer.0.SelfAttention.q.weight"].shape
    return {
        "num_layers": min(_count(state_dict, r"encoder\.block\.(\d+)\.layer\.0\."), 24),
        "d_model": model_size,
        "num_heads": num_heads,
        "d_kv": inner_size // num_heads,
        "d_ff": state_dict["encoder.block.0.layer.1.DenseReluDense.wi_1.weight"].shape[0],
        "vocab_size": state_dict["shared.weight"].shape[0],
    }


def text_encoder_options(state_dicts) -> dict:
    """ComfyUI's `model_options` with the sizes of every CLIP-L, CLIP-G and T5 found in the files."""
    options = {}
    for state_dict in state_dicts:
        for prefix in SINGLE_FILE:
            part = {key.removeprefix(prefix): tensor for key, tensor in state_dict.items() if key.startswith(prefix)}
            options |= text_encoder_options([part]) if part else {}
        layers = "text_model.encoder.layers."
        if f"{layers}0.mlp.fc1.weight" in state_dict:
            name = "clip_g" if f"{layers}30.mlp.fc1.weight" in state_dict else "clip_l"
            options[f"{name}_model_config"] = _clip_sizes(state_dict, layers, "mlp.fc1")
        if "encoder.block.0.layer.1.DenseReluDense.wi_1.weight" in state_dict:
            options["t5xxl_model_config"] = options["umt5xxl_model_config"] = _t5_sizes(state_dict)
        for prefix in CHECKPOINT_CLIP_L:
            if f"{prefix}encoder.layers.0.mlp.fc1.weight" in state_dict:
                options["clip_l_model_config"] = _clip_sizes(state_dict, f"{prefix}encoder.layers.", "mlp.fc1")
        blocks = f"{CHECKPOINT_CLIP_G}transformer.resblocks."
        if f"{blocks}0.mlp.c_fc.weight" in state_dict:
            options["clip_g_model_config"] = _clip_sizes(state_dict, blocks, "mlp.c_fc")
    return options


def read_sizes_from_files() -> None:
    """Switch it on, once a process."""
    import comfy.model_detection
    import comfy.sd
    import comfy.text_encoders.long_clipl as long_clip

    if getattr(comfy.sd, "pistachio_reads_sizes", False):
        return
    comfy.sd.pistachio_reads_sizes = True

    load_text_encoders = comfy.sd.load_text_encoder_state_dicts
    load_checkpoint = comfy.sd.load_state_dict_guess_config
    detect_network = comfy.model_detection.detect_unet_config
    read_positions = long_clip.model_options_long_clip

    @wraps(load_text_encoders)
    def load_text_encoders_of_any_size(state_dicts=(), *args, model_options={}, **kwargs):
        options = {**model_options, **text_encoder_options(state_dicts)}
        return load_text_encoders(state_dicts, *args, model_options=options, **kwargs)

    @wraps(load_checkpoint)
    def load_checkpoint_of_any_size(sd, *args, te_model_options={}, **kwargs):
        options = {**te_model_options, **text_encoder_options([sd])}
        return load_checkpoint(sd, *args, te_model_options=options, **kwargs)

    @wraps(read_positions)
    def read_positions_beside_sizes(sd, tokenizer_data, model_options):
        # ComfyUI reads the number of positions from the file too, and drops the other sizes when it does.
        tokenizer_data, options = read_positions(sd, tokenizer_data, model_options)
        for name in ("clip_l_model_config", "clip_g_model_config"):
            if name in model_options:
                options = {**options, name: {**model_options[name], **options.get(name, {})}}
        return tokenizer_data, options

    @wraps(detect_network)
    def detect_network_of_any_size(*args, **kwargs):
        config = detect_network(*args, **kwargs)
        if config is not None and config.get("image_model") == "flux":
            config["num_heads"] = config["hidden_size"] // sum(config["axes_dim"])  # what ComfyUI 0.33 does
        return config

    comfy.sd.load_text_encoder_state_dicts = load_text_encoders_of_any_size
    comfy.sd.load_state_dict_guess_config = load_checkpoint_of_any_size
    long_clip.model_options_long_clip = read_positions_beside_sizes
    comfy.model_detection.detect_unet_config = detect_network_of_any_size


def is_custom_node() -> bool:
    # ComfyUI names a custom node's module by its path; the tests import this one as `support.tiny_host`.
    return not __name__.startswith("support.")


if is_custom_node():
    read_sizes_from_files()
