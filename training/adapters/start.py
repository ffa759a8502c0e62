"""The weights of a LoRA file that a run starts from, layer by layer, in one form for every naming.

Knows the key endings of the common trainers; which layer a name means comes from the host's key map.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Callable, Iterable, Mapping

from torch import Tensor

from ..errors import PistachioError
from ..messages import message

# Ending of a key -> the tensor it holds. Longer endings come before those they end in.
ENDINGS = {
    ".lora_linear_layer.up.weight": "up", ".lora_linear_layer.down.weight": "down",
    ".lora_B.default.weight": "up", ".lora_A.default.weight": "down",
    ".lora_magnitude_vector.default.weight": "magnitude", ".lora_magnitude_vector": "magnitude",
    ".lora_up.weight": "up", ".lora_down.weight": "down", ".lora_mid.weight": "mid",
    ".lora.up.weight": "up", ".lora.down.weight": "down",
    "_lora.up.weight": "up", "_lora.down.weight": "down",
    ".lora_B.weight": "up", ".lora_A.weight": "down", ".lora_B": "up", ".lora_A": "down",
    ".alpha": "alpha", ".dora_scale": "dora_scale",
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "w1", "w2", "t2")},
}
TEXT_ENCODER = ("lora_te", "text_encoder", "lora_prior_te", "te1_", "te2_", "base_model.model.text_encoder")
TUCKER = {"mid", "hada_t1", "hada_t2", "lokr_t2"}  # Tucker decompositions
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class StartPart:
    """One adapter of the file: a whole layer, or `rows` (start, count) of one whose q, k and v the host keeps fused."""

    tensors: dict[str, Tensor]
    alpha: float | None
    rows: tuple[int, int] | None = None

    def scale(self, rank: int) -> float:
        return 1.0 if self.alpha is None else self.alpha / rank


@dataclass(frozen=True, kw_only=True)
class AdapterStart:
    name: str  # of the file
    layers: dict[str, list[StartPart]]  # module path -> parts
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a name in a file means in this network."""

    path: str
    rows: tuple[int, int] | None = None
    reorder: Callable[[Tensor], Tensor] | None = None  # of the output rows


def read_start(
    name: str, tensors: Mapping[str, Tensor], place_of: Callable[[str], Place | None], *, kind: str, text_encoders: bool = False
) -> AdapterStart:
    """`tensors`: the file's content; `text_encoders`: whether they are trained too, or left out.

    Raises PistachioError for what this kind of adapter can't start from.
    """
    named: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown, num_text = [], 0
    for key, tensor in tensors.items():
        if key.startswith(TEXT_ENCODER) and not text_encoders:
            num_text += 1
            continue
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        if ending is None or place_of(key.removesuffix(ending)) is None:
            unknown.append(key)
        else:
            named[key.removesuffix(ending)][ENDINGS[ending]] = tensor
    if unknown:
        raise PistachioError(
            f"'{name}' holds {len(unknown)} tensors that belong to no layer of this model, or are of an unknown kind: {_some(unknown)}. "
            "Choose a LoRA made for this model in Adapter Settings."
        )
    if not named:
        raise PistachioError(f"'{name}' holds no weights for the diffusion model. Choose another file to start from in Adapter Settings.")
    layers: dict[str, list[StartPart]] = defaultdict(list)
    for layer, values in named.items():
        found = kind_of(values)
        if found != kind:
            raise PistachioError(
                f"'{name}' is a {found} file (at '{layer}'), and the adapter is '{kind}'. Set kind to '{found}' in Adapter Settings, or choose another file."
                if found else f"'{layer}' in '{name}' is incomplete, or decomposed in a way that can't be trained ({', '.join(values)}). Choose another file."
            )
        layers[place_of(layer).path].append(_part(values, place_of(layer)))
    notes = (message(
        "note.text_left_out", "{tensors} tensors of text encoders in '{file}' are left out: they are not trained.", tensors=num_text, file=name,
    ),) if num_text else ()
    return AdapterStart(name=name, layers=dict(layers), notes=notes)


def kind_of(values: Iterable[str]) -> str | None:
    names = set(values)
    if names & TUCKER:
        return None
    if {"up", "down"} <= names:
        return "dora" if names & {"dora_scale", "magnitude"} else "lora"
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= names:
        return "loha"
    if ("lokr_w1" in names or {"lokr_w1_a", "lokr_w1_b"} <= names) and ("lokr_w2" in names or {"lokr_w2_a", "lokr_w2_b"} <= names):
        return "lokr"
    return None


def _part(values: dict[str, Tensor], place: Place) -> StartPart:
    values = dict(values)
    alpha = values.pop("alpha", None)
    if place.reorder is not None and "up" in values:
        values["up"] = place.reorder(values["up"])
    return StartPart(tensors={name: tensor.float() for name, tensor in values.items()}, alpha=None if alpha is None else float(alpha), rows=place.rows)


def check_covered(start: AdapterStart, trained: Iterable[str]) -> None:
    """Every layer of the file must be trained, or the start would not be the file."""
    left = sorted(set(start.layers) - set(trained))
    if left:
        raise PistachioError(
            f"'{start.name}' changes {len(left)} layers that this adapter doesn't train: {_some(left)}. "
            "Choose a larger target preset, or widen include and exclude, in Adapter Settings."
        )


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
