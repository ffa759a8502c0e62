"""Which backend each shape of a run uses: raced for once, kept with the run, told in a sentence.

A resumed run reads its table, since another backend rounds differently. On a CPU there is no table: PyTorch has one path.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import log
from typing import Sequence

import torch
from torch import Tensor

from ..errors import PistachioError
from .backends import BACKENDS, Backend, Shape, shape_of
from .race import compete, winner

AUTO = "auto"
MAX_RACES = 4  # shapes; the dearest
LIBRARY = "pytorch"  # its own choice at each call


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionTable:
    device: str  # the card's name: another one races again
    rows: tuple[tuple[Shape, str], ...]
    note: str  # what was found, for log and report

    def backend_for(self, shape: Shape) -> str:
        """Of the nearest raced shape that asks for the same kind of call; PyTorch's own choice where none does."""
        alike = [
            (abs(log(known.work / shape.work)), index) for index, (known, _) in enumerate(self.rows)
            if (known.width, known.dtype, known.mask) == (shape.width, shape.dtype, shape.mask)
        ]
        return self.rows[min(alike)[1]][1] if alike else LIBRARY

    def to_json(self) -> dict:
        return {"device": self.device, "rows": [{**asdict(shape), "backend": name} for shape, name in self.rows], "note": self.note}

    @classmethod
    def from_json(cls, data: dict) -> "AttentionTable":
        rows = tuple((Shape(**{name: value for name, value in row.items() if name != "backend"}), row["backend"]) for row in data["rows"])
        return cls(device=data["device"], rows=rows, note=data["note"])


class Dispatcher:
    """Attention by a table; remembers its look-ups, since a step makes hundreds of the same."""

    def __init__(self, table: AttentionTable, backends: Sequence[Backend] = BACKENDS):
        self.table = table
        self._backends = {backend.name: backend for backend in backends}
        self._known: dict[Shape, Backend | None] = {}

    def backend(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Backend | None:
        """None: PyTorch's own choice."""
        shape = shape_of(q, k, mask)
        if shape not in self._known:
            self._known[shape] = self._backends.get(self.table.backend_for(shape))
        return self._known[shape]


def choose(
    shapes: Sequence[Shape], device: torch.device, *, device_name: str, capability: tuple[int, int], wanted: str = AUTO,
    backends: Sequence[Backend] = BACKENDS, before: AttentionTable | None = None, time_of=None,
) -> AttentionTable:
    """`before`: the table of the run that goes on; it stays, unless the card or the wish is another one."""
    if before is not None and before.device == device_name and (wanted == AUTO or {name for _, name in before.rows} == {wanted}):
        return before
    changed = "" if before is None else f" (the run had {', '.join(sorted({name for _, name in before.rows})) or LIBRARY} until now)"
    dearest = sorted(set(shapes), key=lambda shape: -shape.work)[:MAX_RACES]
    named = backends if wanted == AUTO else [backend for backend in backends if backend.name == wanted]
    if not named:
        raise PistachioError(f"Attention '{wanted}' is unknown. Choose one of {', '.join([AUTO, *(b.name for b in backends)])} in Memory Settings.")
    rows, sentences = [], []
    for shape in dearest:
        heats = compete(named, shape, device, capability=capability, time_of=time_of)
        first = winner(heats)
        if first is None and wanted != AUTO:
            raise PistachioError(
                f"Attention '{wanted}' {heats[0].reason}, which {shape} needs on {device_name}. Set attention to '{AUTO}' in Memory Settings."
            )
        rows.append((shape, first or LIBRARY))
        times = ", ".join(f"{heat.backend} {1e3 * heat.seconds:.2f} ms" for heat in heats if heat.seconds is not None)
        failed = "; ".join(f"{heat.backend} {heat.reason}" for heat in heats if heat.reason.startswith(("failed", "is wrong", "ran out", "has no")))
        sentences.append(f"{first or LIBRARY} for {shape} ({times or 'none finished the race'}{'; ' + failed if failed else ''})")
    note = f"Attention on {device_name}{changed}: {'; '.join(sentences)}."
    return AttentionTable(device=device_name, rows=tuple(rows), note=note)
