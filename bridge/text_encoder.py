"""MODEL and CLIP trained together: captions go through the text encoder anew in each forward pass.

The engine sees one network with two children, `diffusion_model` and `text_encoders`, which are also the prefixes
that the stock loader reads. Serves the families whose text encoders are CLIP alone (SD1.5, SDXL).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import comfy.model_management
import torch
from torch import Tensor

from ..training.errors import PistachioError
from .conditions import concatenate_arguments, group_of, host_arguments
from .families import blocks_of
from .model import HostModel

# The parts of a CLIP that are themselves CLIP text models; T5 and language models are too large for a character's few captions.
CLIP_PARTS = {"clip_l", "clip_g", "clip_h"}


@dataclass(frozen=True, eq=False)
class TextCondition:
    """A caption that is encoded when it is used."""

    tokens: dict
    latents: Tensor  # [1, C, ...], whose size SDXL is told
    group: str


class _Pair(torch.nn.Module):
    def __init__(self, diffusion_model: torch.nn.Module, text_encoders: torch.nn.Module):
        super().__init__()
        self.diffusion_model = diffusion_model
        self.text_encoders = text_encoders


class TextTrainedModel(HostModel):
    """`HostModel` whose network includes the text encoder, so that adapters stand in both."""

    key_prefix = ""

    def __init__(self, patcher, clip, *, precision: str = "auto"):
        """`clip`: the CLIP socket's value. Raises PistachioError for a text encoder that isn't CLIP."""
        refuse_text_encoder(clip)
        super().__init__(patcher, precision=precision)
        self.clip = clip.clone()
        comfy.model_management.load_models_gpu(self.patchers)
        self.diffusion_model = self.network
        self.network = _Pair(self.network, clip.cond_stage_model)

    @property
    def patchers(self) -> list:
        return [self.patcher, self.clip.patcher]

    def condition(self, caption: str, latents: Tensor) -> TextCondition:
        tokens = self.clip.tokenize(caption)
        with torch.no_grad():
            group = group_of(host_arguments(self.base_model, self.encode(tokens), latents))
        return TextCondition(tokens=tokens, latents=latents, group=group)

    def predict(self, x_t: Tensor, sigma_B: Tensor, conditions: Sequence[TextCondition]) -> Tensor:
        # A caption that several samples share is encoded once.
        encoded: dict[int, list] = {}
        for condition in conditions:
            if id(condition.tokens) not in encoded:
                encoded[id(condition.tokens)] = self.encode(condition.tokens)
        arguments = [host_arguments(self.base_model, encoded[id(c.tokens)], c.latents) for c in conditions]
        return self._apply(x_t, sigma_B, concatenate_arguments(arguments, self.device))

    has_fixed_conditions = False  # words are encoded in each pass

    def joined(self, conditions: Sequence[TextCondition]) -> Sequence[TextCondition]:
        return conditions

    def blocks(self) -> list[tuple[str, torch.nn.Module]]:
        own = [(f"diffusion_model.{path}", block) for path, block in blocks_of(self.diffusion_model)]
        # A text layer adds into its input, which checkpointing keeps a copy of.
        text = [
            (f"text_encoders.{path}", module) for path, module in self.network.text_encoders.named_modules()
            if type(module).__name__ == "CLIPLayer"
        ]
        return own + text

    def encode_text(self, text: str) -> list:
        return self.encode(self.clip.tokenize(text))

    def encode(self, tokens: dict) -> list:
        """As the host's CLIP.encode_from_tokens does, but without loading anything: what is loaded stays for the whole run."""
        model = self.clip.cond_stage_model
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": self.clip.patcher.load_device})
        found = model.encode_token_weights(tokens)
        return [[found[0], {"pooled_output": found[1], **(found[2] if len(found) > 2 else {})}]]


def refuse_text_encoder(clip) -> None:
    parts = {name for name, _ in clip.cond_stage_model.named_children()}
    if not parts or not parts <= CLIP_PARTS:
        raise PistachioError(
            f"This text encoder ({', '.join(sorted(parts)) or type(clip.cond_stage_model).__name__}) can't be trained: only CLIP is, in SD1.5 and SDXL. "
            "Disconnect 'clip' from Train LoRA: the LoRA is then trained on the diffusion model alone, as is usual for this family."
        )
