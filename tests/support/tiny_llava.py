"""A JoyCaption of a few thousand weights, on disk in the published layout: real LLaVA classes, a real trained tokenizer.

Its captions are noise, but they depend on the picture, the prompt and the seed as the real one's do.
"""

import json
from pathlib import Path

import torch

IMAGE_TOKEN = "<|reserved_special_token_69|>"
SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|finetune_right_pad_id|>", IMAGE_TOKEN,
]
# Llama 3's, with the picture in the first user turn
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if message['role'] == 'user' and PICTURE %}{{- '" + IMAGE_TOKEN + "' }}{%- endif %}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
END_GAIN = 2.2  # on the weights of the end tokens: the less, the longer are the answers
# names in the published files, where transformers 5 has its own
_PUBLISHED_PREFIXES = (
    ("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def train_tokenizer(texts: list[str]):
    """A byte-level BPE whose post-processor adds a BOS, as Llama 3's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>"
    )


def write_joycaption(folder: Path, texts: list[str], *, seed: int = 0, picture_in_template: bool = True, end_gain: float = END_GAIN) -> Path:
    """Save model, tokenizer and configs to `folder`; weights in two shards, keys as in the published files."""
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    tokenizer = train_tokenizer(texts)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("PICTURE", str(picture_in_template).lower())
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    ends = [ids["<|end_of_text|>"], ids["<|eom_id|>"], ids["<|eot_id|>"]]
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
        ).to_dict(),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=False,
            bos_token_id=ids["<|begin_of_text|>"], eos_token_id=ends,
        ).to_dict(),
        image_token_index=ids[IMAGE_TOKEN], image_seq_length=16, vision_feature_layer=-2, vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that answers differ by picture, and ends are reached
            parameter.normal_(0, 0.35) if parameter.dim() > 1 else parameter.fill_(1.0)
        model.get_output_embeddings().weight[ends] *= end_gain
    # the published file samples by itself: greedy must still be greedy
    model.generation_config = GenerationConfig(
        bos_token_id=ids["<|begin_of_text|>"], eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())  # the published class name, which transformers 4 knows too
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    weights = {_published(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _published(name: str) -> str:
    for new, old in _PUBLISHED_PREFIXES:
        if name.startswith(new):
            return old + name.removeprefix(new)
    for new in ("model.vision_tower.", "vision_tower."):
        if name.startswith(new):
            rest = name.removeprefix(new)
            return "vision_tower." + (rest if rest.startswith("vision_model.") else "vision_model." + rest)
    return name
