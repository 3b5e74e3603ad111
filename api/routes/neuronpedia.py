"""Neuronpedia's read routes over our data, under `/api`, so that its clients work here too.

Errors are `{"error": ..., "message": ...}`, which is what those clients read. What is not served (lists, graphs, maps, uploads) says so
in a sentence, with 403: their client shows the sentence of a 4xx and hides that of a 404 or 5xx.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute

from api.deps import Books, Live
from api.services.neuronpedia import catalogue, explanations, features, live, vectors
from schema.errors import Forbidden, ScopebaseError
from schema.wire.neuronpedia import (
    NpActivation,
    NpCosSim,
    NpError,
    NpExported,
    NpFeature,
    NpFoundPage,
    NpGlobal,
    NpModelAnswer,
    NpSourceSetAnswer,
    NpVectorAnswer,
    NpVectorList,
)
from schema.wire.neuronpedia_live import NpComputed, NpHits, NpHitsList, NpSparseAnswer, NpTopAnswer, NpTopList
from schema.wire.neuronpedia_requests import (
    NpActivationNew,
    NpActivationSource,
    NpCosSimAsked,
    NpFeatureId,
    NpOffset,
    NpSearch,
    NpSearchAll,
    NpTopK,
)

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class TheirErrors(APIRoute):
    """A route that refuses in the shape that Neuronpedia's clients read."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except ScopebaseError as error:
                status = 400 if error.http_status == 422 else error.http_status
                return _refusal(status, str(error))
            except RequestValidationError as error:
                wrong = (f"{'.'.join(str(part) for part in each['loc'][1:])}: {each['msg']}" for each in error.errors())
                return _refusal(400, "; ".join(wrong)[:1000])

        return handled


def _refusal(status: int, sentence: str) -> JSONResponse:
    return JSONResponse(NpError(error=sentence, message=sentence).model_dump(), status)


router = APIRouter(
    tags=["neuronpedia"],
    route_class=TheirErrors,
    responses={
        400: {"model": NpError, "description": "The question is wrong"},
        404: {"model": NpError, "description": "No such model, source or feature"},
        422: {"model": NpError, "description": "Not used: a wrong question is 400 here"},
    },
)
UNLOADED: dict[int | str, dict[str, Any]] = {503: {"model": NpError, "description": "No model is loaded"}}
ModelId = Annotated[
    str, Path(max_length=256, description="Id of the model, or its name on the hub", examples=["qwen3-1.7b-base"])
]
SourceId = Annotated[str, Path(max_length=256, description="`<layer>-<set>`", examples=["12-qwenscope-res-32k-l50"])]
Index = Annotated[str, Path(max_length=20, description="The feature", examples=["200"])]
SetName = Annotated[str, Path(max_length=256, description="The source set", examples=["qwenscope-res-32k-l50"])]
FEATURE = {"modelId": "qwen3-1.7b-base", "source": "12-qwenscope-res-32k-l50", "index": "200"}
TEXT = {**FEATURE, "customText": "The cat sat."}


@router.get("/feature/{model_id}/{source}/{index}")
def get_feature(library: Books, model_id: ModelId, source: SourceId, index: Index) -> NpFeature:
    """A feature with its counts, examples, labels and logits."""
    return features.feature(library, model_id, source, index)


@router.post("/features")
def post_features(
    library: Books, wanted: Annotated[list[NpFeatureId], Body(max_length=100, examples=[[FEATURE]])]
) -> list[NpFeature]:
    """Several features, in the order asked for; those that are not there are left out."""
    return features.features(library, wanted)


@router.post("/features-offset")
def post_features_offset(
    library: Books, wanted: Annotated[NpOffset, Body(examples=[{**FEATURE, "offset": 0}])]
) -> list[NpFeature]:
    """The next 25 features of a source from an index on."""
    return features.features_from(library, wanted)


@router.post("/activation/get")
def post_activation_get(library: Books, wanted: Annotated[NpFeatureId, Body(examples=[FEATURE])]) -> list[NpActivation]:
    """All examples of a feature."""
    return features.activations(library, wanted)


QUERY = {"modelId": "qwen3-1.7b-base", "layers": ["12-qwenscope-res-32k-l50"], "query": "dates and years"}
Query_ = Annotated[NpSearch, Body(examples=[QUERY])]


@router.post("/explanation/search")
def post_search(library: Books, asked: Query_) -> NpFoundPage:
    """Labels of some sources of a model that hold all words of the query, 20 a page."""
    return explanations.search(library, asked, "sources")


@router.post("/explanation/search-model")
def post_search_model(library: Books, asked: Query_) -> NpFoundPage:
    """The same over all sources of a model."""
    return explanations.search(library, asked, "model")


@router.post("/explanation/search-release")
def post_search_release(
    library: Books,
    asked: Annotated[
        NpSearch, Body(examples=[{"releaseName": "sae-res-qwen3-1.7b-base-w32k-l0_50", "query": "dates"}])
    ],
) -> NpFoundPage:
    """The same over a release."""
    return explanations.search(library, asked, "release")


@router.post("/explanation/search-all")
def post_search_all_labels(library: Books, asked: Query_) -> NpFoundPage:
    """The same over every label that is here."""
    return explanations.search(library, asked, "all")


@router.get("/explanation/export", response_model=list[NpExported])
def get_export(
    library: Books,
    model_id: Annotated[
        str, Query(alias="modelId", max_length=256, description="Id of the model", examples=["qwen3-1.7b-base"])
    ],
    sae_id: Annotated[
        str, Query(alias="saeId", max_length=256, description="The source", examples=["12-qwenscope-res-32k-l50"])
    ],
) -> StreamingResponse:
    """Every label of a source, by feature, as one JSON list."""
    lines = explanations.export(library.home.database, model_id, sae_id)

    def body() -> Any:
        before = "["
        for line in lines:
            yield before + line.model_dump_json()
            before = ","
        yield "[]" if before == "[" else "]"

    return StreamingResponse(body(), media_type="application/json")


@router.get("/model")
def get_models(library: Books) -> list[NpModelAnswer]:
    """Every model with its source sets."""
    with library.home.database.reading() as session:
        return catalogue.models(session)


@router.get("/model/{model_id}")
def get_model(library: Books, model_id: ModelId) -> NpModelAnswer:
    """A model with its source sets."""
    with library.home.database.reading() as session:
        return catalogue.one_model(session, model_id)


@router.get("/source-set/{model_id}/{name}")
def get_source_set(library: Books, model_id: ModelId, name: SetName) -> NpSourceSetAnswer:
    """A source set with its sources."""
    with library.home.database.reading() as session:
        return catalogue.one_source_set(session, model_id, name)


@router.post("/global")
def post_global(library: Books) -> NpGlobal:
    """Models, releases and kinds of explanations: what their pages ask for first."""
    with library.home.database.reading() as session:
        return catalogue.overview(session)


@router.post("/vector/get")
def post_vector_get(library: Books, wanted: Annotated[NpFeatureId, Body(examples=[FEATURE])]) -> NpVectorAnswer:
    """A feature's decoder column, or a saved steering vector as `{"source": "12-vectors", "index": "calm"}`."""
    return vectors.vector(library, wanted)


@router.post("/vector/list-owned")
def post_vector_list_owned(library: Books) -> NpVectorList:
    """The steering vectors that are saved here."""
    return vectors.saved_vectors(library)


@router.post("/cossim")
def post_cossim(
    library: Books,
    asked: Annotated[
        NpCosSimAsked,
        Body(
            examples=[
                {**FEATURE, "targetModelId": "qwen3-1.7b-base", "targetSourceId": "13-qwenscope-res-32k-l50"},
            ]
        ),
    ],
) -> NpCosSim:
    """The features of a source whose decoder directions are nearest to a feature's."""
    return vectors.cosines(library, asked)


@router.post("/activation/new", responses=UNLOADED)
def post_activation_new(
    library: Books,
    model: Live,
    asked: Annotated[NpActivationNew, Body(examples=[{"feature": FEATURE, "customText": "The cat sat."}])],
) -> NpComputed | list[NpComputed]:
    """A feature's activations on a text of one's own; needs a loaded model."""
    return live.activation(library, model, asked)


@router.post("/activation/source", responses=UNLOADED)
def post_activation_source(
    library: Books, model: Live, asked: Annotated[NpActivationSource, Body(examples=[TEXT])]
) -> NpSparseAnswer:
    """Every feature of a source that fires on a text; needs a loaded model."""
    return live.source_activations(library, model, asked)


HITS = {"modelId": "qwen3-1.7b-base", "sourceSet": "qwenscope-res-32k-l50", "text": "The cat sat.", "numResults": 20}


@router.post("/search-all/", include_in_schema=False)  # their client ends the address so
@router.post("/search-all", responses=UNLOADED)
def post_search_all(
    library: Books, model: Live, asked: Annotated[NpSearchAll, Body(examples=[HITS])]
) -> NpHits | NpHitsList:
    """The features of a source set that fire most on a text; needs a loaded model."""
    return live.search_all(library, model, asked)


@router.post("/search-topk-by-token/", include_in_schema=False)
@router.post("/search-topk-by-token", responses=UNLOADED)
def post_top_by_token(
    library: Books, model: Live, asked: Annotated[NpTopK, Body(examples=[{**TEXT, "text": "The cat sat."}])]
) -> NpTopAnswer | NpTopList:
    """At each token of a text the features that fire most; needs a loaded model."""
    return live.top_by_token(library, model, asked)


UPLOAD = "what is here comes from indexing; 'scopebase index' and 'scopebase import' add to it"
LIST = "Scopebase keeps no lists of features; a label, a rule or 'POST /v1/features/query' names several at once"
GRAPH = "Scopebase keeps no attribution graphs; 'scopebase export features-json' writes features for the tools that draw them"
EXPLAIN = "'scopebase label explain' and 'POST /v1/labels' add labels here"
STEER = "steered text comes from POST /v1/completions and /v1/chat/completions, with a 'steering' object"
VECTOR = "steering vectors are saved with POST /v1/steering-vectors or 'scopebase vector save'"
NOT_SERVED = {
    **dict.fromkeys(("model/new", "source-set/new", "feature/upload-batch", "activation/upload-batch"), UPLOAD),
    **dict.fromkeys(("explanation/new", "explanation/generate", "explanation/score"), EXPLAIN),
    **dict.fromkeys(("vector/new", "vector/delete"), VECTOR),
    **dict.fromkeys(("steer", "steer/", "steer-chat", "steer-chat/"), STEER),
    "umap": "Scopebase computes no maps of features; POST /api/cossim and /v1/features/{feature}/neighbours give near ones",
    "list/{call}": LIST,
    "graph/{call}": GRAPH,
}
"""Path of a call of theirs -> what to do instead."""


def _refuse(path: str, instead: str) -> None:
    def refused() -> None:
        raise Forbidden(f"/api/{path.partition('/{')[0]} is not served: {instead}")

    router.add_api_route(f"/{path}", refused, methods=["POST"], include_in_schema=False)


for path, instead in NOT_SERVED.items():
    _refuse(path, instead)


@router.get("/graph/{model_id}/{slug}", include_in_schema=False)
def get_graph() -> None:
    """Refused."""
    raise Forbidden(f"/api/graph is not served: {GRAPH}")
