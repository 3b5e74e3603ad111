"""The columns of a question: datasets, slices of them and groups of their samples, each counted once.

A whole dataset's counts come from its profile. A slice's are counted from the forward table, a pass over the dataset, and kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services import firing
from api.services.library import Library
from api.services.slices import group_samples, select_samples
from schema.errors import InputError
from schema.lookup import Source, Subject, find_sources
from schema.records import Pool
from schema.wire.query import DatasetPart

Ints = npt.NDArray[np.int64]
MOST_COLUMNS = 200
NAME_LENGTH = 60
"""Longer names of slices are cut."""


@dataclass(frozen=True)
class Column:
    """A dataset or some of its samples, and how many of them fire each feature."""

    name: str
    source: Source
    pool: Pool
    where: Mapping[str, Any]
    where_not: Mapping[str, Any]
    ordinals: Ints | None
    """The samples, ascending; None is all of them."""
    fires: Ints
    """(d_sae,)"""

    @property
    def n_samples(self) -> int:
        return self.source.n_samples if self.ordinals is None else len(self.ordinals)

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same samples of the same run."""
        return _key(self.source, self.pool, self.where, self.where_not)

    @property
    def dataset(self) -> str:
        """What a count of it is called: the dataset's own name, or the slice."""
        return self.source.name if self.ordinals is None else self.name

    @property
    def rates(self) -> npt.NDArray[np.float64]:
        return self.fires / self.n_samples


class Columns:
    """The columns of one question, in the order in which they were first asked for."""

    def __init__(self, library: Library, subject: Subject, sources: Mapping[str, Source], pool: Pool) -> None:
        """
        Args:
            sources: the subject's sources by the names that the question gives them.
        """
        self.library, self.subject, self.sources, self.pool = library, subject, sources, pool
        self._names = dict(zip((source.pair for source in subject.sources), subject.names, strict=True))
        self._found: dict[tuple[object, ...], Column] = {}
        library.expect(source.pair for source in subject.sources)

    def __iter__(self) -> Iterator[Column]:
        return iter(self._found.values())

    def part(self, part: str | DatasetPart) -> Column:
        """The column of a dataset or slice.

        Raises:
            NotFound, InputError: see `api.services.slices.select_samples`; no sample meets the condition.
        """
        if isinstance(part, str):
            part = DatasetPart(dataset=part)
        source = self.sources[part.dataset]
        if not part.where and not part.where_not:
            fires = self.library.counts(source.pair).samples(self.pool)
            return self._keep(source, {}, {}, None, fires)
        ordinals = self._ordinals(source, part)
        key = ("slice counts", *_key(source, self.pool, part.where, part.where_not))
        fires = self.library.remembered(
            key, lambda: firing.count(self.library.store, source.pair, self.d_sae, self.pool, ordinals)
        )
        return self._keep(source, part.where, part.where_not, ordinals, fires)

    def groups(self, part: DatasetPart, field: str) -> list[Column]:
        """One column for each value of a field among a part's samples, counted in one pass.

        Raises:
            NotFound: no sample has the field.
            InputError: it has too many values.
        """
        source = self.sources[part.dataset]
        groups = group_samples(self.library, source, field)
        if part.where or part.where_not:
            within = self._ordinals(source, part)
            groups = {value: np.intersect1d(found, within, assume_unique=True) for value, found in groups.items()}
            groups = {value: found for value, found in groups.items() if len(found)}
        if len(groups) > MOST_COLUMNS:
            raise InputError(
                f"field {field!r} of {source.name} has {len(groups):,} values, at most {MOST_COLUMNS} make columns; "
                "pick some with where"
            )
        key = ("group counts", *_key(source, self.pool, part.where, part.where_not), field)
        counts = self.library.remembered(key, lambda: self._count(source, list(groups.values())))
        return [
            self._keep(source, {**part.where, field: value}, part.where_not, found, counts[i].astype(np.int64))
            for i, (value, found) in enumerate(groups.items())
        ]

    @property
    def d_sae(self) -> int:
        return self.subject.sae.d_sae

    def _ordinals(self, source: Source, part: DatasetPart) -> Ints:
        found = select_samples(self.library, source, part.where)
        if part.where_not:
            found = np.setdiff1d(found, select_samples(self.library, source, part.where_not), assume_unique=True)
        if not len(found):
            raise InputError(f"no sample of {source.name} is in the slice {_shown(part.where, part.where_not)}")
        return found

    def _count(self, source: Source, groups: Sequence[Ints]) -> npt.NDArray[np.int32]:
        group = np.full(source.n_samples, -1, np.int64)
        for i, found in enumerate(groups):
            group[found] = i
        return firing.count_groups(self.library.store, source.pair, self.d_sae, self.pool, group, len(groups))

    def _keep(
        self,
        source: Source,
        where: Mapping[str, Any],
        where_not: Mapping[str, Any],
        ordinals: Ints | None,
        fires: Ints,
    ) -> Column:
        key = _key(source, self.pool, where, where_not)
        if key not in self._found:
            if len(self._found) == MOST_COLUMNS:
                raise InputError(f"the question has more than {MOST_COLUMNS} columns; ask for fewer at once")
            name = self._name(source, where, where_not)
            self._found[key] = Column(name, source, self.pool, where, where_not, ordinals, fires)
        return self._found[key]

    def _name(self, source: Source, where: Mapping[str, Any], where_not: Mapping[str, Any]) -> str:
        """A name that no other column has."""
        name = self._names[source.pair]
        if where or where_not:
            name += _shown(where, where_not)
        taken = {column.name for column in self._found.values()}
        return name if name not in taken else f"{name}#{len(taken)}"


def columns_of(
    library: Library, sae: str | None, parts: Sequence[str | DatasetPart], pool: Pool, as_of: int | None = None
) -> tuple[Columns, list[Column]]:
    """The columns of some datasets and slices, in the order given.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        NotFound, InputError: see `Columns.part`.
    """
    names = [*dict.fromkeys(part if isinstance(part, str) else part.dataset for part in parts)]
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, names, as_of)
    by_name = dict(zip(names, subject.sources, strict=True))
    once = list({source.pair: source for source in subject.sources}.values())
    columns = Columns(library, replace(subject, sources=once), by_name, pool)
    return columns, [columns.part(part) for part in parts]


def check_apart(a: Column, b: Column) -> None:
    """Raises InputError where a sample is in both: the tests take them to be different samples."""
    shared = n_shared(a, b)
    if shared:
        raise InputError(
            f"{a.name} and {b.name} share {shared:,} samples and cannot be compared; "
            "take the rest of a dataset with where_not"
        )


def n_shared(a: Column, b: Column) -> int:
    """Samples in both."""
    if a.source.pair != b.source.pair:
        return 0
    if a.ordinals is None or b.ordinals is None:
        return min(a.n_samples, b.n_samples)
    return len(np.intersect1d(a.ordinals, b.ordinals, assume_unique=True))


def _key(source: Source, pool: Pool, where: Mapping[str, Any], where_not: Mapping[str, Any]) -> tuple[object, ...]:
    return (source.pair, pool, json.dumps(where, sort_keys=True), json.dumps(where_not, sort_keys=True))


def _shown(where: Mapping[str, Any], where_not: Mapping[str, Any]) -> str:
    """`[subject=anatomy, level=1|2]`."""
    parts = [f"{name}{_wanted(wanted)}" for name, wanted in where.items()]
    parts += [f"not {name}{_wanted(wanted)}" for name, wanted in where_not.items()]
    text = ", ".join(parts)
    return f"[{text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + '…'}]"


def _wanted(wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        if "contains" in wanted:
            return f"~{wanted['contains']}"
        low, high = (str(wanted.get(end, "")) for end in ("min", "max"))
        return f"={low}..{high}"
    return "=" + "|".join(str(each) for each in (wanted if isinstance(wanted, list) else [wanted]))
