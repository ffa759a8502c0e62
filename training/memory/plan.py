"""A run's plan of memory: what is kept, what lies where, and what that is predicted to need. It decides nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

from ..messages import Listed, message

GB = 1e9  # as cards are sold and as this project counts

KEEP_WORDS = {
    "everything": message("plan.keep_everything", "blocks keep everything"),
    "products": message("plan.keep_products", "blocks keep attention and the dear products"),
    "attention": message("plan.keep_attention", "blocks keep attention's outputs"),
    "blocks": message("plan.keep_inputs", "blocks keep their inputs and run again"),
}
AS_LOADED = "as-loaded"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    batch_size: int  # of a forward pass
    accumulation: int
    keep: str = "everything"  # see training.saving
    keep_in_ram: bool = False
    blocks_streamed: int = 0
    base_format: str = AS_LOADED
    optimizer_state: str = "device"
    weight_average: str = "device"
    latents: str = "cpu"  # pictures and captions: "cpu" or, where they are too many, "disk"; a batch at a time goes to the device
    evaluation_batch: int = 4
    attention: str = "auto"
    cuda_graph: str = "auto"
    compile: str = "off"
    predicted: dict[str, int] = field(default_factory=dict)  # bytes by part at the fullest moment; empty: not predicted
    phases: dict[str, int] = field(default_factory=dict)  # bytes at the peak of a step, of an evaluation, of the samples
    step_seconds: float | None = None  # only as measured on this machine

    @property
    def peak_bytes(self) -> int | None:
        return max(self.phases.values()) if self.phases else None

    def same_choice(self, other: "MemoryPlan") -> bool:
        chosen = [f.name for f in fields(self) if f.name not in ("predicted", "phases", "step_seconds")]
        return all(getattr(self, name) == getattr(other, name) for name in chosen)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "MemoryPlan":
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def words_of(plan: MemoryPlan) -> str:
    """What is special about a plan, in a few words."""
    keep = KEEP_WORDS[plan.keep]
    said = [message("plan.in_ram", "{keep} (in the computer's memory)", keep=keep) if plan.keep_in_ram else keep]
    if plan.base_format != AS_LOADED:
        said.append(message("plan.base_in", "base in {format}", format=plan.base_format))
    if plan.blocks_streamed:
        said.append(message("plan.streamed", "{blocks} blocks streamed", blocks=plan.blocks_streamed))
    if plan.optimizer_state == "cpu":
        said.append(message("plan.optimizer_in_ram", "optimiser state in the computer's memory"))
    if plan.weight_average == "cpu":
        said.append(message("plan.average_in_ram", "weight average in the computer's memory"))
    said.append(message("plan.batch", "batch {batch}", batch=plan.batch_size) if plan.accumulation == 1 else message(
        "plan.batch_accumulated", "batch {batch} x {accumulation}", batch=plan.batch_size, accumulation=plan.accumulation,
    ))
    return Listed(said, last=", ")


def size_words(size_bytes: float) -> str:
    return f"{size_bytes / GB:.1f} GB" if size_bytes >= GB else f"{size_bytes / 1e6:.0f} MB"
