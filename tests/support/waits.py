"""Counts what would make the computer wait for a card, on a machine that has none.

Values that only a card would know are marked: everything computed from the network, the adapters or a micro-batch's
inputs. Asking for one of them (`item`, a comparison in Python, `tolist`, a copy to the CPU), or for a size that depends on
one (`nonzero`, a mask as an index), is a wait.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

# Their results, or the shapes of these, are known when the card has finished.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "unique_dim", "equal", "is_nonzero"}
ASKING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")


class Waits(TorchDispatchMode):
    def __init__(self, on_card):
        super().__init__()
        self.marks = WeakTensorKeyDictionary()
        self.mark(on_card)
        self.found: list[str] = []
        self.replaced: dict[str, object] = {}

    def mark(self, values):
        for value in tree_leaves(values):
            if isinstance(value, torch.Tensor):
                self.marks[value] = True

    def is_marked(self, values):
        return any(isinstance(value, torch.Tensor) and value in self.marks for value in tree_leaves(values))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        marked = self.is_marked((args, kwargs)) or torch._C._current_graph_task_id() != -1
        name = operation._schema.name.partition("::")[2]
        if marked and (name in WAITING or (name in ("index", "index_put", "index_put_", "_unsafe_index") and _has_mask(args[1]))):
            self.found.append(name)
        out = operation(*args, **kwargs)
        if marked:
            self.mark(out)
        return out

    def __enter__(self):
        for name in ASKING:
            self.replaced[name] = own = getattr(torch.Tensor, name)
            setattr(torch.Tensor, name, self._asked(name, own))
        return super().__enter__()

    def __exit__(self, *error):
        for name, own in self.replaced.items():
            setattr(torch.Tensor, name, own)
        return super().__exit__(*error)

    def _asked(self, name, own):
        def ask(tensor, *args, **kwargs):
            if self.is_marked(tensor):
                self.found.append(name)
            return own(tensor, *args, **kwargs)

        return ask


def _has_mask(indices):
    return any(isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
