"""Readers: where rows come from. Each yields `Row`s one by one and holds no more than a block of them.

A source is `.jsonl`, `.jsonl.gz`, `.csv`, `.parquet`, a directory of those, or `hub:<dataset>[:<config>][:<split>]`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from indexer.readers.csv import read_csv
from indexer.readers.hub import read_hub
from indexer.readers.jsonl import read_jsonl
from indexer.readers.parquet import read_parquet
from indexer.readers.row import Row
from schema.errors import InputError

READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".csv": read_csv,
    ".csv.gz": read_csv,
    ".parquet": read_parquet,
}
"""File ending -> reader."""

HUB = "hub:"

__all__ = ["HUB", "READERS", "Row", "check_source", "read_rows"]


def read_rows(source: str) -> Iterator[Row]:
    """The rows of a source, in order.

    Raises:
        InputError: the source is missing, of an unknown kind, or broken somewhere.
    """
    if source.startswith(HUB):
        yield from read_hub(source.removeprefix(HUB))
        return
    for file in files_of(source):
        yield from READERS[_ending(file)](file)


def check_source(source: str) -> None:
    """Raises InputError for a source that cannot be read at all, without reading it."""
    if not source.startswith(HUB):
        files_of(source)


def files_of(source: str) -> list[Path]:
    """The files of a path, those of a directory in the order of their names."""
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"there is no file or directory {source!r}; a dataset of the Hugging Face hub is written 'hub:{source}'"
        )
    if path.is_file():
        if not _ending(path):
            raise InputError(f"{source} is none of {', '.join(READERS)}, nor a directory of those")
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and _ending(file))
    if not files:
        raise InputError(f"the directory {source} holds no {', '.join(READERS)} file")
    return files


def _ending(path: Path) -> str:
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), "")
