"""A run's plan of memory: what is kept, what lies where, and what that is predicted to need. It decides nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields

GB = 1e9  # as cards are sold and as this project counts

KEEP_WORDS = {
    "everything": "blocks keep everything",
    "products": "blocks keep attention and the dear products",
    "attention": "blocks keep attention's outputs",
    "blocks": "blocks keep their inputs and run again",
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
    said = [KEEP_WORDS[plan.keep] + (" (in the computer's memory)" if plan.keep_in_ram else "")]
    if plan.base_format != AS_LOADED:
        said.append(f"base in {plan.base_format}")
    if plan.blocks_streamed:
        said.append(f"{plan.blocks_streamed} blocks streamed")
    if plan.optimizer_state == "cpu":
        said.append("optimiser state in the computer's memory")
    if plan.weight_average == "cpu":
        said.append("weight average in the computer's memory")
    said.append(f"batch {plan.batch_size}" + (f" x {plan.accumulation}" if plan.accumulation > 1 else ""))
    return ", ".join(said)


def size_words(size_bytes: float) -> str:
    return f"{size_bytes / GB:.1f} GB" if size_bytes >= GB else f"{size_bytes / 1e6:.0f} MB"
