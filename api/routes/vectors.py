"""Steering vectors: a feature's direction, and directions saved under a name. A feature's id holds slashes, a name none."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Path, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from api.deps import Actor, AsOf, Books, Cursor, Limit, needs
from api.services.steering import files
from api.services.steering.directions import MOST_NEIGHBOURS, feature_vector
from api.services.steering.exchange import export_vector, import_vector
from api.services.steering.vectors import Which, delete_vector, list_vectors, save_vector, show_vector
from schema.live import LiveModel
from schema.wire.base import Page
from schema.wire.vectors import (
    FeatureVector,
    ImportVector,
    SavedVector,
    SaveVector,
    VectorFormat,
    VectorItem,
    VectorMade,
    VectorName,
)

router = APIRouter(tags=["steering"])
Name = Annotated[
    str,
    Path(max_length=80, description="`<name>`, or `<name>@<version>` for an older one", examples=["calm", "calm@2"]),
]
FeatureId = Annotated[
    str,
    Path(
        max_length=280,
        description="`<model>/<layer>-<set>/<index>`",
        examples=["tinystories-3m/3-qwenscope-res-3k-l32/17"],
    ),
]
Format = Annotated[VectorFormat, Query(description="As JSON, or as a file of another tool")]
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": _FILE, "text/csv": {"schema": {"type": "string"}}}}
}
_EXAMPLE = '{"name": "calm", "model": "tinystories-3m", "vectors": [{"layer": 3, "vector": [0.25, -0.5, 1.0]}]}'


@router.get("/steering-vectors", summary="List saved vectors")
def get_steering_vectors(
    library: Books,
    name: Annotated[VectorName | None, Query(description="Every version of this one", examples=["calm"])] = None,
    model: Annotated[str | None, Query(max_length=128, description="Of this model")] = None,
    layer: Annotated[int | None, Query(ge=0, le=100_000, description="With a vector at this layer")] = None,
    author: Annotated[str | None, Query(max_length=128, description="By this one")] = None,
    made: Annotated[VectorMade | None, Query(description="Made like this")] = None,
    text: Annotated[str | None, Query(max_length=200, description="In the name or the description")] = None,
    deleted: Annotated[bool, Query(description="Deleted ones too")] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[VectorItem]:
    """The newest version of each saved vector, without its numbers."""
    return list_vectors(library, Which(name, model, layer, author, made, text, deleted), limit, cursor)


@router.post("/steering-vectors", summary="Save a vector", status_code=201, dependencies=[needs("write")])
def post_steering_vector(library: Books, body: SaveVector, actor: Actor, request: Request) -> SavedVector:
    """The next version of a vector: a weighted sum of features and vectors, or a difference of means of datasets or texts.

    `decoded_means` is computed from the index; `residual_means` reads texts through the loaded model.
    """
    live = cast(LiveModel | None, getattr(request.app.state, "live", None))
    return save_vector(library, live, body, actor)


@router.post(
    "/steering-vectors/import",
    summary="Take a vector in from a file",
    status_code=201,
    dependencies=[needs("write")],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/octet-stream": {**_FILE, "example": _EXAMPLE},
            },
        }
    },
)
async def post_vector_file(
    request: Request, library: Books, actor: Actor, options: Annotated[ImportVector, Query()]
) -> SavedVector:
    """The body is the file: safetensors, a GGUF control vector, JSON (ours, Neuronpedia's, EasySteer's) or lm-eval's table.

    It is known by its first bytes. Pickles are never opened.
    """
    data = await request.body()
    return await run_in_threadpool(import_vector, library, data, options, actor)


@router.delete("/steering-vectors/{name}", summary="Delete a vector", dependencies=[needs("write")])
def delete_steering_vector(library: Books, name: Name, actor: Actor) -> Page[VectorItem]:
    """Takes a version, or every version of a name, out of use. What was made with it can still read it as `<name>@<version>`."""
    return delete_vector(library, name, actor)


@router.get("/steering-vectors/{name}", summary="Show a saved vector", response_model=SavedVector, responses=_FILES)
def get_steering_vector(library: Books, name: Name, format: Format = "json") -> SavedVector | Response:
    """One version of a saved vector with its numbers and how it was made, or the file of another tool."""
    return show_vector(library, name) if format == "json" else _file(library, name, format)


@router.get(
    "/steering-vectors/{feature:path}",
    summary="A feature's direction and strengths",
    response_model=FeatureVector,
    responses=_FILES,
)
def get_feature_vector(
    library: Books,
    feature: FeatureId,
    format: Format = "json",
    neighbours: Annotated[
        int, Query(ge=0, le=MOST_NEIGHBOURS, description="Nearest decoder directions to name", examples=[5])
    ] = 0,
    as_of: AsOf = None,
) -> FeatureVector | Response:
    """A feature's decoder column, its norm and layer, how large its activations usually are, and strengths to begin with."""
    if format == "json":
        return feature_vector(library, feature, neighbours, as_of)
    return _file(library, feature, format)


def _file(library: Books, name: str, format: VectorFormat) -> Response:
    data, called = export_vector(library, name, format)
    headers = {"Content-Disposition": f'attachment; filename="{called}"'}
    return Response(data, media_type=files.MEDIA[format], headers=headers)
