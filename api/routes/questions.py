"""Questions over datasets; each reads profiles and never rescans activations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.deps import (
    AsOf,
    Books,
    Cursor,
    DatasetName,
    DatasetNames,
    Limit,
    MinSamples,
    PoolParam,
    SaeParam,
    TwoDatasets,
    WhereNotParam,
    WhereParam,
    as_written,
    slice_of,
)
from api.services.questions.diff import MOST_SAMPLES, written_diff
from api.services.questions.overlap import written_overlap
from api.services.questions.redundancy import redundancies
from schema.records import Sort
from schema.wire.questions import DiffAnswer, OverlapAnswer, RedundancyAnswer

router = APIRouter(tags=["questions"])


@router.get("/overlap", response_model=OverlapAnswer)
def get_overlap(
    library: Books,
    dataset: TwoDatasets,
    sae: SaeParam = None,
    pool: PoolParam = "any",
    min_samples: MinSamples = 1,
    as_of: AsOf = None,
) -> Response:
    """How much of each dataset's footprint each other one covers, all pairs at once."""
    return as_written(written_overlap(library, sae, dataset, pool, min_samples, as_of))


@router.get("/diff", response_model=DiffAnswer)
def get_diff(
    library: Books,
    covered_by: DatasetName,
    not_covered_by: DatasetName,
    sae: SaeParam = None,
    pool: PoolParam = "any",
    min_samples: MinSamples = 1,
    sort: Sort = "rate_difference",
    limit: Limit = 50,
    cursor: Cursor = None,
    samples: Annotated[int, Query(ge=0, le=MOST_SAMPLES, description="Proving samples a feature")] = 2,
    as_of: AsOf = None,
) -> Response:
    """Features that one dataset covers and another does not, ranked, with tests and proving samples."""
    return as_written(
        written_diff(library, sae, covered_by, not_covered_by, pool, min_samples, sort, limit, cursor, samples, as_of)
    )


@router.get("/redundancy")
def get_redundancy(
    library: Books,
    dataset: DatasetNames,
    where: WhereParam = None,
    where_not: WhereNotParam = None,
    sae: SaeParam = None,
    pool: PoolParam = "any",
    as_of: AsOf = None,
) -> RedundancyAnswer:
    """Feature redundancy of each dataset, or of the same slice of each, in closed form, beside the baselines it must beat."""
    return redundancies(library, sae, [slice_of(name, where, where_not) for name in dataset], pool, as_of)
