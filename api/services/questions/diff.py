"""Features that one dataset covers and another does not, ranked, each with a test and the samples that prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from api.services.cursors import read_cursor, write_cursor
from api.services.evidence import common_tokens
from api.services.library import Library
from api.services.provenance import count_of, provenance
from api.services.questions.overlap import check_threshold
from api.services.questions.proven import proven
from api.services.statistics import benjamini_hochberg, fisher_exact, rate_difference_interval
from api.services.written import Written
from schema.errors import Conflict, InputError
from schema.labels import best_labels
from schema.lookup import Source, Subject, find_sources
from schema.records import Pool, Sort
from schema.wire.questions import DiffAnswer, DiffItem, SampleProof

MOST_SAMPLES = 10
Said = tuple[str, str]
"""A label's text and source."""


@dataclass(frozen=True)
class Difference:
    """The whole difference of two footprints, ranked; arrays have one entry for each feature of it."""

    features: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    """(n, 2) samples that fire it in the covering and in the other dataset."""
    interval: npt.NDArray[np.float64]
    """(n, 2)"""
    p: npt.NDArray[np.float64]
    q: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float32]
    n_tested: int
    sizes: tuple[int, int]
    """The two footprints."""


def diff(
    library: Library,
    sae: str | None,
    covered_by: str,
    not_covered_by: str,
    pool: Pool = "any",
    min_samples: int = 1,
    sort: Sort = "rate_difference",
    limit: int = 50,
    cursor: str | None = None,
    samples: int = 2,
    as_of: int | None = None,
) -> DiffAnswer:
    """See `written_diff`."""
    return written_diff(
        library, sae, covered_by, not_covered_by, pool, min_samples, sort, limit, cursor, samples, as_of
    ).read()


def written_diff(
    library: Library,
    sae: str | None,
    covered_by: str,
    not_covered_by: str,
    pool: Pool = "any",
    min_samples: int = 1,
    sort: Sort = "rate_difference",
    limit: int = 50,
    cursor: str | None = None,
    samples: int = 2,
    as_of: int | None = None,
) -> Written[DiffAnswer]:
    """One page of the difference.

    Args:
        samples: proofs a feature, at most 10.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`; Conflict also for the same dataset twice.
        InputError: a number out of range.
    """
    check_threshold(min_samples)
    if sort not in get_args(Sort):
        raise InputError(f"sort={sort!r}: one of {', '.join(get_args(Sort))}")
    if not 0 <= samples <= MOST_SAMPLES:
        raise InputError(f"samples={samples}: from 0 to {MOST_SAMPLES}")
    offset, snapshot = read_cursor(cursor)
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, [covered_by, not_covered_by], snapshot if as_of is None else as_of)
        a, b = subject.sources
        if a.pair == b.pair:
            raise Conflict(f"{covered_by} and {not_covered_by} are the same dataset; name two")
        page = Page(library, subject, pool, min_samples, sort, offset, limit, samples)
        best = best_labels(session, subject.sae.id, page.features)
    labels = {feature: (label.text, label.source) for feature, label in best.items()}
    key = ("diff page", *page.key, tuple(sorted(labels.items())))  # labels change, and nothing else does
    return library.remembered(key, lambda: Written.of(page.answer(labels)))


@dataclass(frozen=True)
class Page:
    """One page of a difference, and what it was asked for."""

    library: Library
    subject: Subject
    pool: Pool
    min_samples: int
    sort: Sort
    offset: int
    limit: int
    samples: int

    @property
    def key(self) -> tuple[object, ...]:
        a, b = self.subject.sources
        asked = (self.pool, self.min_samples, self.sort, self.offset, self.limit, self.samples)
        return (a.pair, b.pair, *self.subject.names, *asked, self.subject.snapshot)

    @property
    def features(self) -> list[int]:
        """The features that it shows."""

        def shown() -> npt.NDArray[np.int64]:
            return self._whole().features[self.offset : self.offset + self.limit].copy()

        return self.library.remembered(("diff shown", *self.key), shown).tolist()

    def answer(self, labels: Mapping[int, Said]) -> DiffAnswer:
        a, b = self.subject.sources
        found, names = self._whole(), self.subject.names
        end = min(self.offset + self.limit, len(found.features))
        shown = proven(self.library, a, self.features, self.pool, self.samples)
        return DiffAnswer(
            data=[_item(self.subject, names, found, i, labels, shown) for i in range(self.offset, end)],
            next_cursor=write_cursor(end, self.subject.snapshot) if end < len(found.features) else None,
            total=len(found.features),
            n_tested=found.n_tested,
            covered_by=count_of(a, found.sizes[0]),
            not_covered_by=count_of(b, found.sizes[1]),
            min_samples=self.min_samples,
            sort=self.sort,
            provenance=provenance(self.subject, self.pool),
        )

    def _whole(self) -> Difference:
        """The difference that it is a page of."""
        a, b = self.subject.sources
        asked = (self.pool, self.min_samples, self.sort)
        return self.library.remembered(
            ("diff", a.pair, b.pair, *asked), lambda: _difference(self.library, a, b, *asked)
        )


def _difference(library: Library, a: Source, b: Source, pool: Pool, min_samples: int, sort: Sort) -> Difference:
    """Tests every feature that fires in either dataset; keeps those that a covers and b does not."""
    counts_a, counts_b = library.counts(a.pair), library.counts(b.pair)
    fires_a, fires_b = counts_a.samples(pool), counts_b.samples(pool)
    tested = np.flatnonzero(fires_a + fires_b)
    x, y = fires_a[tested], fires_b[tested]
    p = fisher_exact(x, a.n_samples, y, b.n_samples)
    q = benjamini_hochberg(p)
    low, high = rate_difference_interval(x, a.n_samples, y, b.n_samples)
    kept = np.flatnonzero((x >= min_samples) & (y < min_samples))
    rate = x[kept] / a.n_samples - y[kept] / b.n_samples
    largest = counts_a.largest[tested[kept]]
    keys: dict[Sort, npt.NDArray[Any]] = {"rate_difference": -rate, "q_value": q[kept], "max_activation": -largest}
    order = kept[np.lexsort((tested[kept], -largest, -rate, keys[sort]))]
    return Difference(
        features=tested[order],
        counts=np.stack([x[order], y[order]], axis=1),
        interval=np.stack([low[order], high[order]], axis=1),
        p=p[order],
        q=q[order],
        largest=counts_a.largest[tested[order]],
        n_tested=len(tested),
        sizes=(int((fires_a >= min_samples).sum()), int((fires_b >= min_samples).sum())),
    )


def _item(
    subject: Subject,
    names: list[str],
    found: Difference,
    i: int,
    labels: Mapping[int, Said],
    shown: Mapping[int, list[SampleProof]],
) -> DiffItem:
    a, b = subject.sources
    feature = int(found.features[i])
    rates = [int(found.counts[i, 0]) / a.n_samples, int(found.counts[i, 1]) / b.n_samples]
    samples = shown.get(feature, [])
    label, source = labels.get(feature, (None, None))
    return DiffItem(
        feature=f"{subject.sae.name}/{feature}",
        index=feature,
        label=label,
        label_source=source,  # type: ignore[arg-type]
        counts={name: int(count) for name, count in zip(names, found.counts[i], strict=True)},
        rates=dict(zip(names, rates, strict=True)),
        rate_difference=rates[0] - rates[1],
        interval=(float(found.interval[i, 0]), float(found.interval[i, 1])),
        p_value=float(found.p[i]),
        q_value=float(found.q[i]),
        max_activation=float(found.largest[i]),
        firing_tokens=common_tokens(samples),
        samples=samples,
    )
