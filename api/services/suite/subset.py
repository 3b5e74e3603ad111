"""The smallest set of samples found that keeps a share of a dataset's footprint."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from api.services import firing
from api.services.columns import Column, columns_of
from api.services.library import Library
from api.services.provenance import count_in, provenance
from api.services.questions.overlap import check_threshold
from api.services.statistics import inclusion
from api.services.suite.cover import Cover, Fired, fewest, greedy, most, pruned
from schema.errors import InputError
from schema.layout import sample_key
from schema.lookup import Source, Subject
from schema.records import Pool
from schema.wire.query import DatasetPart
from schema.wire.suite import Curve, SubsetAnswer, Weights

MOST_PAIRS = 60_000_000
"""Pairs of a sample and a feature that it fires, held in memory at 12 bytes each: 720 MB."""
POINTS = 24
ROWS = 1_000
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """What the search found."""

    ordinals: list[int]
    cover: Cover
    guarantee: float
    bound: float


@dataclass(frozen=True)
class Selection:
    """What was asked and what was found."""

    subject: Subject
    column: Column
    """The dataset or slice that samples were chosen from."""
    pool: Pool
    min_samples: int
    weights: Weights
    worth: Floats
    """(d_sae,) what each feature counts; 0 outside the footprint."""
    asked: float | None
    found: Chosen

    @property
    def source(self) -> Source:
        return self.column.source


def select_subset(
    library: Library,
    sae: str | None,
    dataset: str | DatasetPart,
    coverage: float | None = None,
    pool: Pool = "any",
    min_samples: int = 1,
    weights: Weights = "uniform",
    n: int | None = None,
    as_of: int | None = None,
) -> Selection:
    """Chooses samples until they fire the share `coverage` of the footprint (0.95 unless given), or the best n.

    Raises:
        NotFound, Conflict, InputError: see `api.services.columns.columns_of`.
        InputError: a number out of range, nothing to cover, or more to hold than memory is allowed for.
    """
    _check(coverage, n, weights, min_samples)
    columns, [column] = columns_of(library, sae, [dataset], pool, as_of)
    kept = column.fires >= min_samples
    if not kept.any():
        raise InputError(f"no feature fires in {min_samples} samples of {column.dataset}: there is nothing to cover")
    if n is not None and n > column.n_samples:
        raise InputError(f"n={n}: {column.dataset} has {column.n_samples:,} samples")
    worth = _weights(library, column, kept, weights)
    asked = (0.95 if coverage is None else coverage) if n is None else None
    key = ("subset", column.key, min_samples, weights, asked, n)
    found = library.remembered(key, lambda: _search(library, column, worth, asked, n))
    return Selection(columns.subject, column, pool, min_samples, weights, worth, asked, found)


def answer_of(library: Library, chosen: Selection) -> SubsetAnswer:
    """A selection with what random samples would do."""
    found, worth = chosen.found, chosen.worth
    covered = np.minimum(found.cover.covered / float(worth.sum()), 1.0)
    count, share = len(found.ordinals), float(covered[-1])
    by_number = chosen.asked is None
    chances = Chances.of(worth, chosen.column)
    return SubsetAnswer(
        dataset=count_in(chosen.column, int((worth > 0).sum())),
        samples=sample_ids(library, chosen.source, found.ordinals),
        coverage=share,
        n_features=int(((found.cover.step < count) & (worth > 0)).sum()),
        curve=[(i, float(covered[i])) for i in range(1, count + 1)],
        asked=chosen.asked,
        weights=chosen.weights,
        guarantee=found.guarantee,
        optimum_at_least=None if by_number else int(found.bound),
        coverage_at_most=min(found.bound / float(worth.sum()), 1.0) if by_number else None,
        random_coverage=chances.covered(count),
        random_n=chances.needed(share),
        random_curve=chances.curve(count),
        min_samples=chosen.min_samples,
        provenance=provenance(chosen.subject, chosen.pool),
    )


def _check(coverage: float | None, n: int | None, weights: str, min_samples: int) -> None:
    check_threshold(min_samples)
    if weights not in get_args(Weights):
        raise InputError(f"weights={weights!r}: one of {', '.join(get_args(Weights))}")
    if n is not None and coverage is not None:
        raise InputError("name a coverage or a number of samples, not both")
    if n is not None and n < 1:
        raise InputError(f"n={n}: at least 1 sample")
    if coverage is not None and not 0 < coverage <= 1:
        raise InputError(f"coverage={coverage:g}: a share above 0 and up to 1")


def _weights(library: Library, column: Column, kept: npt.NDArray[np.bool_], weights: Weights) -> Floats:
    """(d_sae,) what each feature counts; 0 outside the footprint. Sums of activations are the whole dataset's, also for a slice."""
    if weights == "uniform":
        return kept.astype(np.float64)
    if weights == "inverse_frequency":
        return np.where(kept, 1.0 / np.maximum(column.fires, 1), 0.0)
    sums = library.store.rows("profiles", [sample_key(column.source.pair)], ["sums"]).column("sums").combine_chunks()
    return np.where(kept, sums.values.to_numpy(), 0.0)


def _search(library: Library, column: Column, worth: Floats, asked: float | None, n: int | None) -> Chosen:
    fired = read_fired(library, column)
    whole = float(worth.sum())
    if asked is None:
        assert n is not None
        cover = greedy(fired, worth, whole, n)
        guarantee = 1.0 - (1.0 - 1.0 / n) ** n
        return Chosen(_ordinals(fired, cover), cover, guarantee, most(fired, worth, cover, n))
    target = asked * whole
    full = greedy(fired, worth, target)
    bound = fewest(fired, worth, full, target)
    cover = pruned(fired, worth, full, target)
    return Chosen(_ordinals(fired, cover), cover, _guarantee(full, target), bound)


def _ordinals(fired: Fired, cover: Cover) -> list[int]:
    return [int(fired.ordinals[row]) for row in cover.rows]


def _guarantee(cover: Cover, target: float) -> float:
    """Greedy takes at most 1 + ln(T / (T - covered before the last step)) times the fewest (Wolsey 1982, theorem 1)."""
    before = float(cover.covered[-2])
    return 1.0 + math.log(target / (target - before)) if before < target else 1.0


def read_fired(library: Library, column: Column) -> Fired:
    """All samples of a dataset or slice as one sparse matrix.

    Raises:
        InputError: it has more than MOST_PAIRS entries.
    """
    from scipy.sparse import csr_array

    n_pairs = int(column.fires.sum())
    if n_pairs > MOST_PAIRS:
        raise InputError(
            f"{column.dataset} has {n_pairs:,} pairs of a sample and a feature under pool {column.pool}, and at most "
            f"{MOST_PAIRS:,} are held in memory; ask with pool last or for a slice"
        )
    features, ordinals, lengths = np.empty(n_pairs, np.int32), [], []
    filled = 0
    for block in firing.scan(library.store, column.source.pair, column.pool, column.ordinals):
        features[filled : filled + len(block.features)] = block.features
        filled += len(block.features)
        ordinals.append(block.ordinals)
        lengths.append(np.diff(block.offsets))
    begins = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32)
    shape = (len(begins) - 1, len(column.fires))
    return Fired(np.concatenate(ordinals), csr_array((np.ones(filled), features, begins), shape=shape, copy=False))


@dataclass(frozen=True)
class Chances:
    """What random samples are expected to cover. Features that fire in equally many samples share their chance."""

    n_samples: int
    fires: npt.NDArray[np.int64]
    """Distinct counts of samples."""
    worth: Floats
    """The share of the weight that features of each count hold."""

    @classmethod
    def of(cls, worth: Floats, column: Column) -> Chances:
        held = np.bincount(column.fires, weights=worth)
        fires = np.flatnonzero(held)
        return cls(column.n_samples, fires, held[fires] / worth.sum())

    def covered(self, n: int) -> float:
        """Expected of n random samples, in closed form."""
        return float(self.worth @ inclusion(self.fires, self.n_samples, n))

    def needed(self, share: float) -> int:
        """The fewest random samples that are expected to cover a share."""
        few, enough = 0, self.n_samples
        while enough - few > 1:
            middle = (few + enough) // 2
            few, enough = (few, middle) if self.covered(middle) >= share - 1e-12 else (middle, enough)
        return enough

    def curve(self, n: int) -> Curve:
        grid = np.unique(np.geomspace(1, n, POINTS).round().astype(int))
        return [(int(i), self.covered(int(i))) for i in grid]


def sample_ids(library: Library, source: Source, ordinals: Sequence[int]) -> list[str]:
    """The samples' ids, in the order of the ordinals."""
    return [id_ for id_, _ in _rows(library, source, ordinals, ["id"])]


def sample_records(library: Library, source: Source, ordinals: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The samples' fields as they came, in the order of the ordinals."""
    for _, record in _rows(library, source, ordinals, ["id", "record"]):
        yield json.loads(record)


def _rows(library: Library, source: Source, ordinals: Sequence[int], columns: list[str]) -> Iterator[tuple[str, str]]:
    for begin in range(0, len(ordinals), ROWS):
        keys = [sample_key(source.dataset_id, ordinal) for ordinal in ordinals[begin : begin + ROWS]]
        rows = library.store.rows("samples", keys, columns)
        records = rows.column("record").to_pylist() if "record" in columns else [""] * len(rows)
        yield from zip(rows.column("id").to_pylist(), records, strict=True)
