"""GGUF control vectors, as repeng, llama.cpp and EasySteer exchange them: a tensor `direction.<layer>` for each layer.

`<layer>` is the block whose output the vector is added to, counted from 0, in all three, so it is our layer as it stands: repeng trains
`direction.n` on `hidden_states[n + 1]`, and llama.cpp adds it after block n. Two traps: llama.cpp has no `direction.0` and refuses a
file that has it, and its own cvector-generator trains `direction.n` on the output of block n - 1 (import those with layer_shift -1).

Read with a reader of our own, because the `gguf` package trusts the counts that a file states and can be kept busy for ever by a wrong
one. Here nothing is believed before it is known to lie within the file.
"""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.steering.files.vector_file import VectorFile, check_digest, checked, digest_of
from schema.errors import InputError

MAGIC = b"GGUF"
ALIGNMENT = 32
ARCHITECTURE = "controlvector"
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TENSORS = {0: "<f4", 1: "<f2", 28: "<f8"}
"""F32, F16, F64."""
_BF16 = 30
MOST_ENTRIES = 100_000
DEEPEST = 4
_NAME = re.compile(r"direction\.(\d{1,5})")


def write_gguf(file: VectorFile) -> bytes:
    """The file's bytes, version 3."""
    said = [
        ("general.architecture", ARCHITECTURE),
        (f"{ARCHITECTURE}.model_hint", file.family or file.model or "unknown"),
        (f"{ARCHITECTURE}.layer_count", len(file.layers)),
    ]
    more = {
        "general.name": file.name,
        "general.description": file.description,
        "scopebase.model": file.model,
        "scopebase.sha256": digest_of(file.layers),
    }
    said += [(key, value) for key, value in more.items() if value is not None]
    out = bytearray(MAGIC + struct.pack("<IQQ", 3, len(file.layers), len(said)))
    for key, value in said:
        number = isinstance(value, int)
        out += _string(key) + struct.pack("<I", _UINT32 if number else _STRING)
        out += struct.pack("<I", value) if number else _string(str(value))
    offset = 0
    for layer, vector in file.layers.items():
        out += _string(f"direction.{layer}") + struct.pack("<IQIQ", 1, len(vector), 0, offset)
        offset += _padded(vector.nbytes)
    out += bytes(_padded(len(out)) - len(out))
    for vector in file.layers.values():
        out += vector.astype("<f4").tobytes().ljust(_padded(vector.nbytes), b"\0")
    return bytes(out)


def read_gguf(data: bytes) -> VectorFile:
    """A control vector.

    Raises:
        InputError: no GGUF file, a model in place of a vector, or a file that is not whole.
    """
    reader = _Reader(data)
    version, n_tensors, n_entries = reader.header()
    if version not in (2, 3):
        raise InputError(f"the file is GGUF of version {version}; versions 2 and 3 are read")
    said = {}
    for _ in range(n_entries):
        key = reader.string()
        said[key] = reader.value(reader.scalar("I"))
    if said.get("general.architecture") != ARCHITECTURE:
        named = str(said.get("general.architecture", "file that does not say of what"))[:40]
        raise InputError(f"the GGUF file is a {named}, not a {ARCHITECTURE}")
    places = [reader.tensor() for _ in range(n_tensors)]
    alignment = said.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise InputError(f"the GGUF file has alignment {str(alignment)[:20]}")
    begin = -(-reader.at // alignment) * alignment
    layers: dict[int, npt.NDArray[Any]] = {}
    for name, shape, kind, offset in places:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InputError(f"tensor {name[:60]!r}: a control vector's are called direction.<layer>")
        if int(match[1]) in layers:
            raise InputError(f"the file has layer {int(match[1])} twice")
        layers[int(match[1])] = reader.array(name, shape, kind, begin + offset)
    found = checked(
        layers, model=said.get("scopebase.model"), family=said.get(f"{ARCHITECTURE}.model_hint"),
        name=said.get("general.name"), description=said.get("general.description"),
    )  # fmt: skip
    return check_digest(found, said.get("scopebase.sha256"))


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _padded(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


class _Reader:
    """A place in the file that never goes beyond its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise InputError(f"the GGUF file ends early, at {len(self.data):,} bytes; fetch it again")
        self.at += n
        return self.data[self.at - n : self.at]

    def scalar(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def header(self) -> tuple[int, int, int]:
        if self.take(4) != MAGIC:
            raise InputError("the file is no GGUF file")
        version, n_tensors, n_entries = struct.unpack("<IQQ", self.take(20))
        if n_tensors > MOST_ENTRIES or n_entries > MOST_ENTRIES:
            raise InputError(f"the GGUF file says that it has {max(n_tensors, n_entries):,} entries; that is no vector")
        return version, n_tensors, n_entries

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata entry; an array is passed over."""
        if kind == _STRING:
            return self.string()
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind != _ARRAY or depth == DEEPEST:
            raise InputError(f"the GGUF file has an entry of kind {kind}, which GGUF does not know here")
        inner, n = self.scalar("I"), self.scalar("Q")
        if inner in _SCALARS:
            self.take(n * struct.calcsize("<" + _SCALARS[inner]))
            return None
        for _ in range(n):  # each takes 8 bytes at least, so the file's end stops it
            self.value(inner, depth + 1)
        return None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, kind and place."""
        name, n_dims = self.string(), self.scalar("I")
        if n_dims > 4:
            raise InputError(f"tensor {name[:60]!r} has {n_dims:,} dimensions; a vector has one")
        shape = tuple(self.scalar("Q") for _ in range(n_dims))
        return name, shape, self.scalar("I"), self.scalar("Q")

    def array(self, name: str, shape: tuple[int, ...], kind: int, begin: int) -> npt.NDArray[Any]:
        if len(shape) != 1:
            raise InputError(f"tensor {name[:60]!r} has {len(shape)} dimensions; a vector has one")
        if kind not in _TENSORS and kind != _BF16:
            raise InputError(f"tensor {name[:60]!r} is quantised (kind {kind}); a vector is F32, F16, BF16 or F64")
        stored = np.dtype(_TENSORS.get(kind, "<u2"))
        self.at = begin if begin <= len(self.data) else len(self.data)
        values = np.frombuffer(self.take(shape[0] * stored.itemsize), stored)
        return (values.astype("<u4") << 16).view("<f4") if kind == _BF16 else values
