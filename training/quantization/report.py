"""What storing a network in fewer bits cost: the error of each layer and the bytes before and after, in words.

How a layer is measured, and which layers there are, is not known here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median

WORST = 5  # layers that the text names


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerError:
    path: str
    weight_error: float  # |stored - true| / |true| over the matrix
    output_error: float  # the same for the layer's output on random inputs, as the layer now computes it


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationReport:
    format: str
    layers: tuple[LayerError, ...]  # in the network's order
    kept: tuple[tuple[str, str], ...]  # path of a layer that stays as it was, why
    size_bytes_before: int
    size_bytes_after: int
    layer_bytes_before: int  # of the quantised layers alone
    layer_bytes_after: int
    notes: tuple[str, ...] = ()

    def worst(self) -> list[LayerError]:
        return sorted(self.layers, key=lambda layer: layer.output_error, reverse=True)[:WORST]

    def text(self) -> str:
        before, after = self.size_bytes_before, self.size_bytes_after
        lines = [
            f"{len(self.layers)} layers stored as {self.format}: the model takes {size(after)} instead of {size(before)} ({after / before:.0%}); "
            f"these layers {size(self.layer_bytes_after)} instead of {size(self.layer_bytes_before)}.",
            f"Relative error of the weights: median {median(layer.weight_error for layer in self.layers):.4f}, "
            f"of the outputs on random inputs: median {median(layer.output_error for layer in self.layers):.4f}.",
            "Largest errors of the outputs:",
            *(f"  {layer.path}: {layer.output_error:.4f} (weights {layer.weight_error:.4f})" for layer in self.worst()),
        ]
        for why, count in Counter(why for _, why in self.kept).items():
            first = next(path for path, reason in self.kept if reason == why)
            lines.append(f"Kept as they were, {count} layers ({first}{', ...' if count > 1 else ''}): {why}.")
        return "\n".join([*lines, *self.notes])


def size(count_bytes: int) -> str:
    return f"{count_bytes / 1e9:.2f} GB" if count_bytes >= 1e9 else f"{count_bytes / 1e6:.1f} MB"
