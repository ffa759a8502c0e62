"""Which plan: the first that fits on a ladder from the quickest to the leanest.

The order is by what a step costs. To keep everything costs nothing; to run blocks again costs up to a third of a step, and
least where only the cheap operations run again; optimiser state in the computer's memory costs a copy a step; streamed
blocks cost what the copies don't hide; and another format of the base changes what is computed, so it comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..config import TrainConfig
from ..config.memory import AUTO, MemoryConfig
from ..errors import PistachioError
from .estimate import Facts, predict
from .plan import AS_LOADED, MemoryPlan, size_words, words_of

KEEP_ORDER = ("everything", "products", "attention", "blocks")
FORMAT_ORDER = ("fp8-row", "int8-convrot", "nf4")  # by what they save; only where the base is offered in them
EVALUATION_BATCH = 4  # keeps a forward without gradients busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    plan: MemoryPlan
    limit_bytes: int | None  # None: nothing was asked to fit
    alternatives: tuple[MemoryPlan, ...]  # one for each other way, predicted
    pinned: bool = False  # the run's own from before


@dataclass(frozen=True, kw_only=True, slots=True)
class Allowed:
    """What a plan may choose from."""

    keeps: tuple[str, ...]
    batches: tuple[int, ...]  # pictures in a forward pass
    can_offload: bool  # a device with memory of its own
    limit_bytes: int | None


def allowed(config: TrainConfig, memory: MemoryConfig, *, has_blocks: bool, on_cpu: bool, limit_bytes: int | None) -> Allowed:
    if config.block_checkpointing != "auto" and memory.keep != AUTO:
        wanted = {"on": "blocks", "off": "everything"}[config.block_checkpointing]
        if wanted != memory.keep:
            raise PistachioError(
                f"Block checkpointing is '{config.block_checkpointing}' on Train LoRA, and keep is '{memory.keep}' in Memory Settings. "
                "Set block checkpointing to 'auto', or keep to 'auto'."
            )
    if config.block_checkpointing != "auto":
        keeps = ("blocks",) if config.block_checkpointing == "on" else ("everything",)
    elif memory.keep != AUTO:
        keeps = (memory.keep,)
    else:
        keeps = KEEP_ORDER if has_blocks else ("everything",)
    if not has_blocks and keeps != ("everything",):
        raise PistachioError("This model has no known blocks to run again. Set block checkpointing to 'off' on Train LoRA and keep to 'auto' in Memory Settings.")
    if memory.batch == "effective":
        total = config.effective_batch
        batches = tuple(size for size in range(total, 0, -1) if total % size == 0)
    else:
        batches = (config.batch_size,)
    return Allowed(keeps=keeps, batches=batches, can_offload=not on_cpu, limit_bytes=limit_bytes)


def ladder(config: TrainConfig, memory: MemoryConfig, choice: Allowed, facts: Facts) -> Iterator[MemoryPlan]:
    """Plans not yet predicted, the quickest first."""
    first = MemoryPlan(
        batch_size=choice.batches[0], accumulation=config.effective_batch // choice.batches[0], keep=choice.keeps[0], keep_in_ram=memory.keep_in_ram,
        evaluation_batch=max(EVALUATION_BATCH, choice.batches[0]), attention=memory.attention, cuda_graph=memory.cuda_graph, compile=memory.compile,
        optimizer_state="cpu" if memory.optimizer_state == "cpu" else "device", weight_average="cpu" if memory.weight_average == "cpu" else "device",
        blocks_streamed=max(0, memory.blocks_streamed),
    )
    formats = (AS_LOADED, *(name for name in FORMAT_ORDER if name in facts.base)) if memory.base_format == AUTO else (memory.base_format,)
    for base_format in formats:
        start = replace(first, base_format=base_format)
        for keep in choice.keeps:
            for batch in choice.batches:
                yield replace(
                    start, keep=keep, batch_size=batch, accumulation=config.effective_batch // batch, evaluation_batch=max(EVALUATION_BATCH, batch),
                )
        leanest = replace(
            start, keep=choice.keeps[-1], batch_size=choice.batches[-1], accumulation=config.effective_batch // choice.batches[-1], evaluation_batch=1,
        )
        yield leanest
        if not choice.can_offload:
            continue
        if memory.weight_average == AUTO:
            leanest = replace(leanest, weight_average="cpu")
            yield leanest
        if memory.optimizer_state == AUTO:
            leanest = replace(leanest, optimizer_state="cpu")
            yield leanest
        if memory.blocks_streamed < 0:
            count = len(facts.base[base_format].block_bytes)
            for num_streamed in range(1, count + 1):
                yield replace(leanest, blocks_streamed=num_streamed)


def choose(config: TrainConfig, memory: MemoryConfig, choice: Allowed, facts: Facts) -> Choice:
    """Raises PistachioError when nothing fits, naming the leanest and what it needs."""
    limit, least = choice.limit_bytes, None
    for plan in ladder(config, memory, choice, facts):
        plan = predict(plan, facts)
        if limit is None or plan.peak_bytes <= limit:
            return Choice(plan=plan, limit_bytes=limit, alternatives=alternatives(plan, choice, facts))
        if least is None or plan.peak_bytes < least.peak_bytes:
            least = plan
    raise DoesNotFit(least, limit)


def leaner(plan: MemoryPlan, config: TrainConfig, memory: MemoryConfig, choice: Allowed, facts: Facts) -> MemoryPlan | None:
    """The next on the ladder that is predicted to need less; None at its end."""
    for other in ladder(config, memory, choice, facts):
        other = predict(other, facts)
        if other.peak_bytes < plan.peak_bytes and not other.same_choice(plan):
            return other
    return None


def alternatives(plan: MemoryPlan, choice: Allowed, facts: Facts) -> tuple[MemoryPlan, ...]:
    """The same plan at each other keep level, in each other format, with the chosen one left out."""
    found = [replace(plan, keep=keep, keep_in_ram=False) for keep in choice.keeps if keep != plan.keep]
    found += [replace(plan, base_format=name) for name in facts.base if name != plan.base_format]
    if plan.blocks_streamed:
        found.append(replace(plan, blocks_streamed=0))
    return tuple(predict(other, facts) for other in found)


class DoesNotFit(PistachioError):
    """No plan that the settings allow fits; `least` is the leanest of them."""

    def __init__(self, least: MemoryPlan, limit_bytes: int, nearest: str = ""):
        self.least, self.limit_bytes = least, limit_bytes
        short = least.peak_bytes - limit_bytes
        super().__init__(
            f"This run does not fit: its leanest plan ({words_of(least)}) needs {size_words(least.peak_bytes)}, and {size_words(limit_bytes)} may be "
            f"used ({size_words(short)} too little). {nearest or 'Choose a lower resolution on Encode Dataset, a lower batch size on Train LoRA, or a smaller base file.'}"
        )
