"""Labels that no person wrote: by the built-in describer, or by the explainer model that the service was started with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from api.deps import Actor, Books, TheExplainer, needs
from api.progress import NDJSON, Advance, streamed
from api.services.labels.asked import explain_asked
from api.services.labels.describing import store_descriptions
from schema import deadline
from schema.wire.labels import (
    DescribeAsk,
    DescribeProgress,
    DescribeReport,
    ExplainAsk,
    ExplainProgress,
    ExplainReport,
)

router = APIRouter(tags=["labels"])
Form = Literal["json", "ndjson"]
Format = Annotated[Form | None, Query(description="Else what `Accept` asks for, else `json`")]
Accept = Annotated[str, Header(include_in_schema=False)]
_LINES = "A line of progress now and then; the last one has the report, or the problem"


def _answers(shape: type) -> dict[int | str, dict[str, Any]]:
    described = {"schema": {"type": "string", "description": f"{_LINES}: each a `{shape.__name__}`"}}
    return {200: {"content": {NDJSON: described}, "description": "The report, or a stream that ends with it"}}


@router.post(
    "/labels/describe",
    summary="Describe features without a model",
    response_model=DescribeReport,
    responses=_answers(DescribeProgress),
    dependencies=[needs("label")],
)
def post_describe(
    library: Books, asked: DescribeAsk, actor: Actor, format: Format = None, accept: Accept = ""
) -> DescribeReport | StreamingResponse:
    """By the tokens that fire them. A description that says something else than the one before replaces it; what people wrote or
    deleted stays. A large SAE takes longer than a request may: ask for `application/x-ndjson`."""

    def work(advance: Advance) -> DescribeReport:
        return store_descriptions(library, asked.sae, actor, asked.features, advance)

    return streamed(work, DescribeProgress) if _lines(format, accept) else work(_in_time)


@router.post(
    "/labels/explain",
    summary="Have features labelled by the explainer model",
    response_model=ExplainReport,
    responses=_answers(ExplainProgress),
    dependencies=[needs("label")],
)
def post_explain(
    library: Books,
    asked: ExplainAsk,
    actor: Actor,
    explainer: TheExplainer,
    format: Format = None,
    accept: Accept = "",
) -> ExplainReport | StreamingResponse:
    """The model, its address and its key are chosen by who runs the service: 503 where they chose none. What fails is reported and
    never stored. The same request goes on where one ended: by its budget, by a time limit, or because somebody hung up.
    Many features take longer than a request may: ask for `application/x-ndjson`."""

    def work(advance: Advance) -> ExplainReport:
        return explain_asked(library, asked, explainer, actor, advance)

    return streamed(work, ExplainProgress) if _lines(format, accept) else work(_in_time)


def _lines(format: Form | None, accept: str) -> bool:
    return format == "ndjson" or (format is None and NDJSON in accept)


def _in_time(_n: int, _of: int) -> None:
    deadline.check()
