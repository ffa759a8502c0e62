"""How streamed training and the host's memory manager share a model.

The host is told to load the model into ordinary memory, LoRAs of the graph merged as it merges them; the device belongs to
the engine meanwhile. It never sees a model that is on two devices at once: before it samples, or when training ends, the
engine has put every tensor back, and the host unloads as it always does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Iterator

import comfy.model_management
import torch

HOST_MEMORY = torch.device("cpu")
EVERYTHING_BYTES = 1e30  # more than any device has
STAGED = "_v"  # a module's place in the dynamic memory of newer hosts: with it they would fetch the weight past the engine


class HostStreaming:
    """The part of `HostModel` that says where weights are."""

    _switches: ExitStack
    _is_streaming = False
    _in_memory: ExitStack | None = None  # open while the weights are in host memory

    @property
    def patchers(self) -> list:
        raise NotImplementedError

    def _switched_to_training(self) -> ExitStack:
        raise NotImplementedError

    @contextmanager
    def host_at_work(self) -> Iterator[None]:
        """Inside `training()`: the model is as the host knows it, and the host may move it."""
        self._switches.close()
        try:
            with torch.inference_mode():
                yield
        finally:
            self._switches = self._switched_to_training()

    @contextmanager
    def weights_on_host(self) -> Iterator[None]:
        self._is_streaming = True
        try:
            with self.host_at_work():
                self.place_weights()
            yield
        finally:
            self._is_streaming = False
            with self.host_at_work():
                self.lend_weights()

    def lend_weights(self) -> None:
        """The host may load the model wherever it likes."""
        if self._in_memory is not None:
            self._in_memory, opened = None, self._in_memory
            opened.close()

    def place_weights(self) -> None:
        """After the host has used its models: the weights are where training wants them again."""
        if not self._is_streaming:
            comfy.model_management.load_models_gpu(self.patchers)
            return
        with ExitStack() as stack:
            for patcher in self.patchers:
                stack.enter_context(in_host_memory(patcher))
            self._in_memory = stack.pop_all()


def in_host_memory(patcher) -> AbstractContextManager[None]:
    """The patcher's model with all its weights merged and in ordinary memory; then unloaded, as the host leaves a model."""
    return _dynamic(patcher) if getattr(patcher, "is_dynamic", bool)() else _loaded(patcher)


@contextmanager
def _loaded(patcher) -> Iterator[None]:
    patcher.detach()
    try:
        patcher.partially_load(HOST_MEMORY, EVERYTHING_BYTES)
        with _around(patcher):
            yield
    finally:
        patcher.detach()


@contextmanager
def _dynamic(patcher) -> Iterator[None]:
    """Newer hosts' dynamic memory: weights wait in ordinary memory anyway, and each is fetched, and patched, when a layer runs."""
    patcher.detach()
    staged = [(module, vars(module).pop(STAGED)) for module in patcher.model.modules() if STAGED in vars(module)]
    try:
        patcher.patch_model(load_weights=False)
        for key in patcher.patches:
            patcher.patch_weight_to_device(key, device_to=HOST_MEMORY)
        with _around(patcher):
            yield
    finally:
        for module, place in staged:
            setattr(module, STAGED, place)
        patcher.detach()


@contextmanager
def _around(patcher) -> Iterator[None]:
    """The small parts beside the network (noise schedule, embedders of conditions) compute on the device."""
    network = patcher.model.diffusion_model if hasattr(patcher.model, "diffusion_model") else None
    parts = [part for part in patcher.model.children() if part is not network] if network is not None else []
    for part in parts:
        part.to(patcher.load_device)
    try:
        yield
    finally:
        for part in parts:
            part.to(HOST_MEMORY)
