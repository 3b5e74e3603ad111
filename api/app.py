"""The query service: one application over one home, and the one place where errors become answers (RFC 9457)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from api.deps import needs
from api.gate.access import Access
from api.gate.hosts import HostGate
from api.gate.journal import HEADER, Journal
from api.gate.keys import KeyGate
from api.gate.limits import Limits
from api.gate.metrics import Counted, Metrics
from api.gate.traced import Traced
from api.openapi import complete
from api.problems import PROBLEM as PROBLEM
from api.problems import problem
from api.routes import (
    audit,
    catalog,
    evaluations,
    features,
    gaps,
    generation,
    health,
    jobs,
    label_makers,
    label_packs,
    labels,
    metrics,
    neuronpedia,
    query,
    questions,
    reading,
    rules,
    suite,
    sweeps,
    vectors,
)
from api.services.access.keyring import Keyring
from api.services.access.rates import Buckets, Rate
from api.services.jobs.feed import Feed
from api.services.labels.chat import Explainer
from api.services.library import Library
from api.services.sweeps.runner import Runner
from api.services.version import running_version
from schema import tracing
from schema.bucket import fault_of
from schema.errors import ScopebaseError
from schema.generation import Generator
from schema.home import Home
from schema.live import LiveModel
from schema.meaning import Meaning

ROUTES = (
    catalog,
    questions,
    query,
    gaps,
    suite,
    evaluations,
    rules,
    features,
    reading,
    generation,
    vectors,
    sweeps,
    jobs,
    label_packs,
    label_makers,
    labels,
    audit,
)
"""`label_packs` before `labels`: /labels/export before /labels/{label}."""
DESCRIPTION = """Which features does one dataset cover that another does not? Answers over the index of a Scopebase home.

Every answer over activations says in `provenance` what it was made from; `as_of=<snapshot>` repeats it.
Errors are `application/problem+json`."""

NO_OBJECT = "give a JSON object, and say content-type: application/json"


def create_app(
    home: Home,
    live: LiveModel | None = None,
    meaning: Meaning | None = None,
    access: Access = Access(),  # noqa: B008 - frozen
    generator: Generator | None = None,
    explainer: Explainer | None = None,
) -> FastAPI:
    """The service over a home.

    Args:
        live: a loaded model for what texts fire; without one such questions are answered with 503.
        meaning: a sentence model for search by meaning.
        access: who may ask, and how much; everybody unless given.
        generator: a loaded model that generates, and reads too; it takes the place of `live`.
        explainer: a chat model that labels features; without one such questions are answered with 503.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        app.state.sweeps.close()
        home.close()
        tracing.stop()  # one process of several is ended by a signal, which leaves it no other moment to send what it has

    app: FastAPI = FastAPIOffline(  # brings the files of /docs along, for machines without internet
        title="Scopebase",
        version=running_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        generate_unique_id_function=_name,
    )
    app.state.library = Library(home, meaning)
    app.state.metrics = Metrics(home, generator)
    app.state.live = live or generator
    app.state.generator = generator
    app.state.explainer = explainer
    app.state.sweeps = Runner(app.state.library)
    app.state.tokens = None if access.tokens_per_minute is None else Buckets(Rate(access.tokens_per_minute, 60))
    app.state.jobs = Feed(home.database)
    app.include_router(health.router, prefix="/v1")
    app.include_router(metrics.router, dependencies=[needs("read")])
    for module in ROUTES:
        app.include_router(module.router, prefix="/v1", dependencies=[needs("read")])
    app.include_router(neuronpedia.router, prefix="/api", dependencies=[needs("read")])
    app.add_exception_handler(ScopebaseError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _broken)
    _guard(app, home, access)
    described = app.openapi
    app.openapi = lambda: app.openapi_schema or complete(described())  # type: ignore[method-assign]
    return app


def _guard(app: FastAPI, home: Home, access: Access) -> None:
    """The gate, outermost last."""
    app.add_middleware(Limits, access=access)
    app.add_middleware(KeyGate, access=access, keyring=Keyring(home.database))
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["*"],
            allow_headers=["authorization", "content-type", "x-api-key", HEADER],
            expose_headers=[HEADER, "retry-after", "ratelimit", "ratelimit-policy"],
        )
    app.add_middleware(HostGate, access=access)
    app.add_middleware(Counted, metrics=app.state.metrics)
    if tracing.on():
        app.add_middleware(Traced)
    app.add_middleware(Journal, log=access.log)


def _name(route: APIRoute) -> str:
    """The function's, and whose route it is where that is not ours."""
    return f"neuronpedia_{route.name}" if "neuronpedia" in route.tags else route.name


def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ScopebaseError)
    wait = {"retry-after": str(error.retry_after)} if error.retry_after is not None else None
    return problem(error.http_status, str(error), headers=wait, code=error.code)


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Names the fields and what is wrong with each; what was sent is not sent back."""
    assert isinstance(error, RequestValidationError)
    errors = [
        {
            "field": ".".join(str(part) for part in each["loc"][1:]),
            "problem": NO_OBJECT
            if each["type"] == "model_attributes_type"
            else each["msg"].removeprefix("Value error, "),
        }
        for each in error.errors()
    ]
    said = (f"{e['field']}: {e['problem']}" if e["field"] else e["problem"] for e in errors)
    return problem(422, "; ".join(said)[:1000], errors[:50])


def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if detail in ("Not Found", "Method Not Allowed"):  # Starlette's own, where no route fits
        detail = f"there is no {request.method} {request.url.path[:200]} here; /docs lists what there is"
    elif detail == "There was an error parsing the body":
        detail = "the body cannot be read; send JSON in UTF-8"
    return problem(error.status_code, detail, headers=error.headers)


def _broken(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours, without its words: they may hold what was asked; or of the bucket's, met in the middle of a read."""
    store = request.app.state.library.store
    known = None if store.local else fault_of(store.url, error)
    if known is not None:
        return _refused(request, known)
    detail = f"a fault of Scopebase ({type(error).__name__}); the server's log has its trace"
    return problem(500, detail, headers={HEADER: request.state.request_id})
