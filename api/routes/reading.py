"""From texts to features: a new text, two sets of texts, a stored sample."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from api.deps import AsOf, Books, Live
from api.services.features.contrast import contrast
from api.services.features.reading import inspect
from api.services.features.samples import stored_sample
from schema.wire.base import Problem
from schema.wire.contrast import ContrastAnswer, ContrastRequest
from schema.wire.reading import InspectAnswer, InspectRequest, SampleAnswer

router = APIRouter(tags=["texts"])


@router.post(
    "/inspect",
    summary="Which features a text fires, token by token",
    responses={503: {"model": Problem, "description": "No model is loaded"}},
)
def post_inspect(library: Books, live: Live, request: InspectRequest) -> InspectAnswer:
    """Through the loaded model, in several SAEs at once."""
    return inspect(library, live, request)


@router.post(
    "/features/contrast",
    summary="Features that tell two sets of texts apart",
    responses={503: {"model": Problem, "description": "Texts were given and no model is loaded"}},
)
def post_contrast(library: Books, http: Request, request: ContrastRequest) -> ContrastAnswer:
    """New texts through the loaded model, or stored samples of two datasets or slices."""
    return contrast(library, http.app.state.live, request)


@router.get("/samples/{dataset}/{sample:path}", summary="A stored sample's features, token by token")
def get_sample(
    library: Books,
    dataset: Annotated[str, Path(max_length=80, examples=["gsm8k"])],
    sample: Annotated[str, Path(max_length=2_000, description="Its id", examples=["17"])],
    sae: Annotated[
        list[Annotated[str, Query(max_length=256)]] | None,
        Query(max_length=128, description="Several at once; may be left out where there is one SAE"),
    ] = None,
    top: Annotated[int, Query(ge=0, le=1_000, description="Strongest features a token")] = 8,
    overall: Annotated[int, Query(ge=0, le=1_000, description="Strongest features of the whole text")] = 20,
    as_of: AsOf = None,
) -> SampleAnswer:
    """From the index; no model is needed."""
    return stored_sample(library, dataset, sample, sae or (), top, overall, as_of)
