"""Exchange between labs: labels out and in as packs, streamed both ways."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.deps import Actor, Books, needs
from api.routes.labels import Which
from api.routes.uploads import received
from api.services.labels.export import export
from api.services.labels.importing import import_labels
from schema.wire.labels import ImportReport, PackFormat, Policy

router = APIRouter(tags=["labels"])
NDJSON, PARQUET = "application/x-ndjson", "application/vnd.apache.parquet"
_ANY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE = (
    '{"scopebase_labels":1,"home":"5f0c...","exported_at":"2026-11-21T12:00:00Z"}\n'
    '{"id":"9b2e...","sae":"qwen3-1.7b-base/12-qwenscope-res-32k-l50","sae_sha256":"c0ffee...","index":1234,'
    '"text":"sums of money","author":"ann","source":"person","version":1}\n'
)


@router.get(
    "/labels/export",
    summary="Labels as a pack",
    response_class=StreamingResponse,
    responses={200: {"content": {NDJSON: {"schema": {"type": "string"}, "example": _EXAMPLE}, PARQUET: _ANY}}},
)
def get_pack(
    library: Books,
    which: Which,
    format: Annotated[PackFormat, Query(description="`neuronpedia`: its explanation rows, of one SAE")] = "jsonl",
    cursor: Annotated[
        str | None, Query(max_length=64, description="Id of the last label received: the pack goes on behind it")
    ] = None,
) -> StreamingResponse:
    """Live and filtered; a broken download is gone on with by `cursor`, new labels are fetched by `updated_since`."""
    pieces = export(library, which, format, cursor)
    return StreamingResponse(pieces, media_type=PARQUET if format == "parquet" else NDJSON)


@router.post(
    "/labels/import",
    summary="Take a pack in",
    dependencies=[needs("label")],
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                NDJSON: {"schema": {"type": "string"}, "example": _EXAMPLE},
                PARQUET: {**_ANY, "example": "(what /labels/export gives)"},
            },
        }
    },
)
async def post_pack(
    request: Request,
    library: Books,
    actor: Actor,
    sae: Annotated[
        str | None, Query(max_length=256, description="What rows speak of that name no tensors, as Neuronpedia's")
    ] = None,
    policy: Annotated[Policy, Query(description="For a label that is here with other words")] = "skip",
    dry_run: Annotated[bool, Query(description="Only report what would be done")] = False,
) -> ImportReport:
    """The body is a pack: JSONL, plain or gzip, Parquet, or Neuronpedia's explanation rows. It is checked as a whole before anything
    is written; sent again after an interruption, it goes on."""
    async with received(request) as pack:
        return await run_in_threadpool(import_labels, library, pack, actor, sae, policy, dry_run, "the pack")
