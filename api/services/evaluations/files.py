"""Files of per-sample scores: lm-eval samples, Inspect logs, CSV, and JSONL of `{"id", "score"}`, told apart by their content.

lm-eval: one JSON object a line with `doc_id`, `doc`, `filter` and one key a metric. Inspect: see `inspect_logs`. Any but Inspect's zip may
be packed with gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from api.services.evaluations.inspect_logs import documents_of, most_bytes, read_log, too_large
from api.services.evaluations.scored import Scored, ScoreFile, number_of
from schema.errors import InputError
from schema.wire.evaluations import MOST_ROWS

KINDS = "lm-eval samples, an Inspect log, CSV or JSONL"
DAMAGE = (
    ValueError, EOFError, RecursionError, KeyError, TypeError, OverflowError, RuntimeError, csv.Error, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What the readers of these formats raise; zipfile's RuntimeError and NotImplementedError speak of archives that are locked or odd."""


def read_file(path: Path, metric: str, name: str | None = None) -> ScoreFile:
    """Reads a file of any of the formats.

    Args:
        name: what errors and the evaluation's source call it; the path unless given.

    Raises:
        InputError: it cannot be read, is of no known format or too large, or a score is missing or no number.
    """
    name = name or str(path)
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"PK":
            return read_log(documents_of(path, name), metric, name)
        with path.open("rb") as file:
            plain = gzip.GzipFile(fileobj=file) if head[:2] == b"\x1f\x8b" else file
            bounded = io.BufferedReader(_Bounded(cast(IO[bytes], plain), name, most_bytes(path)))
            return _text(io.TextIOWrapper(bounded, encoding="utf-8-sig", newline=""), metric, name)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise InputError(f"{name}: {str(error)[:200]}; expected {KINDS}") from error


class _Bounded(io.RawIOBase):
    """Stops where a packed file becomes too large."""

    def __init__(self, file: IO[bytes], name: str, most: int) -> None:
        self.file, self.name, self.most, self.left = file, name, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self.file.read(len(buffer))
        self.left -= len(piece)
        if self.left < 0:
            raise too_large(self.name, self.most)
        buffer[: len(piece)] = piece
        return len(piece)


def _text(text: io.TextIOWrapper, metric: str, name: str) -> ScoreFile:
    """Lines of JSON are rows, a whole document is an Inspect log, and a header with an id begins a table."""
    first = text.readline()
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    whole = chain([first], text)
    if isinstance(row, dict) and "samples" not in row:
        return parse_rows(_lines(name, whole), metric, name)
    if first.lstrip()[:1] in ("{", "["):
        return _document("".join(whole), metric, name)
    if name.endswith((".csv", ".csv.gz")) or "id" in next(csv.reader([first]), []):
        return parse_rows(csv.DictReader(whole), metric, name, "csv")
    raise InputError(f"{name} is no JSON and no table with a column id; expected {KINDS}")


def _document(text: str, metric: str, name: str) -> ScoreFile:
    try:
        log = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name} is no JSON: {error}; expected {KINDS}") from error
    if not isinstance(log, dict) or not isinstance(log.get("samples"), list):
        raise InputError(
            f"{name}: an Inspect log has a list 'samples', this has none; was it written with its samples?"
        )
    return read_log(iter([log, *log["samples"]]), metric, name)


def _lines(name: str, text: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{name}, line {number}: no JSON ({str(error)[:160]})") from error
            if not isinstance(row, dict):
                raise InputError(f"{name}, line {number}: expected a JSON object")
            yield row


def parse_rows(rows: Iterable[dict[str, Any]], metric: str, source: str, format_: str | None = None) -> ScoreFile:
    """Rows of lm-eval samples, or of `id` and `score` (or a column called like the metric).

    Raises:
        InputError: a score is missing or no number, or lm-eval's rows have several filters and the metric names none.
    """
    found = list(islice(rows, MOST_ROWS + 1))
    if not found:
        raise InputError(f"{source} has no rows")
    if len(found) > MOST_ROWS:
        raise InputError(f"{source} has more than {MOST_ROWS:,} rows")
    if "doc_id" in found[0]:
        return ScoreFile("lm-eval", source, _lm_eval(found, metric, source))
    scored = []
    for number, row in enumerate(found, start=1):
        where = f"{source}, row {number}"
        if row.get("id") in (None, ""):
            raise InputError(f"{where}: no 'id'; rows need an id and a score")
        key = metric if metric in row else "score"
        scored.append(Scored(number_of(row.get(key), where, key), str(row["id"])))
    return ScoreFile(format_ or "rows", source, scored)


def _lm_eval(rows: Sequence[dict[str, Any]], metric: str, source: str) -> list[Scored]:
    name, _, wanted = metric.partition(",")
    filters = sorted({str(row.get("filter", "none")) for row in rows})
    if wanted and wanted not in filters:
        raise InputError(f"{source} has no filter {wanted!r}; it has {', '.join(filters)}")
    if not wanted and len(filters) > 1:
        raise InputError(f"{source} has several filters; choose one: {' or '.join(f'{name},{f}' for f in filters)}")
    scored = []
    for number, row in enumerate(rows, start=1):
        if wanted and str(row.get("filter", "none")) != wanted:
            continue
        where = f"{source}, row {number}"
        if name not in row:
            there = [key for key, value in row.items() if isinstance(value, int | float) and key != "doc_id"]
            raise InputError(f"{where}: no metric {name!r}; it has {', '.join(there) or 'none'}")
        order, doc = row.get("doc_id"), row.get("doc")
        if isinstance(order, bool) or not isinstance(order, int):
            raise InputError(f"{where}: doc_id={order!r} is no whole number")
        scored.append(Scored(number_of(row[name], where, name), None, order, doc if isinstance(doc, dict) else {}))
    return scored
