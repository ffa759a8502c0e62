"""Captions as text: reading and writing sidecar files, adding and removing the trigger word.

Knows nothing about pictures' pixels or about who wrote a caption.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..training.errors import PistachioError
from .files import atomic_write_bytes, atomic_write_text

__all__ = [
    "atomic_write_bytes", "atomic_write_text", "has_trigger", "more_caption_paths", "read_caption", "read_caption_table",
    "with_trigger", "without_trigger", "write_caption",
]

CAPTION_TABLE = "captions.json"  # {"picture.png": ["one caption", "another"]}
MOST_SIDECARS = 100


def read_caption(path: Path) -> str | None:
    """The sidecar's text without surrounding blanks; None if there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PistachioError(f"The caption '{path}' can't be read: {error.strerror or error}. Check the file's permissions.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PistachioError(
            f"The caption '{path}' is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}). "
            "Open it in a text editor and save it with the encoding UTF-8, or delete it to caption that picture again."
        ) from error
    if "\0" in text:
        raise PistachioError(f"The caption '{path}' holds binary data or UTF-16 text. Save it with the encoding UTF-8, or delete it.")
    return text.strip()


def more_caption_paths(caption_path: Path, stems: frozenset[str] | set[str]) -> list[Path]:
    """'name.2.txt', 'name.3.txt', ... as far as they go, beside 'name.txt'. `stems`: of the folder's pictures, whose own sidecars these may be."""
    found = []
    for number in range(2, MOST_SIDECARS):
        path = caption_path.with_name(f"{caption_path.stem}.{number}.txt")
        if path.stem in stems or not path.exists():
            break
        found.append(path)
    return found


def read_caption_table(folder: Path) -> dict[str, tuple[str, ...]]:
    """File name -> captions, from the folder's captions.json; empty without one."""
    path = folder / CAPTION_TABLE
    text = read_caption(path)
    if text is None:
        return {}
    try:
        table = json.loads(text)
        if not isinstance(table, dict):
            raise ValueError("it is no object")
        captions = {name: (entry,) if isinstance(entry, str) else tuple(entry) for name, entry in table.items()}
        wrong = [name for name, entry in captions.items() if not entry or not all(isinstance(caption, str) for caption in entry)]
        if wrong:
            raise ValueError(f"'{wrong[0]}' has no list of texts")
    except (ValueError, TypeError) as error:
        example = '{"picture.png": ["one caption", "another"]}'
        raise PistachioError(f"'{path}' can't be used ({error}). Write {example}, or remove the file.") from error
    return {name: tuple(caption.strip() for caption in entry) for name, entry in captions.items()}


def write_caption(path: Path, text: str) -> None:
    """Write a sidecar atomically, UTF-8 without a byte-order mark."""
    atomic_write_text(path, text.strip() + "\n")


def _whole_word(trigger: str, flags: int = 0) -> re.Pattern[str]:
    # \b would fail for triggers that begin or end with a sign, such as "<ohwx>"
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", flags)


def has_trigger(caption: str, trigger: str) -> bool:
    """Is the trigger in it as a whole word, in the same case?"""
    return bool(trigger) and _whole_word(trigger).search(caption) is not None


def with_trigger(caption: str, trigger: str) -> str:
    """'trigger, caption', unless the caption already has the trigger as a whole word in the same case."""
    trigger, caption = trigger.strip(), caption.strip()
    if not trigger or has_trigger(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def without_trigger(caption: str, trigger: str) -> str:
    """The caption with every occurrence of the trigger, in any case, taken out and the commas tidied."""
    trigger = trigger.strip()
    if not trigger:
        return caption.strip()
    text = _whole_word(trigger, re.IGNORECASE).sub("", caption)
    if text == caption:
        return caption.strip()
    text = re.sub(r"[ \t]+([,.;:])", r"\1", text)
    text = re.sub(r"(,\s*)+,", ",", text)
    return re.sub(r"[ \t]{2,}", " ", text).strip(" ,\t\n")
