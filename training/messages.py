"""Sentences that a page can say in another language: English for people, files and logs, and beside it which sentence it is.

A `Message` is its English text; `as_json` gives its code and values. The English of a code stands once, where the sentence is
made; what other languages say by the code is in js/words/server, and a hygiene test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Message(str):
    """Its text in English, with `code` and `values`: whole numbers, texts, other messages and lists of these."""

    __slots__ = ("code", "values")

    def __new__(cls, text: str, code: str, values: dict[str, Any]) -> "Message":
        self = super().__new__(cls, text)
        self.code, self.values = code, values
        return self

    def __getnewargs__(self) -> tuple:
        return str(self), self.code, self.values


class Listed(str):
    """Several values as one: 'a, b and c' in English."""

    __slots__ = ("items", "separators")

    def __new__(cls, items: Sequence[Any], *, comma: str = ", ", last: str = " and ") -> "Listed":
        *most, end = map(str, items) if items else ("",)
        self = super().__new__(cls, f"{comma.join(most)}{last}{end}" if most else end)
        self.items, self.separators = tuple(items), {"comma": comma, "last": last}
        return self

    def __getnewargs_ex__(self) -> tuple:
        return (self.items,), self.separators


def message(code: str, english: str, **values: Any) -> Message:
    """`english`: literal, with {name} for each value. A number that is not whole comes as the text to be shown."""
    for name, value in values.items():
        if not isinstance(value, (str, int)):
            raise TypeError(f"{code}: {name} is {value!r}; give a text or a whole number.")
    return Message(english.format(**values), code, values)


def counted(code: str, count: int, one: str, other: str, **values: Any) -> Message:
    """`one` for a count of 1, else `other`; both may have {count}."""
    return message(code, one if count == 1 else other, count=count, **values)


def known(text: str, found: dict | None) -> str:
    """A sentence that was kept as text and `as_json`, as it was."""
    return Message(text, found["code"], found["values"]) if found else text


def as_json(text: str) -> dict | None:
    """None for a text that has no code: it is shown as it is."""
    return {"code": text.code, "values": {name: _value(value) for name, value in text.values.items()}} if isinstance(text, Message) else None


def _value(value: Any) -> Any:
    """Numbers as texts: written as the English sentence writes them."""
    if isinstance(value, (dict, list)):
        return value  # of a `known` one
    if isinstance(value, Listed):
        return [_value(item) for item in value.items]
    return as_json(value) or str(value)
