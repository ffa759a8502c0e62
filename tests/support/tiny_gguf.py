"""The tiny JoyCaption as the two GGUF files that llama.cpp reads: the language model and its projector, with the same weights.

Writes the format by hand, as its description says: the product's reader is tested against it.
"""

import json
import struct
from pathlib import Path

import numpy as np

ALIGNMENT = 32
_KINDS = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f"), np.int32: (5, "<i")}


def write_gguf(path: Path, values: dict, tensors: dict[str, np.ndarray]) -> Path:
    """float32 tensors; values are texts, whole numbers, floats, switches, and lists of one of these."""
    head, data, offset = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(values))), bytearray(), 0
    for key, value in values.items():
        head += _text(key) + _value(value)
    for name, tensor in tensors.items():
        tensor = np.ascontiguousarray(tensor, dtype=np.float32)
        head += _text(name) + struct.pack("<I", tensor.ndim) + struct.pack(f"<{tensor.ndim}Q", *tensor.shape[::-1]) + struct.pack("<IQ", 0, offset)
        data += tensor.tobytes() + b"\0" * (-tensor.nbytes % ALIGNMENT)
        offset = len(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(head) + b"\0" * (-len(head) % ALIGNMENT) + bytes(data))
    return path


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        parts = [_value(entry) for entry in value]
        return struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)
    kind, form = _KINDS[type(value)]
    return struct.pack("<I", kind) + struct.pack(form, value)


def write_pair(source: Path, folder: Path, *, template: bool = True) -> tuple[Path, Path]:
    """GGUF files of the tiny JoyCaption that `tiny_llava.write_joycaption` wrote to `source`."""
    from safetensors.numpy import load_file

    config = json.loads((source / "config.json").read_text())
    weights = {name: tensor for file in sorted(source.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    model = write_gguf(folder / f"{source.name}-F32.gguf", _language_values(source, config, template), _language_tensors(weights, config["text_config"]))
    projector = write_gguf(folder / f"{source.name}-mmproj-F32.gguf", _vision_values(config["vision_config"], config["text_config"]), _vision_tensors(weights))
    return model, projector


def _language_values(source: Path, config: dict, template: bool) -> dict:
    text, tokenizer = config["text_config"], json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"] | {entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]}
    special = {entry["content"] for entry in tokenizer["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    jinja = source / "chat_template.jinja"
    chat = jinja.read_text() if jinja.is_file() else json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    heads = text["num_attention_heads"]
    return {
        "general.architecture": "llama", "general.name": source.name, "llama.context_length": text["max_position_embeddings"],
        "llama.embedding_length": text["hidden_size"], "llama.block_count": text["num_hidden_layers"], "llama.feed_forward_length": text["intermediate_size"],
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": text["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(text["rms_norm_eps"]), "llama.rope.dimension_count": text["hidden_size"] // heads,
        "llama.rope.freq_base": float((text.get("rope_parameters") or text).get("rope_theta", 10000.0)), "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [np.int32(3 if token in special else 1) for token in tokens], "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": vocabulary["<|begin_of_text|>"], "tokenizer.ggml.eos_token_id": vocabulary["<|eot_id|>"],
        "tokenizer.ggml.padding_token_id": vocabulary["<|finetune_right_pad_id|>"], "tokenizer.ggml.add_bos_token": True,
    } | ({"tokenizer.chat_template": chat} if template else {})


def _language_tensors(weights: dict, text: dict) -> dict:
    prefix = "language_model.model."
    tensors = {
        "token_embd.weight": weights[f"{prefix}embed_tokens.weight"], "output_norm.weight": weights[f"{prefix}norm.weight"],
        "output.weight": weights["language_model.lm_head.weight"],
    }
    names = {
        "input_layernorm": "attn_norm", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }
    for layer in range(text["num_hidden_layers"]):
        here = f"{prefix}layers.{layer}."
        tensors |= {f"blk.{layer}.{new}.weight": weights[f"{here}{old}.weight"] for old, new in names.items()}
        for part, heads in (("q", text["num_attention_heads"]), ("k", text["num_key_value_heads"])):
            tensors[f"blk.{layer}.attn_{part}.weight"] = _interleaved(weights[f"{here}self_attn.{part}_proj.weight"], heads)
    return tensors


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbouring numbers of a head, transformers the two halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _vision_values(vision: dict, text: dict) -> dict:
    return {
        "general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": "mlp", "clip.use_gelu": True,
        "clip.vision.image_size": vision["image_size"], "clip.vision.patch_size": vision["patch_size"], "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.feed_forward_length": vision["intermediate_size"], "clip.vision.block_count": vision["num_hidden_layers"],
        "clip.vision.attention.head_count": vision["num_attention_heads"], "clip.vision.attention.layer_norm_epsilon": float(vision.get("layer_norm_eps", 1e-6)),
        "clip.vision.projection_dim": text["hidden_size"], "clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3,
    }


def _vision_tensors(weights: dict) -> dict:
    prefix = "vision_tower.vision_model."
    tensors = {
        "v.patch_embd.weight": weights[f"{prefix}embeddings.patch_embedding.weight"], "v.patch_embd.bias": weights[f"{prefix}embeddings.patch_embedding.bias"],
        "v.position_embd.weight": weights[f"{prefix}embeddings.position_embedding.weight"],
        "v.post_ln.weight": weights[f"{prefix}post_layernorm.weight"], "v.post_ln.bias": weights[f"{prefix}post_layernorm.bias"],
    }
    names = {
        "layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
    }
    for name, tensor in weights.items():
        if name.startswith(f"{prefix}encoder.layers."):
            layer, rest = name.removeprefix(f"{prefix}encoder.layers.").split(".", 1)
            module, kind = rest.rsplit(".", 1)
            tensors[f"v.blk.{layer}.{names[module]}.{kind}"] = tensor
    for old, new in (("linear_1", "mm.0"), ("linear_2", "mm.2")):
        for kind in ("weight", "bias"):
            tensors[f"{new}.{kind}"] = weights[f"multi_modal_projector.{old}.{kind}"]
    return tensors
