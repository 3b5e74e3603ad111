"""Reading label packs: JSONL (plain or gzip), Parquet, and Neuronpedia's explanation exports, told apart by their content."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from api.services.labels import explanations
from schema.errors import InputError
from schema.wire.packs import PACK, PackHeader, PackLabel

LONGEST_LINE = 32 << 20
"""Bytes."""
JSON_COLUMNS = ("examples", "origin", "votes", "comments")
"""Columns of a Parquet pack that hold JSON as text."""
HEADER = b"scopebase_labels"
"""Key of the Parquet metadata that holds the header."""
ROWS = 10_000


@dataclass(frozen=True)
class Line:
    """One label of a pack, and where it stands."""

    place: str
    """For people: `labels.jsonl, line 12`."""
    number: int
    home: str | None
    """The home that wrote the pack."""
    label: PackLabel | None
    """None where the row has no text."""


def read_pack(path: Path, name: str | None = None) -> Iterator[Line]:
    """The labels of a file, or of all files of a directory, in order.

    Args:
        name: what people call the file.

    Raises:
        InputError: a line that is no label, with its number.
    """
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.name.endswith((".jsonl", ".jsonl.gz", ".parquet")))
        files = sorted(found, key=lambda p: (p.parent, len(p.name), p.name))  # batch-2 before batch-10
        if not files:
            raise InputError(f"{path} holds no .jsonl, .jsonl.gz or .parquet file")
        for file in files:
            yield from read_pack(file, str(file.relative_to(path)))
        return
    shown = name if name is not None else path.name
    try:
        with path.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if start == b"PAR1":
        yield from _parquet(path, shown)
    else:
        yield from _jsonl(path, shown, zipped=start.startswith(b"\x1f\x8b"))


def _jsonl(path: Path, name: str, zipped: bool) -> Iterator[Line]:
    home = None
    with cast(BinaryIO, gzip.open(path)) if zipped else path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file, name), start=1):
            place = f"{name}, line {number:,}"
            if not line.strip():
                continue
            if b'"scopebase_labels"' in line[:40]:
                home = _header(line, place).home
                continue
            yield Line(place, number, *_label(line, place, home))


def _label(line: bytes, place: str, home: str | None) -> tuple[str | None, PackLabel | None]:
    """Ours first, because a million of them come; else Neuronpedia's; else what is wrong with it."""
    try:
        return home, PackLabel.model_validate_json(line)
    except ValidationError as error:
        row = _row(line, place)
        if not explanations.is_one(row):
            raise InputError(f"{place}: {_first(error)}") from None
        try:
            return explanations.HOME, explanations.read(row)
        except ValidationError as wrong:
            raise InputError(f"{place}: {_first(wrong)}") from None


def _row(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: no JSON ({error})") from None
    if not isinstance(row, dict):
        raise InputError(f"{place}: a label is a JSON object")
    return row


def bounded_lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines of bounded length."""
    try:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{name}, line {number:,}: longer than {LONGEST_LINE >> 20} MiB")
            yield line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{name}, after line {number:,}: cannot be read on ({error})") from None


def _header(line: bytes | str, place: str) -> PackHeader:
    try:
        header = PackHeader.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{place}: {_first(error)}") from None
    if header.scopebase_labels > PACK:
        raise InputError(
            f"{place}: a pack of format {header.scopebase_labels}, this Scopebase reads up to {PACK}; "
            "upgrade with: pip install -U scopebase"
        )
    return header


def _parquet(path: Path, name: str) -> Iterator[Line]:
    try:
        file = pq.ParquetFile(path)
        metadata = file.schema_arrow.metadata or {}
        home = _header(metadata[HEADER], name).home if HEADER in metadata else None
        number = 0
        for batch in file.iter_batches(ROWS):
            for row in batch.to_pylist():
                number += 1
                place = f"{name}, row {number:,}"
                yield Line(place, number, *_from_row(row, place, home))
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{name} is no Parquet file that can be read: {str(error).splitlines()[0][:200]}") from None


def _from_row(row: dict[str, Any], place: str, home: str | None) -> tuple[str | None, PackLabel | None]:
    try:
        if explanations.is_one(row):
            return explanations.HOME, explanations.read(row)
        given = {key: value for key, value in row.items() if value is not None}
        parsed = {key: json.loads(given[key]) for key in JSON_COLUMNS if key in given}
        return home, PackLabel.model_validate(given | parsed)
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{place}: {_first(error) if isinstance(error, ValidationError) else error}") from None


def _first(error: ValidationError) -> str:
    """The first thing that is wrong."""
    wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in wrong["loc"])
    return f"{where}: {wrong['msg']}" if where else str(wrong["msg"])


class Chunks(io.RawIOBase):
    """A file to write into whose bytes are taken away as they come: how a Parquet file is streamed."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.parts.append(bytes(data))
        self.size += len(self.parts[-1])
        return len(self.parts[-1])

    def tell(self) -> int:
        return self.size

    def take(self) -> bytes:
        taken, self.parts = b"".join(self.parts), []
        return taken
