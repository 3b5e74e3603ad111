"""Errors as answers: RFC 9457, and on the routes in OpenAI's shapes the same once more as OpenAI's clients read it."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from schema.wire.base import OpenAiError, Problem

PROBLEM = "application/problem+json"
OPENAI = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/responses", "/v1/embeddings")
"""The last two are OpenAI's and not here, which its clients say in these words."""
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class Refusal(JSONResponse):
    """A problem. Its last words depend on the route that is asked, which only the sending of it knows."""

    media_type = PROBLEM

    def __init__(self, made: Problem, headers: Mapping[str, str] | None = None) -> None:
        self.made = made
        super().__init__(made.model_dump(exclude_none=True), made.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(OPENAI):
            self.body = self.render(as_openai(self.made))
            self.headers["content-length"] = str(len(self.body))
            if "retry-after" not in self.headers:
                self.headers["x-should-retry"] = "false"  # its clients try 409 and 503 again, which mends nothing here
        await super().__call__(scope, receive, send)


def problem(
    status: int,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
) -> Refusal:
    """The answer that says what is wrong."""
    return Refusal(described(status, detail, errors, code), headers)


def described(status: int, detail: str, errors: list[dict[str, str]] | None = None, code: str | None = None) -> Problem:
    detail = detail.encode(errors="replace").decode()  # half of a surrogate pair cannot be sent back
    title = HTTPStatus(status).phrase
    return Problem(type="about:blank", title=title, status=status, detail=detail, errors=errors, code=code)


def as_openai(made: Problem) -> dict[str, Any]:
    """A problem, and in `error` the same for OpenAI's clients."""
    kind = _KINDS.get(made.status, "server_error" if made.status >= 500 else "invalid_request_error")
    param = made.errors[0]["field"] if made.errors else None
    code = made.code or _CODES.get(made.status)
    error = OpenAiError(message=made.detail, type=kind, param=param or None, code=code)
    return {**made.model_dump(exclude_none=True), "error": error.model_dump()}
