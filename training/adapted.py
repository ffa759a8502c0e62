"""The network with its adapters attached, and the flat buffer they live in.

All adapter tensors are views of one fp32 buffer, and so are their gradients: clipping,
the optimiser, the weight average and the state file each handle a single tensor.
The network's own modules are changed only between `__enter__` and `__exit__`.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Iterator

import torch
from torch import Tensor

from .adapters import ADAPTERS
from .adapters.peft import peft_config
from .adapters.start import AdapterStart, check_covered
from .compiled import CompiledBlocks
from .config import AdapterConfig
from .frozen import FrozenConv, FrozenLinear
from .kernels import forget_inputs
from .kernels.pending import settled
from .messages import message
from .model import TrainableModel
from .patching import replaced_forward
from .saving import keep_for, recording, saved_blocks
from .seeds import generator, seed_from
from .targets import select_targets, target_notes

log = logging.getLogger("pistachio")


class AdaptedNetwork:
    def __init__(
        self, model: TrainableModel, config: AdapterConfig, *, seed: int, keep: str = "everything", keep_in_ram: bool = False,
        start: AdapterStart | None = None,
    ):
        """`keep`: what each block keeps for its backward, see `saving`; `keep_in_ram`: and not on the device.

        `start`: the weights of a file to begin at; without it the network begins as the base.
        """
        self.model = model
        self.config = config
        self.keep, keep_note = keep_for(model, keep, in_ram=keep_in_ram)
        self.keep_in_ram = keep_in_ram and keep_note is None
        self.compiled: CompiledBlocks | None = None  # put there, before entering, by whoever wants compiled blocks
        self.enabled = True
        self._seed = seed
        self._pass: tuple[int, int] | None = None
        adapter_class = ADAPTERS[config.kind]
        targets = select_targets(model, config)
        self.adapters = {target.path: adapter_class(target, config, model) for target in targets}
        count = sum(_numel(shape) for adapter in self.adapters.values() for shape in adapter.shapes.values())
        self.parameters = torch.zeros(count, device=model.device)  # fp32
        self.gradients = torch.zeros_like(self.parameters)
        self.parameters.grad = self.gradients
        self._bind()
        for path, adapter in self.adapters.items():
            if model.device.type != "meta":  # a model's shadow: there are no numbers
                adapter.initialise(generator("adapter", seed, path))
            if config.dropout:
                adapter.dropped = self._dropout(path)
        if config.dropout:
            model.shares_padding = False  # other values are dropped in each of its rows
        # Sentences for the user.
        self.notes = (*target_notes(targets, config, model.family), *adapter_class.notes(list(self.adapters.values())))
        if keep_note is not None:
            log.warning("%s", keep_note)
            self.notes += (keep_note,)
        self._neutral: Tensor | None = None  # weights that change nothing, where the run doesn't begin at them
        if start is not None:
            self._begin_at(start)
        self._stack: ExitStack | None = None

    def _bind(self) -> None:
        offset = 0
        for adapter in self.adapters.values():
            for name, shape in adapter.shapes.items():
                end = offset + _numel(shape)
                tensor = adapter.view(name, self.parameters[offset:end]).requires_grad_(True)
                tensor.grad = adapter.view(name, self.gradients[offset:end])
                adapter.tensors[name] = tensor
                offset = end

    def _begin_at(self, start: AdapterStart) -> None:
        check_covered(start, self.adapters)
        self._neutral = self.parameters.detach().to("cpu", copy=True)
        for path, parts in start.layers.items():
            self.adapters[path].begin_at(parts)
        starts = message(
            "note.starts_from", "Starts from '{file}', which changes {changed} of the {layers} trained layers.",
            file=start.name, changed=len(start.layers), layers=len(self.adapters),
        )
        self.notes += (starts, *start.notes)

    def __enter__(self) -> "AdaptedNetwork":
        stack = ExitStack()
        try:
            for path, module in self.model.network.named_modules():
                replacement = self._replacement(path, module)
                if replacement is not None:
                    is_layer = self.model.is_linear(module) or self.model.is_conv(module)
                    stack.enter_context(replaced_forward(module, CompiledBlocks.outside(replacement) if self.compiled and is_layer else replacement))
            if self.compiled:
                stack.enter_context(self.compiled.placed())
            if not (self.compiled and self.keep == "everything"):  # compiled code chooses by itself what it keeps
                stack.enter_context(saved_blocks(self.model, self.keep, in_ram=self.keep_in_ram))
            if hasattr(self.model, "row_kernels"):
                if self.compiled:
                    self.model.row_kernels_left_out("blocks are compiled, which fuses such steps itself")
                else:
                    stack.enter_context(self.model.row_kernels())
        except BaseException:
            stack.close()
            raise
        self._stack = stack
        return self

    def __exit__(self, *exc_info) -> None:
        self._stack.close()
        self._stack = None
        forget_inputs()

    def _replacement(self, path: str, module: torch.nn.Module):
        model = self.model
        adapter = self.adapters.get(path)
        frozen = FrozenLinear if model.is_linear(module) else FrozenConv if model.is_conv(module) else None
        base = module.forward if frozen is None else _as_one_operation(module.forward)
        if adapter is not None:
            def forward(x, *args, **kwargs):
                x = settled(x)
                if self.enabled:
                    return adapter.forward(x, base)
                return base(x, *args, **kwargs)
        elif frozen is not None:
            def forward(x, *args, **kwargs):
                x = settled(x)
                if x.requires_grad and torch.is_grad_enabled() and not args and not kwargs:
                    return frozen.apply(x, base, module, model)
                return base(x, *args, **kwargs)
        elif isinstance(module, torch.nn.LayerNorm):
            # Flux adds in place to the tensor its norms have saved for the backward; a copy keeps that one intact.
            # A recorded block makes it where it's needed.
            def forward(x, *args, **kwargs):
                return base(x.clone() if x.requires_grad and recording() is None else x, *args, **kwargs)
        else:
            return None
        return forward

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base alone."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    @contextmanager
    def training_pass(self, step: int, index: int) -> Iterator[None]:
        """Dropout is on, for the forward and the backward of this pass of the step, and the same whenever it is repeated."""
        self._pass = (step, index)
        try:
            yield
        finally:
            self._pass = None

    def _dropout(self, path: str):
        share = self.config.dropout

        def dropped(x: Tensor) -> Tensor:
            if self._pass is None:
                return x
            # Seeded by what it is for: a checkpointed block that runs again, and a resumed run, drop the same values.
            source = torch.Generator(x.device).manual_seed(seed_from("dropout", self._seed, *self._pass, path))
            mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(share, generator=source)
            return x.masked_fill(mask, 0) * (1 / (1 - share))

        return dropped

    @contextmanager
    def weights(self, other: Tensor) -> Iterator[None]:
        """Run with another flat buffer (the weight average), then put the trained one back."""
        with torch.no_grad():
            kept = self.parameters.clone()
            self.parameters.copy_(other)
        try:
            yield
        finally:
            with torch.no_grad():
                self.parameters.copy_(kept)

    @property
    def starts_from_file(self) -> bool:
        return self._neutral is not None

    def neutral(self) -> AbstractContextManager[None]:
        """The adapters as they are before any training, which change nothing: also where the run starts from a file."""
        return nullcontext() if self._neutral is None else self.weights(self._neutral)

    def state_dict(self, flat: Tensor | None = None) -> dict[str, Tensor]:
        """LoRA keys under the host's naming -> CPU tensors; from `flat` when given."""
        values = self.parameters if flat is None else flat
        state, offset = {}, 0
        for path, adapter in self.adapters.items():
            views = {}
            for name, shape in adapter.shapes.items():
                end = offset + _numel(shape)
                views[name], offset = adapter.view(name, values[offset:end]), end
            own = adapter.tensors
            adapter.tensors = views
            for suffix, tensor in adapter.state().items():
                state[f"{self.model.key_prefix}{path}.{suffix}"] = tensor.detach().to("cpu", copy=True).contiguous()
            adapter.tensors = own
        return state

    def peft_config(self, base_model: str) -> dict:
        """adapter_config.json as PEFT writes it."""
        layers = [path for path, module in self.model.network.named_modules() if self.model.is_linear(module) or self.model.is_conv(module)]
        return peft_config(self.config, self.adapters, base_model, layers=layers, prefix=self.model.key_prefix)


def _as_one_operation(forward):
    """A frozen layer in a block's record: to be run again it is called again, whatever it does inside."""

    def run(x, *args, **kwargs):
        tape = recording()
        return forward(x, *args, **kwargs) if tape is None or args or kwargs else tape.product(forward, x)

    return run


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
