"""How much of a dataset repeats what the rest of it already covers."""

from __future__ import annotations

from collections.abc import Sequence

from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import coverage_curve, redundancy
from schema.errors import InputError
from schema.lookup import find_sources
from schema.records import Pool
from schema.wire.questions import RedundancyAnswer, RedundancyItem

POOLS: tuple[Pool, ...] = ("any", "last")


def redundancies(
    library: Library, sae: str | None, datasets: Sequence[str], pool: Pool = "any", as_of: int | None = None
) -> RedundancyAnswer:
    """Feature redundancy of each dataset with the two baselines it must beat: N, and N / |F|.

    Raises:
        NotFound, Conflict: see `schema.lookup.find_sources`.
    """
    if not datasets:
        raise InputError("name at least one dataset")
    with library.home.database.reading() as session:
        subject = find_sources(session, sae, list(dict.fromkeys(datasets)), as_of)
    items = []
    for name, source in zip(subject.names, subject.sources, strict=True):
        counts = library.counts(source.pair)
        fires = counts.samples(pool)
        n_features = int((fires > 0).sum())
        items.append(
            RedundancyItem(
                dataset=name,
                n_samples=counts.n_samples,
                n_features=n_features,
                footprints={each: int((counts.samples(each) > 0).sum()) for each in POOLS},
                redundancy=redundancy(fires, counts.n_samples),
                baseline_n=counts.n_samples,
                baseline_n_over_f=counts.n_samples / n_features if n_features else None,
                curve=coverage_curve(fires, counts.n_samples),
            )
        )
    return RedundancyAnswer(data=items, provenance=provenance(subject, pool))
