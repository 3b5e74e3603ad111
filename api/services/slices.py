"""Slices of a dataset: the samples whose fields meet a condition, such as `{"subject": "anatomy"}`.

A condition is an object of fields; all of them must be met. A field's condition is a value, a list of values (any of them),
`{"min": 1, "max": 9}` (either may be left out), or `{"contains": "text"}`. `{}` is the whole dataset.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from api.services.library import Library
from schema.errors import InputError, not_found
from schema.layout import SAMPLE_BITS, sample_key
from schema.lookup import Source
from schema.tables import Dataset
from schema.wire.query import Where

Ints = npt.NDArray[np.int64]
Condition = Mapping[str, Any]
MOST_GROUPS = 1_000
_CONDITION: TypeAdapter[dict[str, Any]] = TypeAdapter(Where)


def read_condition(text: str | None, name: str = "where") -> dict[str, Any]:
    """A condition that came as JSON in an address or on a command line; none is the whole dataset.

    Raises:
        InputError: it is no JSON object, or too large a one.
    """
    if text is None:
        return {}
    try:
        return _CONDITION.validate_json(text)
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f'{name}: {told}; a JSON object of fields, such as {{"subject": "anatomy"}}') from None


def check_fields(session: Session, source: Source, names: Mapping[str, Any] | list[str]) -> None:
    """Raises NotFound, with the nearest names, for a field that no sample of the dataset has."""
    fields = session.get_one(Dataset, source.dataset_id).fields
    for name in names:
        if name not in fields:
            raise not_found(f"field of dataset {source.name}", name, fields, "scopebase datasets --json")


def select_samples(library: Library, source: Source, where: Condition) -> Ints:
    """Ordinals of the samples that meet a condition, ascending.

    Raises:
        NotFound: a field that no sample has.
        InputError: a condition that cannot be understood.
    """
    if not where:
        return np.arange(source.n_samples)
    for name, wanted in where.items():
        _check(name, wanted)
    with library.home.database.reading() as session:
        check_fields(session, source, dict(where))

    def select() -> Ints:
        found = [o for o, record in records(library, source) if all(_meets(record.get(n), w) for n, w in where.items())]
        return np.array(sorted(found), np.int64)

    return library.remembered(("slice", source.dataset_id, json.dumps(where, sort_keys=True)), select)


def group_samples(library: Library, source: Source, field: str) -> dict[str, Ints]:
    """Ordinals of a dataset's samples by the value of a field, in the order of the values.

    Raises:
        NotFound: no sample has the field.
        InputError: it has more than MOST_GROUPS values.
    """
    with library.home.database.reading() as session:
        check_fields(session, source, [field])

    def group() -> dict[str, Ints]:
        groups: dict[str, list[int]] = {}
        for ordinal, record in records(library, source):
            groups.setdefault(_shown(record.get(field)), []).append(ordinal)
            if len(groups) > MOST_GROUPS:
                raise InputError(
                    f"field {field!r} of {source.name} has more than {MOST_GROUPS:,} values; group by another"
                )
        return {value: np.array(sorted(groups[value]), np.int64) for value in sorted(groups)}

    return library.remembered(("group", source.dataset_id, field), group)


def records(library: Library, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every sample's ordinal and fields, streamed."""
    first, stop = sample_key(source.dataset_id), sample_key(source.dataset_id + 1)
    for batch in library.store.span("samples", first, stop, ["key", "record"], settled=True):
        for key, record in zip(batch.column("key").to_pylist(), batch.column("record").to_pylist(), strict=True):
            yield key & ((1 << SAMPLE_BITS) - 1), json.loads(record)


def _check(name: str, wanted: Any) -> None:
    """Raises InputError for a field's condition that is none."""
    if isinstance(wanted, Mapping):
        ends = (
            bool(wanted) and set(wanted) <= {"min", "max"} and all(isinstance(w, int | float) for w in wanted.values())
        )
        if not ends and not (set(wanted) == {"contains"} and isinstance(wanted["contains"], str)):
            raise InputError(
                f'where {name!r}: a value, a list of values, {{"min": a, "max": b}} or {{"contains": "text"}}'
            )


def _meets(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if "contains" in wanted:
            return isinstance(value, str) and wanted["contains"].lower() in value.lower()
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return bool(wanted.get("min", -np.inf) <= value <= wanted.get("max", np.inf))
    return any(_same(value, each) for each in wanted) if isinstance(wanted, list) else _same(value, wanted)


def _same(value: Any, wanted: Any) -> bool:
    """Equal, where a CSV's "1" is the number 1 too."""
    return value == wanted or (value is not None and wanted is not None and _shown(value) == _shown(wanted))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
