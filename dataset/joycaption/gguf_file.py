"""What a GGUF file says of itself, and whether it is whole, without reading its weights.

Owns the few parts of the format that this needs. Knows nothing of how a model is run.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...training.errors import PistachioError

MAGIC = b"GGUF"
LANGUAGE_MODEL, PROJECTOR = "llama", "clip"  # general.architecture of JoyCaption's two files
TOKENS = "tokenizer.ggml.tokens"
MOST_STRING_BYTES, MOST_ENTRIES = 1 << 24, 1 << 24  # more than any model has: a damaged file asks for it
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufFile:
    path: Path
    values: dict[str, Any]  # keys and values; of arrays only the tokens
    size_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def name(self) -> str:
        return str(self.values.get("general.name", ""))

    def token(self, key: str) -> str:
        """The text of a special token, such as 'bos'; empty where the file names none."""
        number, tokens = self.values.get(f"tokenizer.ggml.{key}_token_id"), self.values.get(TOKENS, ())
        return tokens[number] if number is not None and number < len(tokens) else ""


def read_gguf(path: Path) -> GgufFile:
    """The head of a GGUF file. PistachioError: it is no such file, or cut short."""
    size_bytes = path.stat().st_size
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise PistachioError(f"'{path}' is not a GGUF file. Choose a file that ends in .gguf, as llama.cpp writes it.")
            version, num_tensors, num_values = struct.unpack("<IQQ", _exactly(file, 20))
            if version not in (2, 3):
                raise PistachioError(f"'{path}' is of GGUF version {version}; versions 2 and 3 can be read. Download a newer file of the model.")
            values = {}
            for _ in range(_count(num_values)):
                key = _string(file)
                values[key] = _value(file, _number(file, "<I"), keep=key == TOKENS)
            ends = [_tensor_offset(file) for _ in range(_count(num_tensors))]
            alignment = int(values.get("general.alignment", 32))
            data_start = -(-file.tell() // alignment) * alignment
    except (struct.error, EOFError, ValueError, UnicodeDecodeError) as error:
        raise PistachioError(f"'{path}' is damaged or cut short ({error}). Download it again.") from error
    if ends and data_start + max(ends) >= size_bytes:
        raise PistachioError(f"'{path}' is cut short: its last weights begin at byte {data_start + max(ends)} and it has {size_bytes} bytes. Download it again.")
    return GgufFile(path=path, values=values, size_bytes=size_bytes)


def _exactly(file: BinaryIO, size_bytes: int) -> bytes:
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise EOFError(f"it ends at byte {file.tell()}")
    return data


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]


def _count(number: int) -> int:
    if number > MOST_ENTRIES:
        raise ValueError(f"it speaks of {number} entries")
    return number


def _string(file: BinaryIO) -> str:
    size_bytes = _number(file, "<Q")
    if size_bytes > MOST_STRING_BYTES:
        raise ValueError(f"it holds a text of {size_bytes} bytes")
    return _exactly(file, size_bytes).decode("utf-8", "replace")  # a token may be a part of a letter


def _value(file: BinaryIO, kind: int, *, keep: bool) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind in _SCALARS:
        return _number(file, _SCALARS[kind])
    if kind != _ARRAY:
        raise ValueError(f"it holds a value of unknown kind {kind}")
    element, count = _number(file, "<I"), _count(_number(file, "<Q"))
    if element in _SCALARS:
        _exactly(file, count * struct.calcsize(_SCALARS[element]))
        return None
    elements = [_value(file, element, keep=False) for _ in range(count)]
    return tuple(elements) if keep else None


def _tensor_offset(file: BinaryIO) -> int:
    _string(file)
    num_dimensions = _number(file, "<I")
    if num_dimensions > 8:
        raise ValueError(f"it speaks of a weight with {num_dimensions} dimensions")
    _exactly(file, 8 * num_dimensions + 4)  # sizes and type
    return _number(file, "<Q")
