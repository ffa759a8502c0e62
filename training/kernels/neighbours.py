"""x A^T of layers that read the same x one after the other (q, k and v), in one product: x is read once for all of their adapters.

Which layers do is seen as they run: those that had the same rows in turn are neighbours from then on. A layer that finds other
rows than its neighbour had takes its product alone, so that a wrong guess costs time and never a number.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .codes import place_of


class Site(Protocol):
    """An adapted layer's place; can be referred to weakly."""

    a_RI: Tensor
    neighbours: tuple[weakref.ref, ...]  # sites in the order they run, itself among them; empty while none are known


class _Shared(NamedTuple):
    storage: StorageWeakRef
    place: tuple
    readers: list[weakref.ref]  # so far
    parts: dict[weakref.ref, tuple[Tensor, int]]  # of a site: its h [N, R], and the count of writes to its factor


_last: dict[torch.device, _Shared] = {}


def low_rank_input(x_NI: Tensor, site: Site) -> Tensor:
    """x A^T [N, R]; perhaps columns of a wider product."""
    place = place_of(x_NI)
    if place is None:
        return x_NI.mm(site.a_RI.to(x_NI.dtype).t())
    place, own = (*place, x_NI.stride()), weakref.ref(site)
    shared = _last.get(x_NI.device)
    if shared is None or shared.place != place or shared.storage.expired() or own in shared.readers:
        if shared is not None and len(shared.readers) > 1:
            for reader in shared.readers:
                if reader() is not None:
                    reader().neighbours = tuple(shared.readers)
        shared = _last[x_NI.device] = _Shared(StorageWeakRef(x_NI.untyped_storage()), place, [], {})
    shared.readers.append(own)
    part, version = shared.parts.get(own, (None, -1))
    if part is None or version != site.a_RI._version:
        together = [each() for each in site.neighbours] if site.neighbours[:1] == (own,) else [site]
        together = together if all(each is not None for each in together) else [site]
        factors = [each.a_RI.to(x_NI.dtype) for each in together]
        wide = x_NI.mm((factors[0] if len(factors) == 1 else torch.cat(factors)).t())
        for each, part in zip(together, wide.split([len(f) for f in factors], 1)):
            shared.parts[weakref.ref(each)] = (part, each.a_RI._version)
    return shared.parts[own][0]


def forget() -> None:
    _last.clear()
