"""Per-sample scores as other tools write them: lm-eval samples, Inspect logs, CSV, and JSONL of `{"id", "score"}`.

lm-eval: one JSON object a line with `doc_id`, `doc`, `filter` and one key a metric. Inspect: `samples[].scores[scorer].value`, in one JSON
document or in a zip with one document a sample; its letters C, P, I, N are 1, 0.5, 0, 0 as in its own accuracy. Epochs are averaged.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from schema.errors import InputError

LETTERS = {"c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
LARGEST_SCORE = 1e100
ZSTD_METHOD = 93
"""Of zip; newer Inspect logs use it, Python's zipfile knows it from 3.14 on."""


@dataclass(frozen=True)
class Scored:
    """One scored sample as a file has it."""

    score: float
    id: str | None = None
    order: int | None = None
    """Its place in the dataset that was evaluated."""
    fields: dict[str, Any] = field(default_factory=dict)
    """What the file repeats of the dataset's row."""

    @property
    def shown(self) -> str:
        return self.id if self.id is not None else f"doc_id {self.order}"


@dataclass(frozen=True)
class ScoreFile:
    """The scores of one evaluated model in one file."""

    format: str
    source: str
    rows: list[Scored]
    evaluated: str | None = None
    """The model, where the file names it."""


def read_file(path: Path, metric: str) -> ScoreFile:
    """Reads a file of any of the formats, told by its content.

    Raises:
        InputError: it cannot be read, is of no known format, or a score is missing or no number.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head[:2] == b"PK":
            return _inspect(path, _zipped(path), metric)
        if path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as text:
                return parse_rows(csv.DictReader(text), metric, str(path), "csv")
        with (
            gzip.open(path, "rt", encoding="utf-8") if head[:2] == b"\x1f\x8b" else path.open(encoding="utf-8") as text
        ):
            return _json(path, text, metric)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, RecursionError, KeyError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: {error}; expected lm-eval samples, an Inspect log, CSV or JSONL") from error


def _json(path: Path, text: IO[str], metric: str) -> ScoreFile:
    """A whole document is an Inspect log, lines are rows."""
    first = text.readline()
    text.seek(0)
    try:
        row = json.loads(first)
    except ValueError:
        row = None
    if isinstance(row, dict) and "samples" not in row:
        return parse_rows(_lines(path, text), metric, str(path))
    try:
        log = json.load(text)
    except ValueError as error:
        raise InputError(
            f"{path} is no JSON: {error}; expected lm-eval samples, an Inspect log, CSV or JSONL"
        ) from error
    if not isinstance(log, dict) or not isinstance(log.get("samples"), list):
        raise InputError(
            f"{path}: an Inspect log has a list 'samples', this has none; was it written with its samples?"
        )
    return _inspect(path, iter([log, *log["samples"]]), metric)


def _lines(path: Path, text: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: expected a JSON object")
            yield row


def parse_rows(rows: Iterable[dict[str, Any]], metric: str, source: str, format_: str | None = None) -> ScoreFile:
    """Rows of lm-eval samples, or of `id` and `score` (or a column called like the metric).

    Raises:
        InputError: a score is missing or no number, or lm-eval's rows have several filters and the metric names none.
    """
    found = list(rows)
    if not found:
        raise InputError(f"{source} has no rows")
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


def _zipped(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of an Inspect .eval file: its header, then its samples."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "header.json" not in names:
            raise InputError(f"{path}: an Inspect log that was not finished, or none; it has no header.json")
        for name in ["header.json", *sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))]:
            yield json.loads(_member(archive, path, archive.getinfo(name)))


def _member(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> bytes:
    if member.compress_type != ZSTD_METHOD:
        return archive.read(member)
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # lengths in the local header
        file.seek(name + extra, 1)
        packed = file.read(member.compress_size)
    return bytes(pa.CompressedInputStream(pa.BufferReader(packed), "zstd").read())


def _inspect(path: Path, documents: Iterator[dict[str, Any]], metric: str) -> ScoreFile:
    header = next(documents)
    by_sample: dict[str, list[Scored]] = {}
    for sample in documents:
        if not isinstance(sample, dict):
            raise InputError(f"{path}: a sample of an Inspect log is an object, not {str(sample)[:40]!r}")
        scored = _inspect_sample(sample, metric, f"{path}, sample {sample.get('id')}")
        by_sample.setdefault(str(scored.id), []).append(scored)
    if not by_sample:
        raise InputError(f"{path} has no samples; was the log written without them?")
    rows = []
    for epochs in by_sample.values():
        mean = sum(each.score for each in epochs) / len(epochs)
        rows.append(Scored(mean, epochs[0].id, epochs[0].order, epochs[0].fields))
    model = header.get("eval", {}).get("model") if isinstance(header.get("eval"), dict) else None
    return ScoreFile("inspect", str(path), rows, model if isinstance(model, str) else None)


def _inspect_sample(sample: dict[str, Any], metric: str, where: str) -> Scored:
    """Its metric is a scorer, or `scorer.key` where a scorer gives several values; a lone scorer needs no name."""
    scores = sample.get("scores") or {}
    if not isinstance(scores, dict):
        raise InputError(f"{where}: its 'scores' are no object of scorers")
    scorer, _, key = metric.partition(".")
    if scorer not in scores and len(scores) == 1:
        scorer, key = next(iter(scores)), metric
    if scorer not in scores:
        raise InputError(f"{where}: no score {metric!r}; its scorers are {', '.join(scores) or 'none'}")
    value = scores[scorer].get("value") if isinstance(scores[scorer], dict) else scores[scorer]
    if isinstance(value, dict):
        value = value.get(key)
    id_, text = sample.get("id"), _last_text(sample.get("input"))
    order = id_ - 1 if isinstance(id_, int) else None  # Inspect numbers samples without an id from 1
    metadata = sample.get("metadata") if isinstance(sample.get("metadata"), dict) else {}
    return Scored(number_of(value, where, metric), str(id_), order, {**(metadata or {}), "input": text})


def _last_text(given: Any) -> str:
    """The prompt: a text, or the last of a list of messages."""
    if isinstance(given, list) and given and isinstance(given[-1], dict):
        given = given[-1].get("content")
    return given if isinstance(given, str) else ""


def number_of(value: Any, where: str, name: str) -> float:
    """A score as a number.

    Raises:
        InputError: it is none, not finite, or too large to be averaged.
    """
    number = math.nan
    with contextlib.suppress(ValueError, OverflowError):
        if isinstance(value, str):
            text = value.strip().lower()
            number = LETTERS[text] if text in LETTERS else float(text)
        elif isinstance(value, bool | int | float):
            number = float(value)
    if not abs(number) <= LARGEST_SCORE:
        raise InputError(f"{where}: {name}={str(value)[:40]!r} is no finite number; leave such rows out")
    return number
