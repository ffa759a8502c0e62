"""What a plan needs, by adding up what was counted: stored weights, adapters, their optimiser, and traces of a step.

It knows sizes and how they combine. Where they come from (a host's model, a trace on its shadow) is the business of
whoever makes the `Facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..streaming.blocks import resident_bytes
from .plan import AS_LOADED, MemoryPlan
from .trace import StepTrace


BLOCKS_ON_DEVICE = 2  # what is kept in RAM is on the device for the block in work and the one whose copy is under way


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseSize:
    """The frozen network in one format."""

    total_bytes: int
    block_bytes: tuple[int, ...]  # of each block, in order
    largest_layer_bytes: int = 0  # of a layer unpacked for its product, where the format needs that


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSize:
    state_bytes: int
    work_bytes: int  # held while it steps, and given back


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that plans of one run have in common. Traces are made when they are first asked for."""

    base: Mapping[str, BaseSize]  # by format; AS_LOADED is always there
    optimizer: OptimizerSize
    trace: Callable[[int, str], StepTrace]  # (pictures, keep)
    forward_bytes: Callable[[int], int]  # (pictures): the peak of a forward without gradients
    sample_bytes: Callable[[], int] | None = None  # peak beside the weights while samples are made
    decode_bytes: int = 0  # of the VAE while it decodes one; the host then takes the network away if it must
    has_held_out: bool = True
    num_blocks: int = 0


def base_on_device(size: BaseSize, num_streamed: int) -> int:
    """Bytes of weights on the device; streamed blocks take a few slots between them."""
    return size.total_bytes - sum(size.block_bytes) + resident_bytes(size.block_bytes, num_streamed)


def predict(plan: MemoryPlan, facts: Facts) -> MemoryPlan:
    """The plan with its parts and phases, in bytes of the device's memory."""
    base = facts.base[plan.base_format]
    step = facts.trace(plan.batch_size, plan.keep)
    adapters = step.adapter_bytes
    parts = {
        "base": base_on_device(base, plan.blocks_streamed),
        "adapters": adapters,
        "gradients": adapters,
        "optimizer": facts.optimizer.state_bytes if plan.optimizer_state == "device" else 0,
        "average": adapters if plan.weight_average == "device" else 0,
    }
    held = sum(parts.values())
    saved, peak = step.saved_bytes, step.peak_bytes
    if plan.keep_in_ram:
        away = round(saved * (1 - min(1, BLOCKS_ON_DEVICE / max(1, facts.num_blocks))))
        saved, peak = saved - away, peak - away
    unpacked = 0 if plan.base_format == AS_LOADED else base.largest_layer_bytes
    working = peak - saved + unpacked
    phases = {"step": held + max(saved + working, facts.optimizer.work_bytes)}
    if facts.has_held_out:
        # Measured with the average in the weights' place, which are kept beside it.
        phases["evaluation"] = held + adapters + facts.forward_bytes(plan.evaluation_batch) + unpacked
    if facts.sample_bytes is not None:
        phases["samples"] = max(
            held + adapters + facts.sample_bytes() + unpacked, held + adapters - parts["base"] + facts.decode_bytes
        )
    return replace(plan, predicted=parts | {"saved": saved, "working": working}, phases=phases)
