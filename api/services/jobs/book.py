"""Jobs as they are asked about: submitted, listed, shown, cancelled, tried again, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import select

from api.services.cursors import read_cursor, write_cursor
from schema.database import Database
from schema.errors import Forbidden
from schema.jobs import Happened, asked, cancel, events_after, find_job, remove, retry, submit
from schema.queue import MOST_ATTEMPTS
from schema.tables import Job
from schema.wire.base import Page
from schema.wire.jobs import IndexJob, JobEvent, JobItem, JobProgress, JobRemoval, JobRun
from schema.words import JobState


class Asker(NamedTuple):
    """Who asks, and whether others' jobs are theirs too."""

    name: str
    rules: bool = True


def submit_job(database: Database, body: IndexJob, author: str, key: str | None = None) -> JobItem:
    """Puts a job at the end of the queue; the same key with the same request finds the job that it made before.

    Raises:
        InputError: the key came with another request.
    """
    request = body.model_dump(mode="json", exclude_defaults=True)
    with database.writing(alone=True) as session:
        return item(submit(session, body.kind, {"kind": body.kind, **request}, author, key))


def list_jobs(
    database: Database,
    state: JobState | None = None,
    author: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Page[JobItem]:
    """The newest first. A page begins below the last number of the page before, whatever was submitted meanwhile."""
    below, _ = read_cursor(cursor)
    query = select(Job).order_by(Job.id.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(Job.id < below)
    if state is not None:
        query = query.where(Job.state == state)
    if author is not None:
        query = query.where(Job.author == author)
    with database.reading() as session:
        jobs = session.scalars(query).all()
        items = [item(job) for job in jobs[:limit]]
    return Page(data=items, next_cursor=write_cursor(items[-1].id) if len(jobs) > limit else None)


def show_job(database: Database, job_id: int) -> JobItem:
    """One job.

    Raises:
        NotFound: there is none of this number.
    """
    with database.reading() as session:
        return item(find_job(session, job_id))


def cancel_job(database: Database, job_id: int, by: Asker) -> JobItem:
    """Ends a job, at once or at the next border between two pieces of work.

    Raises:
        NotFound, Forbidden: there is none, or it is somebody else's.
        Conflict: it has finished or failed.
    """
    with database.writing() as session:
        job = find_job(session, job_id, hold=True)
        _check_own(job, by, "cancel it")
        cancel(session, job, by.name)
        return item(job)


def retry_job(database: Database, job_id: int, by: Asker) -> JobItem:
    """Puts a job that failed or was cancelled into the queue again, to go on with what is left.

    Raises:
        NotFound, Forbidden: there is none, or it is somebody else's.
        Conflict: it waits, runs or has finished.
    """
    with database.writing() as session:
        job = find_job(session, job_id, hold=True)
        _check_own(job, by, "try it again")
        retry(session, job, by.name)
        return item(job)


def remove_job(database: Database, job_id: int, by: Asker) -> JobRemoval:
    """Forgets a job that has ended.

    Raises:
        NotFound, Forbidden: there is none, or it is somebody else's.
        Conflict: it has not ended.
    """
    with database.writing() as session:
        job = find_job(session, job_id, hold=True)
        _check_own(job, by, "remove it")
        state: JobState = job.state  # type: ignore[assignment]
        remove(session, job, by.name)
    return JobRemoval(id=job_id, state=state)


def job_events(database: Database, job_id: int, after: int = 0) -> tuple[list[JobEvent], bool]:
    """What happened to a job since that event, and whether nothing more will unless it is tried again.

    Raises:
        NotFound: there is none of this number.
    """
    with database.reading() as session:
        job = find_job(session, job_id)
        events = [_event(each) for each in events_after(session, job, after)]
        last = events[-1].id if events else after
        return events, job.finished_at is not None and last >= job.n_events


def item(job: Job) -> JobItem:
    return JobItem(
        id=job.id,
        kind="index",
        state=job.state,  # type: ignore[arg-type]
        cancelling=job.state == "running" and job.cancelled_by is not None,
        author=job.author,
        created_at=job.created_at,
        begun_at=job.begun_at,
        finished_at=job.finished_at,
        attempts=job.attempts,
        most_attempts=MOST_ATTEMPTS,
        worker=job.owner,
        leased_until=None if job.leased_until is None else datetime.fromtimestamp(job.leased_until, UTC),
        progress=_progress(job.progress),
        runs=[JobRun.model_validate(report) for report in job.reports or ()],
        error=job.error,
        request=IndexJob.model_validate(asked(job)),
        last_event=job.n_events,
    )


def _event(happened: Happened) -> JobEvent:
    progress = _progress(happened.progress)
    at = happened.at if progress is None else progress.at
    assert at is not None
    return JobEvent(
        id=happened.number, event=happened.kind, state=happened.state, text=happened.text, at=at, progress=progress
    )


def _progress(stored: dict[str, object] | None) -> JobProgress | None:
    return None if stored is None else JobProgress.model_validate(stored)


def _check_own(job: Job, by: Asker, what: str) -> None:
    if not by.rules and job.author != by.name:
        raise Forbidden(f"job {job.id} is {job.author}'s; {job.author} or a key with the scope admin may {what}")
