"""Which sample of a dataset a scored row is: by id, by the text that both have, or by its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from api.services.evaluations.scored import Scored
from schema.errors import Conflict, InputError
from schema.layout import SAMPLE_BITS, sample_key
from schema.store import Store
from schema.tables import Dataset
from schema.wire.evaluations import Match

ENOUGH = 0.5
"""Share of the rows that must find their sample."""
SHORTEST = 8
"""Texts of fewer characters name no sample."""
AGREE = 0.9
"""Share of the rows matched by place whose texts must be the sample's, where both have a field of the name."""
By = Literal["id", "text", "order"]


@dataclass(frozen=True)
class Matched:
    """Scores by sample."""

    by: By
    scores: npt.NDArray[np.float64]
    """(n_samples,) NaN where there is none."""
    n_rows: int
    unmatched: list[Scored]


def match(store: Store, dataset: Dataset, rows: Sequence[Scored], how: Match = "auto") -> Matched:
    """The first way that finds a sample for at least half of the rows.

    Raises:
        InputError: two rows are of one sample.
        Conflict: too few of them are in the dataset.
    """
    ways: Sequence[By] = ("id", "text", "order") if how == "auto" else (how,)
    best: tuple[int, By] = (0, ways[0])
    for by in ways:
        places = _places(store, dataset, rows, by)
        n_found = sum(place is not None for place in places)
        if n_found >= ENOUGH * len(rows):
            return _scores(dataset, rows, places, by)
        best = max(best, (n_found, by), key=lambda found: found[0])
    name = f"{dataset.name}@{dataset.version}"
    raise Conflict(
        f"only {best[0]:,} of {len(rows):,} rows are samples of {name} (by {best[1]}; the first row is {rows[0].shown[:60]!r}); "
        "name the dataset that was evaluated, or index it with --id-field"
    )


def _scores(dataset: Dataset, rows: Sequence[Scored], places: Sequence[int | None], by: By) -> Matched:
    scores = np.full(dataset.n_samples, np.nan)
    unmatched = []
    for row, place in zip(rows, places, strict=True):
        if place is None:
            unmatched.append(row)
        elif not np.isnan(scores[place]):
            raise InputError(
                f"two rows are of one sample ({row.shown[:60]!r}, matched by {by}); keep one, or import them under two metrics"
            )
        else:
            scores[place] = row.score
    return Matched(by, scores, len(rows), unmatched)


def _places(store: Store, dataset: Dataset, rows: Sequence[Scored], by: By) -> list[int | None]:
    if by == "id":
        ordinals = {id_: ordinal for ordinal, id_, _ in _samples(store, dataset, ["id"])}
        return [next((ordinals[i] for i in _ids(row, dataset.id_field) if i in ordinals), None) for row in rows]
    if by == "text":
        texts = _by_text(store, dataset)
        return [next((p for t in _texts(row.fields) if (p := texts.get(t)) is not None), None) for row in rows]
    return _by_order(store, dataset, rows)


def _ids(row: Scored, id_field: str | None) -> Iterator[str]:
    """What may be the sample's id, the likeliest first."""
    if row.id is not None and not (row.order is not None and id_field is None):  # both only counted: from 1, and from 0
        yield row.id
    for name in (id_field, "id", "task_id", "question_id"):
        if name is not None and isinstance(row.fields.get(name), str | int):
            yield str(row.fields[name])


def _texts(fields: dict[str, Any]) -> list[str]:
    """Its texts, the longest first."""
    texts = {value.strip() for value in fields.values() if isinstance(value, str)}
    return sorted((text for text in texts if len(text) >= SHORTEST), key=lambda text: (-len(text), text))


def _by_text(store: Store, dataset: Dataset) -> dict[str, int | None]:
    """Text of any field -> the one sample that has it; None where several do."""
    found: dict[str, int | None] = {}
    for ordinal, _, record in _samples(store, dataset, ["id", "record"]):
        for text in _texts(record):
            found[text] = None if text in found else ordinal
    return found


def _by_order(store: Store, dataset: Dataset, rows: Sequence[Scored]) -> list[int | None]:
    """By place, unless the texts of fields that both have say that the places are others."""
    places = [r.order if r.order is not None and 0 <= r.order < dataset.n_samples else None for r in rows]
    wanted = {place: row.fields for row, place in zip(rows, places, strict=True) if place is not None and row.fields}
    same = compared = 0
    for ordinal, _, record in _samples(store, dataset, ["id", "record"]) if wanted else ():
        fields = wanted.get(ordinal, {})
        shared = [n for n in fields if isinstance(fields[n], str) and isinstance(record.get(n), str)]
        if shared:
            compared += 1
            same += any(fields[name].strip() == record[name].strip() for name in shared)
    return places if same >= AGREE * compared else [None] * len(rows)


def _samples(store: Store, dataset: Dataset, columns: list[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    first, stop = sample_key(dataset.id), sample_key(dataset.id + 1)
    for batch in store.span("samples", first, stop, ["key", *columns], settled=True):
        ids = batch.column("id").to_pylist()
        records = batch.column("record").to_pylist() if "record" in columns else ["{}"] * len(ids)
        for key, id_, record in zip(batch.column("key").to_pylist(), ids, records, strict=True):
            yield key & ((1 << SAMPLE_BITS) - 1), id_, json.loads(record)
