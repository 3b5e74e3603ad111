"""Comma-separated values with a header line; every field is text."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from indexer.readers.jsonl import LONGEST_LINE, open_text
from indexer.readers.row import Row
from schema.errors import InputError

csv.field_size_limit(LONGEST_LINE)


def read_csv(path: Path) -> Iterator[Row]:
    """The rows of a `.csv` or `.csv.gz` file."""
    line = 0
    try:
        with open_text(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(_lines(path, text), strict=True)
            if not reader.fieldnames:
                return
            if len(set(reader.fieldnames)) < len(reader.fieldnames):
                raise InputError(f"{path.name}: two columns have the same name; rename one")
            for record in reader:
                line = reader.line_num
                yield _row(f"{path.name} line {line}", record)
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8 after line {line}; convert the file to UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path.name} line {line + 1} is not CSV: {error}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path.name} is a broken gzip file ({error}) after line {line}; fetch or pack it again"
        ) from None


def _lines(path: Path, text: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    while line := text.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise InputError(f"{path.name} line {number} is longer than {LONGEST_LINE >> 20} million characters")
        yield line


def _row(where: str, record: dict[str | None, object]) -> Row:
    if None in record or None in record.values():
        return Row(
            where,
            {},
            f"has {'more' if None in record else 'fewer'} fields than the header; quote the commas in its text",
        )
    return Row(where, {str(name): value for name, value in record.items()})
