"""Inspect logs: `samples[].scores[scorer].value`, in one JSON document or in a zip with one document a sample.

The letters C, P, I, N are 1, 0.5, 0, 0 as in Inspect's own accuracy. Epochs are averaged.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from api.services.evaluations.scored import Scored, ScoreFile, number_of
from schema.errors import InputError

ZSTD_METHOD = 93
"""Of zip; newer Inspect logs use it, Python's zipfile knows it from 3.14 on."""
MOST_BYTES = 2 << 30
"""Of a file once it is unpacked."""
RATIO, SLACK = 200, 64 << 20
"""How many times its own size a packed file may unpack to, and how much in any case; text packs to a tenth or so."""
PIECE = 1 << 20


def most_bytes(path: Path) -> int:
    """What a file may unpack to."""
    return min(MOST_BYTES, RATIO * path.stat().st_size + SLACK)


def too_large(name: str, most: int) -> InputError:
    return InputError(f"{name}: larger than {most:,} bytes when unpacked, more than scores need; import it in parts")


def documents_of(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """The documents of an Inspect .eval file: its header, then its samples.

    Raises:
        InputError: it has no header, or is too large.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if "header.json" not in names:
            raise InputError(f"{name}: an Inspect log that was not finished, or none; it has no header.json")
        samples = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
        members = [archive.getinfo(n) for n in ["header.json", *samples]]
        most = most_bytes(path)
        if sum(member.file_size for member in members) > most:
            raise too_large(name, most)
        for member in members:
            yield json.loads(_member(archive, path, name, member, most))


def _member(archive: zipfile.ZipFile, path: Path, name: str, member: zipfile.ZipInfo, most: int) -> bytes:
    if member.compress_type != ZSTD_METHOD:
        return archive.read(member)
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        lengths = struct.unpack("<HH", file.read(4))  # of the name and of what else the local header holds
        file.seek(sum(lengths), 1)
        packed = file.read(min(member.compress_size, path.stat().st_size))  # what is asked for is allocated at once
    stream, unpacked = pa.CompressedInputStream(pa.BufferReader(packed), "zstd"), bytearray()
    while piece := stream.read(PIECE):
        unpacked += piece
        if len(unpacked) > most:
            raise too_large(name, most)
    return bytes(unpacked)


def read_log(documents: Iterator[dict[str, Any]], metric: str, name: str) -> ScoreFile:
    """The scores of a log.

    Args:
        documents: its header, then its samples.

    Raises:
        InputError: it has no samples, or one has no such score.
    """
    header = next(documents)
    by_sample: dict[str, list[Scored]] = {}
    for sample in documents:
        if not isinstance(sample, dict):
            raise InputError(f"{name}: a sample of an Inspect log is an object, not {str(sample)[:40]!r}")
        scored = _inspect_sample(sample, metric, f"{name}, sample {sample.get('id')}")
        by_sample.setdefault(str(scored.id), []).append(scored)
    if not by_sample:
        raise InputError(f"{name} has no samples; was the log written without them?")
    rows = []
    for epochs in by_sample.values():
        mean = sum(each.score for each in epochs) / len(epochs)
        rows.append(Scored(mean, epochs[0].id, epochs[0].order, epochs[0].fields))
    model = header.get("eval", {}).get("model") if isinstance(header.get("eval"), dict) else None
    return ScoreFile("inspect", name, rows, model if isinstance(model, str) else None)


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
