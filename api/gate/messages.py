"""Reading what a request says of itself, before anything else looks at it."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Scope

UPLOADS = frozenset({"/v1/evaluations/import", "/v1/labels/import"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def headers_of(scope: Scope) -> Headers:
    return Headers(scope=scope)


def address_of(scope: Scope) -> str:
    """Where the request comes from; behind a trusted proxy uvicorn has put the client's address here."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


def is_upload(scope: Scope) -> bool:
    """A body that is streamed and not held: labels or scores. Whatever it says of itself, any other body is a question."""
    return scope["path"] in UPLOADS
