"""JSON Lines, plain or gzipped: one object a line; blank lines are passed over."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from indexer.readers.row import Row
from schema.errors import InputError

LONGEST_LINE = 64 << 20
"""Bytes. Longer is no row, but perhaps a small file that unpacks to very much."""


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a `.jsonl` or `.jsonl.gz` file."""
    with open_text(path) as file:
        for number, line in enumerate(_lines(path, file), start=1):
            if line.strip():
                yield _row(f"{path.name} line {number}", line)


def open_text(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked where its name ends in .gz."""
    try:
        return cast("IO[bytes]", gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    number = 0
    try:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path.name} line {number} is longer than {LONGEST_LINE >> 20} MiB; that is no row")
            yield line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path.name} is a broken gzip file ({error}) after line {number}; fetch or pack it again"
        ) from None
    except OSError as error:
        raise InputError(f"{path.name} cannot be read on after line {number}: {error}") from error


def _row(where: str, line: bytes) -> Row:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Row(where, {}, f"is not UTF-8 (byte {error.start}); convert the file to UTF-8")
    except (ValueError, RecursionError) as error:
        return Row(where, {}, f"is not JSON: {error}")
    if not isinstance(value, dict):
        return Row(where, {}, f"is a JSON {type(value).__name__}, not an object with fields")
    return Row(where, value)
