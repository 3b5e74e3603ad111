"""How much of each dataset's footprint the others cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from api.services.library import Library
from api.services.provenance import count_of, provenance
from api.services.statistics import inclusion
from api.services.written import Written
from schema import deadline
from schema.errors import InputError
from schema.lookup import Source, Subject, find_sources
from schema.records import Pool
from schema.wire.questions import Matrix, OverlapAnswer


def overlap(
    library: Library,
    sae: str | None,
    datasets: Sequence[str],
    pool: Pool = "any",
    min_samples: int = 1,
    as_of: int | None = None,
) -> OverlapAnswer:
    """See `written_overlap`."""
    return written_overlap(library, sae, datasets, pool, min_samples, as_of).read()


def written_overlap(
    library: Library,
    sae: str | None,
    datasets: Sequence[str],
    pool: Pool = "any",
    min_samples: int = 1,
    as_of: int | None = None,
) -> Written[OverlapAnswer]:
    """The matrices over all pairs of the datasets.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
        InputError: fewer than two datasets, or a threshold below 1.
    """
    names = list(dict.fromkeys(datasets))
    if len(names) < 2:
        raise InputError("name at least two datasets to compare")
    check_threshold(min_samples)
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, names, as_of)
    key = ("overlap", *(source.pair for source in subject.sources), *subject.names, pool, min_samples, subject.snapshot)
    return library.remembered(key, lambda: Written.of(_matrices(library, subject, pool, min_samples)))


def _matrices(library: Library, subject: Subject, pool: Pool, min_samples: int) -> OverlapAnswer:
    library.expect(source.pair for source in subject.sources)
    counts = [library.counts(source.pair) for source in subject.sources]
    footprints = np.stack([c.footprint(pool, min_samples) for c in counts]).astype(np.float32)
    shared = (footprints @ footprints.T).astype(np.int64)
    size = np.diag(shared)
    n = min(c.n_samples for c in counts)
    return OverlapAnswer(
        datasets=[count_of(source, int(f)) for source, f in zip(subject.sources, size, strict=True)],
        overlap=_shares(shared, size[:, None]),
        overlap_min=_shares(shared, np.minimum(size[:, None], size[None, :])),
        jaccard=_shares(shared, size[:, None] + size[None, :] - shared),
        shared=shared.tolist(),
        rarefied=_rarefied(library, subject.sources, pool, min_samples, n),
        rarefied_n=n,
        min_samples=min_samples,
        d_sae=subject.sae.d_sae,
        provenance=provenance(subject, pool),
    )


def check_threshold(min_samples: int) -> None:
    if min_samples < 1:
        raise InputError(f"min_samples={min_samples}: at least 1")


def _shares(shared: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Matrix:
    """A share over nothing is unknown, not 0."""
    whole = np.broadcast_to(whole, shared.shape)
    shares = np.divide(shared, whole, where=whole > 0, out=np.full(shared.shape, np.nan))
    return [[None if np.isnan(value) else float(value) for value in row] for row in shares]


def _rarefied(library: Library, sources: Sequence[Source], pool: Pool, min_samples: int, n: int) -> Matrix:
    """E|F(S_i) & F(S_j)| / E|F(S_i)| for independent random subsets of n samples each: sum of p_i p_j over sum of p_i."""
    p = np.stack([_inclusion(library, source, pool, min_samples, n) for source in sources])
    return _shares(p @ p.T, p.sum(axis=1)[:, None])


def _inclusion(library: Library, source: Source, pool: Pool, min_samples: int, n: int) -> npt.NDArray[np.float64]:
    """(d_sae,) P(n random samples of a dataset cover a feature)."""

    def compute() -> npt.NDArray[np.float64]:
        deadline.check()
        counts = library.counts(source.pair)
        return inclusion(counts.samples(pool), counts.n_samples, n, min_samples)

    return library.remembered(("inclusion", source.pair, pool, min_samples, n), compute)
