"""Jobs: long work that workers do, on whatever machine; submitted, watched, cancelled, tried again."""

from __future__ import annotations

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api.deps import Actor, Books, Cursor, Limit, needs
from api.events import NumberedStream
from api.services.jobs import book
from api.services.jobs.book import Asker
from api.services.jobs.feed import Feed
from schema.wire.base import Page
from schema.wire.jobs import IndexJob, JobEvent, JobItem, JobRemoval
from schema.words import JobState

router = APIRouter(tags=["jobs"])
JobId = Annotated[int, Path(ge=1, le=1 << 31, description="Its number", examples=[3])]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same key with the same body finds the job that it made before; with another body it is refused (422)",
        examples=["5f0c2a9e-71b4-4c0e-9a55-0c1d6b8f3e21"],
    ),
]
LastEvent = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, le=1 << 31, description="Go on after this event", examples=[4]),
]
_DATA = JobEvent.model_json_schema(ref_template="#/components/schemas/{model}")
_DATA.pop("$defs")  # answers that are no stream bring them
EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "The event's number"},
        "event": {"type": "string", "enum": ["state", "line", "progress"]},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _DATA,
        },
    },
}
"""As a reader of server-sent events hands it on."""
WATCHED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `state`, `line` and `progress`, each with its number and a `JobEvent` as data",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
    204: {"description": "The job has ended, and that event was its last"},
}


def _asker(http: Request, actor: str) -> Asker:
    scopes = getattr(http.state, "scopes", None)
    return Asker(actor, scopes is None or "admin" in scopes)


@router.post("/jobs", summary="Submit a job", status_code=202, dependencies=[needs("write")])
def post_job(
    library: Books, actor: Actor, response: Response, body: Annotated[IndexJob, Body()], key: Key = None
) -> JobItem:
    """Puts `scopebase index` into the queue, for a worker (`scopebase work`) to do; `Location` says where to watch it."""
    job = book.submit_job(library.home.database, body, actor, key)
    response.headers["location"] = f"/v1/jobs/{job.id}"
    return job


@router.get("/jobs", summary="List jobs")
def get_jobs(
    library: Books,
    state: Annotated[JobState | None, Query(description="Only these")] = None,
    author: Annotated[str | None, Query(max_length=128, description="Only this submitter's")] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[JobItem]:
    """The newest first, with how far each is."""
    return book.list_jobs(library.home.database, state, author, limit, cursor)


@router.get("/jobs/{job}", summary="Show a job")
def get_job(library: Books, job: JobId) -> JobItem:
    """Its state, how far it is and at what rate, who works on it, and the runs it made."""
    return book.show_job(library.home.database, job)


@router.get("/jobs/{job}/events", summary="Watch a job", response_class=Response, responses=WATCHED)
async def get_job_events(
    http: Request,
    library: Books,
    job: JobId,
    after: Annotated[int, Query(ge=0, le=1 << 31, description="Go on after this event")] = 0,
    last_event: LastEvent = None,
) -> Any:
    """Server-sent events from the first one on, or from `Last-Event-ID`, until the job has ended."""
    feed = cast(Feed, http.app.state.jobs)
    seen = after if last_event is None else last_event
    events, ended = await run_in_threadpool(book.job_events, library.home.database, job, seen)
    if ended and not events:
        return Response(status_code=204)  # an EventSource asks no more
    feed.join()
    http.state.aside()
    return NumberedStream(feed.follow(job, seen), feed.leave)


@router.post("/jobs/{job}/cancel", summary="Cancel a job", dependencies=[needs("write")])
def post_job_cancel(library: Books, http: Request, job: JobId, actor: Actor) -> JobItem:
    """One that waits ends at once, one that runs at the next border between two pieces of work. What is committed stays."""
    return book.cancel_job(library.home.database, job, _asker(http, actor))


@router.post("/jobs/{job}/retry", summary="Try a job again", dependencies=[needs("write")])
def post_job_retry(library: Books, http: Request, job: JobId, actor: Actor) -> JobItem:
    """One that failed or was cancelled waits once more, and goes on with what is left."""
    return book.retry_job(library.home.database, job, _asker(http, actor))


@router.delete("/jobs/{job}", summary="Forget a job", dependencies=[needs("write")])
def delete_job(library: Books, http: Request, job: JobId, actor: Actor) -> JobRemoval:
    """One that has ended, with its events; what it indexed stays."""
    return book.remove_job(library.home.database, job, _asker(http, actor))
