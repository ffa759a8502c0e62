"""What a check says: one finding a topic, and the report of all of them as JSON.

Owns the record and its order. Knows nothing about how anything is found.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

GOOD, NOTE, WARNING, STOP = "good", "note", "warning", "stop"
SEVERITIES = (GOOD, NOTE, WARNING, STOP)  # from best to worst


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    code: str  # for programs: "blurred"
    topic: str  # for people: "Sharpness"
    severity: str  # one of SEVERITIES
    words: str  # what is the case
    advice: str = ""  # what to do about it; only what is good needs none
    pictures: tuple[str, ...] = ()  # relative paths of those concerned

    def __post_init__(self):
        assert self.severity == GOOD or self.advice, self.code


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
    def verdict(self) -> str:
        stops, warnings = len(self.of(STOP)), len(self.of(WARNING))
        if stops:
            return "Not ready: one thing stops training" if stops == 1 else f"Not ready: {stops} things stop training"
        if warnings:
            return "Can be trained, with one thing to improve first" if warnings == 1 else f"Can be trained, with {warnings} things to improve first"
        return "Ready to train"

    @property
    def sentences(self) -> tuple[str, ...]:
        """Worst first; what is good is counted."""
        bad = sorted(self.of(NOTE, WARNING, STOP), key=lambda finding: -SEVERITIES.index(finding.severity))
        told = tuple(f"{finding.topic}: {finding.words} {finding.advice}".strip() for finding in bad)
        return (f"{self.verdict}. {len(self.of(GOOD))} of {len(self.findings)} checks are good.", *told)

    def to_json(self) -> str:
        findings = [
            {"code": f.code, "topic": f.topic, "severity": f.severity, "words": f.words, "advice": f.advice, "pictures": list(f.pictures)}
            for f in self.findings
        ]
        return json.dumps({"verdict": self.verdict, "worst": self.worst, "findings": findings, "facts": self.facts}, ensure_ascii=False)
