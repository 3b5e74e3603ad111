"""Set algebra over datasets."""

from __future__ import annotations

from fastapi import APIRouter

from api.deps import Books
from api.services.query.query import query_features
from schema.wire.query import FeatureQuery, FeatureQueryAnswer

router = APIRouter(tags=["questions"])


@router.post("/features/query", summary="Features that meet a condition")
def post_features_query(library: Books, question: FeatureQuery) -> FeatureQueryAnswer:
    """Any nesting of `and`, `or` and `not` over how features fire in datasets and slices of them, over their density, largest
    activation and labels, and over comparisons; ranked, with counts, intervals and tests.
    """
    return query_features(library, question)
