"""Errors as answers: RFC 9457."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import JSONResponse

from schema.wire.base import Problem

PROBLEM = "application/problem+json"


def problem(
    status: int, detail: str, errors: list[dict[str, str]] | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer that says what is wrong."""
    detail = detail.encode(errors="replace").decode()  # half of a surrogate pair cannot be sent back
    made = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(made.model_dump(exclude_none=True), status, headers, media_type=PROBLEM)
