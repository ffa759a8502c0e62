"""What a check says: one finding a topic, and the report of all of them as JSON.

Owns the record and its order. Knows nothing about how anything is found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ..training.messages import Message, as_json, counted, message

GOOD, NOTE, WARNING, STOP = "good", "note", "warning", "stop"
SEVERITIES = (GOOD, NOTE, WARNING, STOP)  # from best to worst


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    code: str  # for programs: "blurred"
    topic: str  # for people: "Sharpness"; this and the other texts are `Message`s where a page shows them
    severity: str  # one of SEVERITIES
    words: str  # what is the case
    advice: str = ""  # what to do about it; only what is good needs none
    pictures: tuple[str, ...] = ()  # relative paths of those concerned

    def __post_init__(self):
        assert self.severity == GOOD or self.advice, self.code

    @property
    def sentence(self) -> Message:
        return message("check.told", "{topic}: {words} {advice}", topic=self.topic, words=self.words, advice=self.advice)

    def as_json(self) -> dict:
        return {
            "code": self.code, "topic": self.topic, "severity": self.severity, "words": self.words, "advice": self.advice, "pictures": list(self.pictures),
        }

    def messages(self) -> dict:
        """Its texts for a page that says them in another language."""
        return {f"{name}_message": as_json(text) for name, text in (("topic", self.topic), ("words", self.words), ("advice", self.advice))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    findings: tuple[Finding, ...]
    facts: dict = field(default_factory=dict)  # counts and lists that the score card draws; JSON values

    def of(self, *severities: str) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity in severities)

    @property
    def worst(self) -> str:
        return max((finding.severity for finding in self.findings), key=SEVERITIES.index, default=GOOD)

    @property
    def verdict(self) -> Message:
        stops, warnings = len(self.of(STOP)), len(self.of(WARNING))
        if stops:
            return counted("check.not_ready", stops, "Not ready: one thing stops training", "Not ready: {count} things stop training")
        if warnings:
            return counted(
                "check.warned", warnings, "Can be trained, with one thing to improve first", "Can be trained, with {count} things to improve first",
            )
        return message("check.ready", "Ready to train")

    @property
    def sentences(self) -> tuple[str, ...]:
        """Worst first; what is good is counted."""
        bad = sorted(self.of(NOTE, WARNING, STOP), key=lambda finding: -SEVERITIES.index(finding.severity))
        good = message("check.good", "{verdict}. {good} of {count} checks are good.", verdict=self.verdict, good=len(self.of(GOOD)), count=len(self.findings))
        return (good, *(finding.sentence for finding in bad))

    def to_json(self) -> str:
        findings = [finding.as_json() for finding in self.findings]
        return json.dumps({"verdict": self.verdict, "worst": self.worst, "findings": findings, "facts": self.facts}, ensure_ascii=False)
