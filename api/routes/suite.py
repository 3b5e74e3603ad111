"""Smaller datasets and smaller suites."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import AsOf, Books, DatasetName, MinSamples, PoolParam, SaeParam, WhereNotParam, WhereParam, slice_of
from api.services.suite.advice import advise
from api.services.suite.subset import answer_of, select_subset
from schema.wire.suite import SubsetAnswer, SuiteAnswer, SuiteRequest, Weights

router = APIRouter(tags=["suites"])

Coverage = Annotated[float | None, Query(gt=0, le=1, description="Share of the footprint to keep; 0.95 unless given")]
Budget = Annotated[int | None, Query(ge=1, le=1 << 40, description="The best so many samples instead")]
WeightsParam = Annotated[
    Weights,
    Query(
        description="What a feature counts: 1; 1 / the samples that fire it; or the sum of its activations over all tokens"
    ),
]


@router.get("/subset", summary="The smallest subset found that keeps the footprint")
def get_subset(
    library: Books,
    dataset: DatasetName,
    where: WhereParam = None,
    where_not: WhereNotParam = None,
    sae: SaeParam = None,
    coverage: Coverage = None,
    n: Budget = None,
    weights: WeightsParam = "uniform",
    pool: PoolParam = "any",
    min_samples: MinSamples = 1,
    as_of: AsOf = None,
) -> SubsetAnswer:
    """Samples that keep a share of a dataset's or a slice's footprint, with bounds on the optimum and what random samples would keep."""
    part = slice_of(dataset, where, where_not)
    chosen = select_subset(library, sae, part, coverage, pool, min_samples, weights, n, as_of)
    return answer_of(library, chosen)


@router.post("/suite", summary="Advice on a suite of datasets")
def post_suite(library: Books, request: SuiteRequest) -> SuiteAnswer:
    """Which datasets or slices the others cover, which are apart, and in what order to drop them."""
    return advise(library, request)
