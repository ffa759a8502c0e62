"""A choice of plan in words: one sentence for a run's notes, and a table for the log."""

from __future__ import annotations

from ..messages import Listed, message
from .plan import MemoryPlan, size_words, words_of
from .search import Choice

PART_WORDS = {
    "base": message("plan.part_base", "base"), "adapters": "LoRA", "gradients": message("plan.part_gradients", "gradients"),
    "optimizer": message("plan.part_optimizer", "optimiser"), "average": message("plan.part_average", "average"),
    "saved": message("plan.part_saved", "kept for the backward"), "working": message("plan.part_working", "working memory"),
}


def parts_words(plan: MemoryPlan) -> str:
    parts = [message("plan.part", "{part} {size}", part=PART_WORDS[name], size=size_words(size)) for name, size in plan.predicted.items() if size]
    return Listed(parts, last=", ")


def verdict(plan: MemoryPlan, limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return ""
    return message("plan.fits", "fits") if plan.peak_bytes <= limit_bytes else message("plan.too_large", "does not fit")


def _time(plan: MemoryPlan) -> str:
    return message("plan.time", ", {seconds} s a step when it was measured here", seconds=f"{plan.step_seconds:.2g}") if plan.step_seconds else ""


def sentence(choice: Choice) -> str:
    """The chosen plan: what a run's notes say."""
    plan, limit = choice.plan, choice.limit_bytes
    return message(
        "plan.chosen", "Memory plan{pinned}: {plan}. Predicted peak {peak}{room}{time}: {parts}.",
        pinned=message("plan.pinned", " (the run's own from before)") if choice.pinned else "", plan=words_of(plan), peak=size_words(plan.peak_bytes),
        room=message("plan.room", " of {size} that may be used", size=size_words(limit)) if limit is not None else "", time=_time(plan), parts=parts_words(plan),
    )


def alternatives_sentence(choice: Choice) -> str:
    said = [
        message("plan.other", "{plan} {size}", plan=words_of(plan), size=size_words(plan.peak_bytes)) if choice.limit_bytes is None else message(
            "plan.other_fits", "{plan} {size} ({fits})", plan=words_of(plan), size=size_words(plan.peak_bytes), fits=verdict(plan, choice.limit_bytes),
        )
        for plan in choice.alternatives
    ]
    return message("plan.others", "Other plans: {plans}.", plans=Listed(said, comma="; ", last="; ")) if said else ""


def rows(choice: Choice) -> list[dict]:
    """The chosen plan first; for the report and for programs."""
    return [
        {
            "chosen": plan is choice.plan, "plan": words_of(plan), "predicted_bytes": plan.peak_bytes, "fits": choice.limit_bytes is None or plan.peak_bytes <= choice.limit_bytes,
            "step_seconds": plan.step_seconds,
        }
        for plan in (choice.plan, *choice.alternatives)
    ]


def table(choice: Choice) -> str:
    """For the log, a line a plan."""
    lines = []
    for plan in (choice.plan, *choice.alternatives):
        mark = "->" if plan is choice.plan else "  "
        lines.append(f"{mark} {size_words(plan.peak_bytes):>9}  {verdict(plan, choice.limit_bytes):12}  {words_of(plan)}{_time(plan)}")
    limit = f" (limit {size_words(choice.limit_bytes)})" if choice.limit_bytes is not None else ""
    return "\n".join([f"Memory plan{limit}:", *lines])
