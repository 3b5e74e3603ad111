"""How much of a dataset repeats what the rest of it already covers."""

from __future__ import annotations

from collections.abc import Sequence

from api.services.columns import columns_of
from api.services.library import Library
from api.services.provenance import provenance
from api.services.statistics import coverage_curve, redundancy
from schema.errors import InputError
from schema.records import Pool
from schema.wire.query import DatasetPart
from schema.wire.questions import RedundancyAnswer, RedundancyItem

POOLS: tuple[Pool, ...] = ("any", "last")


def redundancies(
    library: Library,
    sae: str | None,
    datasets: Sequence[str | DatasetPart],
    pool: Pool = "any",
    as_of: int | None = None,
) -> RedundancyAnswer:
    """Feature redundancy of each dataset or slice with the two baselines it must beat: N, and N / |F|.

    Raises:
        NotFound, Conflict, InputError: see `api.services.columns.columns_of`.
    """
    if not datasets:
        raise InputError("name at least one dataset")
    wanted = list({repr(part): part for part in datasets}.values())
    columns, asked = columns_of(library, sae, wanted, pool, as_of)
    by_pool = {each: columns_of(library, sae, wanted, each, columns.subject.snapshot)[1] for each in POOLS}
    items = []
    for i, column in enumerate(asked):
        n_samples, n_features = column.n_samples, int((column.fires > 0).sum())
        items.append(
            RedundancyItem(
                dataset=column.name,
                n_samples=n_samples,
                n_features=n_features,
                footprints={each: int((found[i].fires > 0).sum()) for each, found in by_pool.items()},
                redundancy=redundancy(column.fires, n_samples),
                baseline_n=n_samples,
                baseline_n_over_f=n_samples / n_features if n_features else None,
                curve=coverage_curve(column.fires, n_samples),
            )
        )
    return RedundancyAnswer(data=items, provenance=provenance(columns.subject, pool))
