"""Files that are there whole or not at all, and a folder that tells what export it holds, so that an interrupted one goes on."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel

from schema.errors import Conflict, InputError

MANIFEST = "scopebase.json"


@contextmanager
def whole_file(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that gets its name when everything is written.

    Raises:
        InputError: the place cannot be written.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; choose another place with --out"
        ) from None


@contextmanager
def lines(path: Path) -> Iterator[IO[str]]:
    """A JSONL file, packed where its name ends in .gz; the same content gives the same bytes."""
    with whole_file(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed, io.TextIOWrapper(packed, "utf-8") as text:
                yield text
        else:
            plain = io.TextIOWrapper(file, "utf-8", write_through=True)
            yield plain
            plain.detach()


def write_rows(path: Path, *rows: BaseModel) -> None:
    """A file of one row a line."""
    with lines(path) as file:
        for row in rows:
            file.write(row.model_dump_json() + "\n")


def claim(folder: Path, what: dict[str, Any]) -> None:
    """Says what a folder holds, before anything is put there; a folder that holds the same is gone on with.

    Raises:
        Conflict: it holds another export, or something else.
    """
    manifest = folder / MANIFEST
    text = json.dumps(what, indent=2, sort_keys=True, default=str)
    if manifest.exists():
        if manifest.read_text(encoding="utf-8") != text:
            raise Conflict(
                f"{folder} holds another export (see {manifest.name} there); choose an empty place with --out"
            )
        return
    if folder.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} is not empty and holds no export of Scopebase; choose an empty place with --out")
    with whole_file(manifest) as file:
        file.write(text.encode())
