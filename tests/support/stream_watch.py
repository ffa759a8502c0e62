"""Watches every operation while blocks are streamed through a simulated device: what reads a slot, and what reads host memory."""

import torch
from pistachio.training.streaming.simulated import OrderError, SimulatedDevice
from pistachio.training.streaming.tensors import leaves
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# They take a tensor for its shape and dtype alone.
SHAPES_ONLY = ("empty", "new_", "zeros_like", "ones_like", "full_like", "set_", "rand")


class Watch(TorchDispatchMode):
    """Around computing. Nothing may compute with the tensors that streamed blocks have in host memory."""

    def __init__(self, ring):
        super().__init__()
        self.device: SimulatedDevice = ring.device
        self.host = {leaf.untyped_storage().data_ptr() for image in ring.images for place in image.places for leaf in leaves(place.value)}
        self.reads = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operation._schema.name.partition("::")[2]
        if not name.startswith(SHAPES_ONLY) and not _is_view(operation):
            for argument, value in zip(operation._schema.arguments, args):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    self._read(value, name)
            for value in kwargs.values():
                self._read(value, name)
        return operation(*args, **kwargs)

    def _read(self, value, name):
        for tensor in tree_leaves(value):
            for leaf in leaves(tensor) if isinstance(tensor, torch.Tensor) else ():
                address = leaf.untyped_storage().data_ptr()
                if address in self.host:
                    raise OrderError(f"{name} computes with a streamed block's host memory")
                self.reads += address in self.device._slots
                self.device.read(leaf)


def _is_view(operation):
    returns = operation._schema.returns
    return bool(returns) and all(each.alias_info is not None and not each.alias_info.is_write for each in returns)
