"""The first reading of a dataset: every row is checked, counted and hashed before anything is written.

Memory does not grow with the dataset: ids are compared in a temporary SQLite file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from indexer.readers import Row, read_rows
from schema.errors import InputError
from schema.recipe import MAX_CHARS, Recipe
from schema.records import ShardRange, Survey

CHARS_A_TOKEN = 8
"""More characters than this for each of `max_tokens` are cut off anyway, and do not count as work."""
SHOWN_FAULTS = 5
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {
    str: "text",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "list",
    dict: "object",
    type(None): "null",
}


@dataclass(frozen=True)
class DatasetSpec:
    """One `--dataset NAME=SOURCE` with the options that say how its rows are read."""

    name: str
    source: str
    recipe: Recipe
    id_field: str | None = None
    """None: `id` where the first row has it, else the row's number. Empty: the row's number."""
    limit: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class Sample:
    """A checked row."""

    id: str
    record: str
    """Its fields as JSON."""
    n_chars: int
    kinds: dict[str, str]


@dataclass(frozen=True)
class ShardSize:
    """When a shard is full."""

    samples: int
    chars: int

    @classmethod
    def for_batches(cls, batch_tokens: int) -> ShardSize:
        """Room for about 16 full batches, so that lengths can be sorted and little is lost with a worker."""
        return cls(samples=max(64, batch_tokens // 4), chars=64 * batch_tokens)


def survey(spec: DatasetSpec, size: ShardSize, tick: Callable[[int], None] = lambda _rows: None) -> Survey:
    """Reads the whole source once.

    Raises:
        InputError: the source or one of its rows cannot be used, or there is no row.
    """
    digest, shards, fields = hashlib.sha256(), _Shards(size, spec.recipe.max_tokens * CHARS_A_TOKEN), dict[str, str]()
    rows = CheckedRows(spec)
    with closing(_Ids(spec)) as ids:
        for sample in rows:
            digest.update(_line(sample))
            ids.add(sample.id, rows.where)
            shards.add(sample.n_chars)
            for name, kind in sample.kinds.items():
                fields[name] = kind if fields.get(name, kind) in (kind, "null") else "mixed"
            if shards.n_samples % 1000 == 0:
                tick(1000)
        ids.finish()
    if not shards.n_samples:
        why = f"; the first fault: {rows.faults[0]}" if rows.faults else "; give a source with at least one"
        raise InputError(f"dataset {spec.name}: {spec.source} has no {'usable ' if rows.skipped else ''}row{why}")
    return Survey(
        name=spec.name,
        source=spec.source,
        sha256=digest.hexdigest(),
        n_samples=shards.n_samples,
        n_chars=shards.n_chars,
        fields=fields,
        id_field=rows.id_field,
        skipped=rows.skipped,
        faults=rows.faults,
        shards=shards.finish(),
    )


def read_again(spec: DatasetSpec, sha256: str) -> Iterator[Sample]:
    """The same samples once more, for writing.

    Raises:
        InputError: the source has changed since the survey.
    """
    digest = hashlib.sha256()
    for sample in CheckedRows(spec):
        digest.update(_line(sample))
        yield sample
    if digest.hexdigest() != sha256:
        raise InputError(
            f"dataset {spec.name}: {spec.source} changed while it was read; run the command again when it is at rest"
        )


def _line(sample: Sample) -> bytes:
    return f"{json.dumps(sample.id)}\t{sample.record}\n".encode("utf-8", "surrogatepass")


class CheckedRows:
    """The usable rows of a source as samples; the first unusable one raises, or with `skip_bad` is counted and left out."""

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self.id_field: str | None = None
        self.skipped = 0
        self.faults: list[str] = []
        """The first few reasons for leaving a row out."""
        self.where = ""

    def __iter__(self) -> Iterator[Sample]:
        number = 0
        for row in read_rows(self.spec.source):
            if number == self.spec.limit:
                return
            if number == 0 and row.fault is None:
                self.id_field = _id_field(self.spec, row)
            self.where = row.where
            try:
                sample = self._check(row, number)
            except InputError as error:
                if not self.spec.skip_bad:
                    raise
                self.skipped += 1
                self.faults = [*self.faults, str(error)][:SHOWN_FAULTS]
                continue
            number += 1
            yield sample

    def _check(self, row: Row, number: int) -> Sample:
        if row.fault is not None:
            raise InputError(f"dataset {self.spec.name}, {row.where} {row.fault}")
        id_ = _id_of(row, self.id_field, number)
        place = f"dataset {self.spec.name}, {row.where}" + (f" (id {id_!r})" if self.id_field else "")
        try:
            text = self.spec.recipe.render(row.record)
        except InputError as error:
            raise InputError(f"{place} {error}") from None
        fault = text_fault(text)
        if fault:
            raise InputError(f"{place}: {fault}; mend the row, or leave such rows out with --bad-rows skip")
        kinds = {name: _KINDS.get(type(value), "object") for name, value in row.record.items()}
        return Sample(id_, _as_json(row.record), len(text), kinds)


def text_fault(text: str) -> str | None:
    """What keeps a text from being indexed, if anything does."""
    if not text.strip():
        return "its text is empty or only white space"
    if len(text) >= MAX_CHARS:
        return f"its text has {len(text):,} characters, the limit is {MAX_CHARS - 1:,}"
    if "\x00" in text:
        return f"its text holds a NUL character (at {text.index(chr(0))})"
    surrogate = _SURROGATE.search(text)
    if surrogate:
        return f"its text holds a lone surrogate (U+{ord(surrogate[0]):04X} at {surrogate.start()}), which is not valid Unicode"
    return None


def _as_json(record: dict[str, Any]) -> str:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(record, separators=(",", ":")) if _SURROGATE.search(text) else text


def _id_field(spec: DatasetSpec, first: Row) -> str | None:
    if spec.id_field is None:
        return "id" if "id" in first.record else None
    return spec.id_field or None


def _id_of(row: Row, field: str | None, number: int) -> str:
    if field is None:
        return str(number)
    if field not in row.record:
        raise InputError(
            f"{row.where} has no id field {field!r}; name another with --id-field, or number the rows with --id-field ''"
        )
    value = row.record[field]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise InputError(f"{row.where}: its id is {value!r}; an id is a text or a whole number")
    id_ = str(value)
    if len(id_) > 1000 or "\x00" in id_ or _SURROGATE.search(id_):
        raise InputError(
            f"{row.where}: its id is over 1,000 characters, or holds a NUL or a lone surrogate; number the rows with --id-field ''"
        )
    return id_


class _Ids:
    """Finds an id that comes twice, in a temporary database on disk."""

    BLOCK = 5000

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self.block: list[tuple[str, str]] = []
        self.seen = sqlite3.connect("")  # SQLite's own temporary file, gone when closed
        self.seen.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, place TEXT) WITHOUT ROWID")

    def add(self, id_: str, where: str) -> None:
        self.block.append((id_, where))
        if len(self.block) == self.BLOCK:
            self.finish()

    def finish(self) -> None:
        for id_, where in self.block:
            try:
                self.seen.execute("INSERT INTO ids VALUES (?, ?)", (id_, where))
            except sqlite3.IntegrityError:
                before = self.seen.execute("SELECT place FROM ids WHERE id = ?", (id_,)).fetchone()[0]
                raise InputError(
                    f"dataset {self.spec.name}: id {id_!r} comes twice, at {before} and {where}; "
                    "make ids unique, name another --id-field, or number the rows with --id-field ''"
                ) from None
        self.block.clear()

    def close(self) -> None:
        self.seen.close()


class _Shards:
    """Cuts the samples into shards as they pass."""

    def __init__(self, size: ShardSize, most_chars: int) -> None:
        self.size, self.most_chars = size, most_chars
        self.n_samples = self.n_chars = 0
        self.first = self.chars = 0
        self.done: list[ShardRange] = []

    def add(self, n_chars: int) -> None:
        work = min(n_chars, self.most_chars)
        full = self.n_samples - self.first == self.size.samples or self.chars + work > self.size.chars
        if full and self.n_samples > self.first:
            self._close()
        self.n_samples += 1
        self.n_chars += n_chars
        self.chars += work

    def _close(self) -> None:
        self.done.append(ShardRange(self.first, self.n_samples, self.chars))
        self.first, self.chars = self.n_samples, 0

    def finish(self) -> list[ShardRange]:
        if self.n_samples > self.first:
            self._close()
        return self.done
