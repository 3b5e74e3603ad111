"""Coverage gaps, as pages or as streams."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from api.deps import Books
from api.services.gaps.formats import ndjson, parquet
from api.services.gaps.gap import coverage_gap, find_gap, stream, summary
from schema.wire.gaps import CoverageGapAnswer, CoverageGapQuestion

router = APIRouter(tags=["questions"])
Format = Literal["json", "ndjson", "parquet"]
NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"
_STREAMS = {
    NDJSON: {"schema": {"type": "string", "description": "One feature a line, each as in `data`"}},
    PARQUET: {"schema": {"type": "string", "format": "binary"}},
}


@router.post(
    "/coverage-gaps",
    summary="What datasets lack of a target",
    response_model=CoverageGapAnswer,
    responses={200: {"content": _STREAMS, "description": "A page, or the whole gap as a stream"}},
)
def post_coverage_gaps(
    library: Books,
    question: CoverageGapQuestion,
    format: Annotated[Format | None, Query(description="Else what `Accept` asks for, else `json`")] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> CoverageGapAnswer | Response:
    """Missing and weakly covered features of a dataset, a feature list, a label search or a rule; ranked, with labels, proving
    samples and synthesis prompts on demand. `since` asks only for what has changed since a snapshot.

    A stream says in the header `Scopebase-Provenance` what it was made from; a Parquet file also in its metadata.
    """
    chosen = format or ("ndjson" if NDJSON in accept else "parquet" if PARQUET in accept else "json")
    if chosen == "json":
        return coverage_gap(library, question)
    gap = find_gap(library, question)
    batches, about = stream(library, gap), summary(library, gap)
    if chosen == "ndjson":
        return StreamingResponse(ndjson(batches), media_type=NDJSON, headers=_headers(about))
    headers = {**_headers(about), "Content-Disposition": 'attachment; filename="coverage-gap.parquet"'}
    return StreamingResponse(parquet(batches, about), media_type=PARQUET, headers=headers)


def _headers(about: CoverageGapAnswer) -> dict[str, str]:
    """Without the runs, which may be hundreds: the same question as JSON with `as_of` names them."""
    made = about.provenance.model_dump(exclude={"runs"})
    coverage = about.coverage.model_dump()
    return {"Scopebase-Provenance": json.dumps(made), "Scopebase-Coverage": json.dumps(coverage)}
