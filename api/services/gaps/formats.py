"""A coverage gap as NDJSON and as Parquet, written while it is read, so that neither side holds it whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from schema.wire.gaps import CoverageGapAnswer, GapItem

_TOKEN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("activation", pa.float32()), ("position", pa.int32())])
_SAMPLE = pa.struct(
    [
        ("dataset", pa.utf8()),
        ("id", pa.utf8()),
        ("activation", pa.float32()),
        ("text", pa.utf8()),
        ("offset", pa.int32()),
        ("tokens", pa.list_(_TOKEN)),
    ]
)
SCHEMA = pa.schema(
    [
        ("feature", pa.utf8()),
        ("index", pa.int32()),
        ("label", pa.utf8()),
        ("state", pa.utf8()),
        ("before", pa.utf8()),
        ("change", pa.utf8()),
        ("count", pa.int64()),
        ("rate", pa.float64()),
        ("interval", pa.list_(pa.float64())),
        ("target_count", pa.int64()),
        ("target_rate", pa.float64()),
        ("rate_difference", pa.float64()),
        ("difference_interval", pa.list_(pa.float64())),
        ("q_value", pa.float64()),
        ("weight", pa.float64()),
        ("firing_tokens", pa.list_(pa.utf8())),
        ("samples", pa.list_(_SAMPLE)),
        ("synthesis_prompt", pa.utf8()),
    ]
)
SUMMARY = b"scopebase.summary"
"""Key of the Parquet file's metadata that holds the answer without its features, as JSON."""


def ndjson(batches: Iterable[list[GapItem]]) -> Iterator[bytes]:
    """One feature a line."""
    for batch in batches:
        yield "".join(item.model_dump_json() + "\n" for item in batch).encode()


def parquet(batches: Iterable[list[GapItem]], about: CoverageGapAnswer) -> Iterator[bytes]:
    """One feature a row, one batch a row group; the summary is in the schema's metadata."""
    sink = _Pipe()
    schema = SCHEMA.with_metadata({SUMMARY: about.model_dump_json().encode()})
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_pylist([item.model_dump() for item in batch], schema))
            yield sink.take()
    yield sink.take()


class _Pipe:
    """A file to write to whose bytes are taken out as they come."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken
