"""The query service: one application over one home, and the one place where errors become answers (RFC 9457)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from api.routes import (
    catalog,
    evaluations,
    features,
    gaps,
    health,
    label_packs,
    labels,
    neuronpedia,
    query,
    questions,
    reading,
    rules,
    suite,
)
from api.services.library import Library
from schema.errors import ScopebaseError
from schema.home import Home
from schema.live import LiveModel
from schema.meaning import Meaning
from schema.wire.base import Problem

ROUTES = (health, catalog, questions, query, gaps, suite, evaluations, rules, features, reading, label_packs, labels)
"""`label_packs` before `labels`: /labels/export before /labels/{label}."""
PROBLEM = "application/problem+json"
DESCRIPTION = """Which features does one dataset cover that another does not? Answers over the index of a Scopebase home.

Every answer over activations says in `provenance` what it was made from; `as_of=<snapshot>` repeats it.
Errors are `application/problem+json`."""


def create_app(home: Home, live: LiveModel | None = None, meaning: Meaning | None = None) -> FastAPI:
    """The service over a home.

    Args:
        live: a loaded model for what texts fire; without one such questions are answered with 503.
        meaning: a sentence model for search by meaning.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        home.close()

    app: FastAPI = FastAPIOffline(  # brings the files of /docs along, for machines without internet
        title="Scopebase",
        version=health.running_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        responses={
            422: {"model": Problem, "description": "The question is wrong"},
            404: {"model": Problem, "description": "No such name"},
        },
    )
    app.state.library = Library(home, meaning)
    app.state.live = live
    for module in ROUTES:
        app.include_router(module.router, prefix="/v1")
    app.include_router(neuronpedia.router, prefix="/api")
    app.add_exception_handler(ScopebaseError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)
    return app


def _problem(
    status: int,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    problem = Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return JSONResponse(problem.model_dump(exclude_none=True), status, headers, media_type=PROBLEM)


def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ScopebaseError)
    return _problem(error.http_status, str(error))


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Names the fields and what is wrong with each; what was sent is not sent back."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {
            "field": ".".join(str(part) for part in each["loc"][1:]),
            "problem": each["msg"].removeprefix("Value error, "),
        }
        for each in error.errors()
    ]
    said = (f"{e['field']}: {e['problem']}" if e["field"] else e["problem"] for e in errors)
    return _problem(422, "; ".join(said)[:1000], errors[:50])


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _problem(error.status_code, str(error.detail), headers=error.headers)


def _broken(_request: Request, error: Exception) -> JSONResponse:
    return _problem(500, f"a fault of Scopebase ({type(error).__name__}); the server's log has its trace")
