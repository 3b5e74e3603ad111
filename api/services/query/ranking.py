"""What features are ranked by: the two columns that a question compares, and the values of every feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.columns import Column, Columns, check_apart, n_shared
from api.services.query.comparison import Compared, compare, compare_alike, false_discovery_rate
from api.services.query.conditions import density, largest, leaves, parts_of
from api.services.query.length import Controlled
from schema.errors import InputError
from schema.wire.query import FeatureQuery, QuerySort


@dataclass(frozen=True)
class Ranking:
    """Everything that an item shows and that features are sorted by; arrays are d_sae long."""

    a: Column
    b: Column | None
    plain: Compared | None
    alike: Controlled | None
    alike_q: npt.NDArray[np.float64] | None
    density: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float64]


def pair_of(columns: Columns, question: FeatureQuery) -> tuple[Column, Column] | None:
    """What is compared: as asked, else the first part asked for against the first ruled out, else against the next one."""
    if question.compare:
        a, b = (columns.part(part) for part in question.compare)
        check_apart(a, b)
        return a, b
    found = [(columns.part(part), wanted) for leaf, wanted in leaves(question.where) for part in parts_of(leaf)] + [
        (columns.part(name), True) for name in question.datasets
    ]
    first = next((column for column, wanted in found if wanted), None)
    others = [column for column, wanted in found if not wanted] + [column for column, wanted in found if wanted]
    return next(((first, other) for other in others if first and not n_shared(first, other)), None)


def rank(columns: Columns, question: FeatureQuery) -> Ranking:
    """What the question compares, and the values of every feature."""
    pair = pair_of(columns, question)
    sources = columns.subject.sources
    shared = (density(columns, sources), largest(columns, sources))
    if pair is None:
        first = next(iter(columns))
        return Ranking(first, None, None, None, None, *shared, weigh(columns, first))
    plain = compare(columns.library, *pair)
    alike = None
    if question.length_control or question.sort == "controlled_difference":
        alike = compare_alike(columns.library, *pair)
    q = false_discovery_rate(alike.p, plain.tested) if alike else None
    return Ranking(*pair, plain, alike, q, *shared, weigh(columns, pair[0]))


def weigh(columns: Columns, a: Column) -> npt.NDArray[np.float64]:
    """(d_sae,) how much each feature says of a column: its rate there times ln((1 + N) / (1 + n)), where n of all N samples of the
    question's datasets fire it. It is tf-idf: what is frequent here and rare among all (docs/explanation/measures/queries.md).
    """
    sources = columns.subject.sources
    fires = np.sum([columns.library.counts(source.pair).samples(columns.pool) for source in sources], axis=0)
    n_samples = sum(source.n_samples for source in sources)
    return np.asarray(a.rates * np.log((1 + n_samples) / (1 + fires)))


def check_sort(question: FeatureQuery, ranking: Ranking) -> QuerySort:
    """The order asked for, if what it needs is there."""
    sort = question.sort or ("rate_difference" if ranking.b else "rate")
    if sort in ("rate_difference", "lift", "q_value", "controlled_difference") and ranking.plain is None:
        raise InputError(f"sort={sort!r} needs two datasets or slices to compare; name them in compare")
    if sort == "controlled_difference" and ranking.alike is None:
        raise InputError("sort='controlled_difference': the two have no samples of like length; sort by another")
    return sort


def order_of(ranking: Ranking, sort: QuerySort, reverse: bool) -> npt.NDArray[np.int64]:
    """Every feature of the SAE, best first; ties by the larger rate, then by index."""
    rate = ranking.a.rates
    keys: dict[str, npt.NDArray[Any]] = {
        "rate": rate,
        "weight": ranking.weight,
        "count": ranking.a.fires,
        "max_activation": ranking.largest,
        "density": np.nan_to_num(ranking.density, nan=-1.0),
        "index": -np.arange(len(rate)),
    }
    if ranking.plain:
        plain = ranking.plain
        keys |= {"rate_difference": plain.difference, "lift": plain.lift, "q_value": -plain.q}
    if ranking.alike:
        keys["controlled_difference"] = ranking.alike.difference
    key = keys[sort].astype(np.float64)
    return np.lexsort((-rate, key if reverse else -key))
