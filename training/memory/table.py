"""A choice of plan in words: one sentence for a run's notes, and a table for the log."""

from __future__ import annotations

from .plan import MemoryPlan, size_words, words_of
from .search import Choice

PART_WORDS = {
    "base": "base", "adapters": "LoRA", "gradients": "gradients", "optimizer": "optimiser", "average": "average",
    "saved": "kept for the backward", "working": "working memory",
}


def parts_words(plan: MemoryPlan) -> str:
    return ", ".join(f"{PART_WORDS[name]} {size_words(size)}" for name, size in plan.predicted.items() if size)


def verdict(plan: MemoryPlan, limit_bytes: int | None) -> str:
    if limit_bytes is None:
        return ""
    return "fits" if plan.peak_bytes <= limit_bytes else "does not fit"


def _time(plan: MemoryPlan) -> str:
    return f", {plan.step_seconds:.2g} s a step when it was measured here" if plan.step_seconds else ""


def sentence(choice: Choice) -> str:
    """The chosen plan: what a run's notes say."""
    plan, limit = choice.plan, choice.limit_bytes
    room = f" of {size_words(limit)} that may be used" if limit is not None else ""
    pinned = " (the run's own from before)" if choice.pinned else ""
    return f"Memory plan{pinned}: {words_of(plan)}. Predicted peak {size_words(plan.peak_bytes)}{room}{_time(plan)}: {parts_words(plan)}."


def alternatives_sentence(choice: Choice) -> str:
    said = [
        f"{words_of(plan)} {size_words(plan.peak_bytes)}" + (f" ({verdict(plan, choice.limit_bytes)})" if choice.limit_bytes is not None else "")
        for plan in choice.alternatives
    ]
    return f"Other plans: {'; '.join(said)}." if said else ""


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
