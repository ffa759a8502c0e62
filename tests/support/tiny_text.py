"""Small CLIP-L, CLIP-G, T5 and UMT5 text encoders with ComfyUI's own classes, and a real little tokenizer for UMT5.

Every caption gets its own condition: embeddings are random and one layer mixes the tokens. Vocabularies and widths are
those of the real encoders, because ComfyUI and the diffusion networks fix them; depths and inner widths are small.
"""

import io
import json
from pathlib import Path

import torch

from .tiny_networks import fill

CLIP_LAYERS = 3  # the last but one is asked for, and a loader looks for layer 1
CLIP_INNER_SIZE = 64
T5_LAYERS, T5_INNER_SIZE = 1, 64
T5_FILLED_TOKENS = 8000  # the tokenizer's ids fall with frequency; a rarer piece has a zero embedding, a hole in the file
UMT5_WORDS = (
    "a an the of on in under with and by from to at portrait photo picture drawing painting woman man girl boy child person "
    "face hair eyes hat glasses beard smile red green blue yellow black white brown grey pink purple long short curly "
    "standing sitting walking looking left right wall garden street room sky sea light dark plain background wearing "
    "shirt dress coat cat dog house tree river mountain small large young old happy sad style ohwx sks"
).split()

# Marks by which ComfyUI's loaders tell the encoders apart; never read, and holes in the file.
CLIP_G_MARK = {"text_model.encoder.layers.30.mlp.fc1.weight": torch.zeros(1, 1, dtype=torch.float16)}
T5_XXL_MARK = {
    "encoder.block.23.layer.1.DenseReluDense.wi_1.weight": torch.zeros(10240, 4096, dtype=torch.uint8).view(torch.float8_e4m3fn)
}


def _host_config(name: str) -> dict:
    import comfy.sd1_clip

    return json.loads((Path(comfy.sd1_clip.__file__).parent / name).read_text())


def _half(state_dict) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in state_dict.items()}


def build_clip(kind: str, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """`kind` is "clip_l" (width 768) or "clip_g" (width 1280). Keys as in a published text encoder file."""
    import comfy.clip_model
    import comfy.ops

    config = _host_config({"clip_l": "sd1_clip_config.json", "clip_g": "clip_config_bigg.json"}[kind])
    config.update(num_hidden_layers=CLIP_LAYERS, intermediate_size=CLIP_INNER_SIZE)
    model = comfy.clip_model.CLIPTextModel(config, torch.float32, "cpu", comfy.ops.manual_cast)
    return _half(fill(model, seed=seed).state_dict())


def _build_t5(config_name: str, sizes: dict, filled_tokens: int, seed: int) -> dict[str, torch.Tensor]:
    import comfy.ops
    from comfy.text_encoders.t5 import T5

    config = _host_config(f"text_encoders/{config_name}") | sizes
    model = T5(config | {"vocab_size": 1}, torch.float32, "cpu", comfy.ops.manual_cast)
    state_dict = _half(fill(model, seed=seed).state_dict())
    generator = torch.Generator().manual_seed(seed + 1)
    embedding = torch.zeros(config["vocab_size"], config["d_model"], dtype=torch.float16)
    embedding[:filled_tokens] = torch.randn(filled_tokens, config["d_model"], generator=generator).half()
    return state_dict | {"shared.weight": embedding} | T5_XXL_MARK


def build_t5(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """T5-XXL's width and tokenizer, for SD3 and Flux."""
    sizes = dict(num_layers=T5_LAYERS, num_heads=2, d_kv=32, d_ff=T5_INNER_SIZE)
    return _build_t5("t5_config_xxl.json", sizes, T5_FILLED_TOKENS, seed)


def build_umt5(*, seed: int = 0) -> dict[str, torch.Tensor]:
    """UMT5-XXL's width, for Wan; the tokenizer travels in the file, as in the published one."""
    tokenizer = _train_tokenizer()
    num_pieces = _num_pieces(tokenizer)
    sizes = dict(num_layers=T5_LAYERS, num_heads=2, d_kv=32, d_ff=T5_INNER_SIZE, vocab_size=num_pieces)
    state_dict = _build_t5("umt5_config_xxl.json", sizes, num_pieces, seed)
    return state_dict | {"spiece_model": torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8)}


def _train_tokenizer() -> bytes:
    import random

    import sentencepiece

    generator = random.Random(0)
    sentences = (" ".join(generator.choice(UMT5_WORDS) for _ in range(10)) for _ in range(1500))
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=model, vocab_size=500, model_type="unigram", pad_id=0, eos_id=1, unk_id=2,
        bos_id=-1, hard_vocab_limit=False, byte_fallback=True, minloglevel=2, num_threads=1,
    )
    return model.getvalue()


def _num_pieces(model: bytes) -> int:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
