"""Reads the canvas's scripts as text: without their comments, and what they say in words of their own."""

from __future__ import annotations

import re

# Strings first: what looks like a comment in one is none.
TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`(?:\\.|[^`\\])*`|//[^\n]*|/\*.*?\*/', re.S)
WORDS = r"""(?:"[^"\n]*"|'[^'\n]*'|`[^`]*`)"""
SHOWN = "textContent|innerText|title|tooltip|ariaLabel|ariaValueText|ariaDescription|placeholder|alt|label|summary|detail"
SPOKEN = (
    re.compile(rf"\b(?:{SHOWN})\s*[:=]\s*({WORDS})"),
    re.compile(rf"""setAttribute\(\s*["'](?:aria-label|aria-description|aria-valuetext|title|alt|placeholder)["'],\s*({WORDS})"""),
    re.compile(rf"\b(?:toast|confirmed|asked|alert|confirm|prompt)\((?:[^()]*,\s*)?({WORDS})"),
    re.compile(rf"new (?:\w*Error)\(\s*({WORDS})"),
    re.compile(r"""element\(\s*"\w+",\s*(?:"[^"]*"|\{\}),\s*("[^"]*[A-Za-z]{2,}[^"]*")"""),
)
SAME = {"success", "info", "error", "warn", "Pistachio", "HTTP"}  # in every language, or no words at all
KEY = re.compile(r"\w+(?:\.\w+)+")


def without_comments(source: str) -> str:
    return TOKEN.sub(lambda token: "" if token[0].startswith("/") else token[0], source)


def spoken_literals(source: str) -> list[str]:
    """Texts for people that stand in a script, where a key of the tables should be."""
    code = without_comments(source)
    found = [text for pattern in SPOKEN for text in pattern.findall(code)]
    return [text for text in found if set(re.findall(r"[A-Za-z]{2,}", words := _fixed(text))) - SAME and not KEY.fullmatch(words)]


def _fixed(text: str) -> str:
    """A literal's own letters, without the values that a template puts in."""
    words = text[1:-1]
    while (shorter := re.sub(r"\$?\{[^{}]*\}", "", words)) != words:
        words = shorter
    return words
