"""Safetensors that are larger than memory: written from files that grew row by row, read by mapping.

The `safetensors` library wants whole arrays to write. The format is a length, a JSON header and the bytes one after another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from api.services.exchange.files import whole_file
from schema.errors import InputError

NAMES = {
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
}
KINDS = {short: kind for kind, short in NAMES.items()}
COPY = 1 << 20
"""Values copied at once."""
LONGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Spool:
    """An array on disk that grew at its end."""

    path: Path
    kind: str
    """As it lies on disk."""
    width: int
    """Values a row; 0 for an array of one dimension."""

    def append(self, file: IO[bytes], values: npt.NDArray[Any]) -> None:
        file.write(np.ascontiguousarray(values, self.kind).tobytes())

    @property
    def n_rows(self) -> int:
        return self.path.stat().st_size // np.dtype(self.kind).itemsize // max(self.width, 1)

    @property
    def shape(self) -> list[int]:
        return [self.n_rows, self.width] if self.width else [self.n_rows]

    def pieces(self, kind: str) -> Iterator[bytes]:
        """Its bytes as another kind of number."""
        with self.path.open("rb") as file:
            while block := file.read(COPY * np.dtype(self.kind).itemsize):
                yield np.frombuffer(block, self.kind).astype(kind, copy=False).tobytes()


def write_tensors(path: Path, spools: Mapping[str, tuple[Spool, str]]) -> None:
    """Writes spooled arrays, each as the kind of number given, as one safetensors file."""
    header: dict[str, Any] = {}
    offset = 0
    for name, (spool, kind) in spools.items():
        size = int(np.prod(spool.shape)) * np.dtype(kind).itemsize
        header[name] = {"dtype": NAMES[kind], "shape": spool.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spool, kind in spools.values():
            for piece in spool.pieces(kind):
                file.write(piece)


def map_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped and not read.

    Raises:
        InputError: it is none.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LONGEST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _mapped(path, 8 + length, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is no safetensors file: {str(error)[:200]}") from None


def _mapped(path: Path, begin: int, entry: dict[str, Any]) -> npt.NDArray[Any]:
    shape = tuple(int(n) for n in entry["shape"])
    if 0 in shape:
        return np.empty(shape, KINDS[entry["dtype"]])
    return np.memmap(path, KINDS[entry["dtype"]], "r", begin + int(entry["data_offsets"][0]), shape)
