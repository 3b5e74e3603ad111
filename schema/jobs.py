"""Jobs as those see them who ask for long work: submitted, listed, cancelled, begun again, forgotten. Workers are in `schema.queue`.

All moments are the database's, so that a clock that jumps on one machine changes nothing. Each change takes the job's row first, so
that events are numbered in the order of the commits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from schema.audit import audit
from schema.errors import Conflict, InputError, NotFound
from schema.ledger import clock
from schema.tables import Job, JobEvent
from schema.tracing import REQUEST, traceparent
from schema.words import JobState

ENDED = ("finished", "failed", "cancelled")
TRACE = "traceparent"
"""Beside what a job asks for: the request that submitted it, where that is traced."""
MOST_EVENTS = 500
"""Events read at a time."""


def moment(session: Session) -> datetime:
    """The present by the database's clock."""
    return datetime.fromtimestamp(clock(session), UTC)


def note(session: Session, job: Job, text: str | None = None, kind: Literal["state", "line"] = "state") -> None:
    """The next event of a job whose row this transaction holds."""
    job.n_events += 1
    session.add(JobEvent(job_id=job.id, number=job.n_events, kind=kind, state=job.state, text=text, at=moment(session)))


def submit(session: Session, kind: str, request: Mapping[str, Any], author: str, key: str | None) -> Job:
    """A job at the end of the queue; the one that was submitted with the same key where there is one. Inside `writing(alone=True)`.

    Args:
        key: the submitter's word for this submission, so that it can be sent twice.

    Raises:
        InputError: another request came with the same key.
    """
    if key is not None:
        known = session.scalars(select(Job).where(Job.author == author, Job.idempotency_key == key)).one_or_none()
        if known is not None:
            if (known.kind, asked(known)) != (kind, request):
                raise InputError(
                    f"Idempotency-Key {key!r} came with another request before, which became job {known.id}; take a new key"
                )
            return known
    trace = traceparent()
    job = Job(
        kind=kind,
        request=dict(request) if trace is None else {**request, TRACE: trace},
        author=author,
        request_id=REQUEST.get(),
        idempotency_key=key,
        state="queued",
        due=clock(session),
        created_at=moment(session),
        n_events=0,
    )
    session.add(job)
    session.flush()
    note(session, job)
    audit(session, author, "job.submit", str(job.id), {"kind": kind})
    return job


def asked(job: Job) -> dict[str, Any]:
    """What the submitter asked for."""
    return {name: value for name, value in job.request.items() if name != TRACE}


def find_job(session: Session, job_id: int, *, hold: bool = False) -> Job:
    """The job of this number.

    Args:
        hold: keep everybody else from changing it until the transaction ends.

    Raises:
        NotFound: there is none.
    """
    query = select(Job).where(Job.id == job_id)
    job = session.scalars(query.with_for_update() if hold else query).one_or_none()
    if job is None:
        raise NotFound(f"no job has the number {job_id} ('scopebase jobs list' lists what is there)")
    return job


def cancel(session: Session, job: Job, by: str) -> None:
    """Ends a job: at once where nobody works on it, else at the next border between two pieces of work. What is committed stays.

    Raises:
        Conflict: it has finished or failed.
    """
    if job.state in ("finished", "failed"):
        raise Conflict(f"job {job.id} has {job.state} already; there is nothing to cancel")
    if job.state == "cancelled" or job.cancelled_by is not None:
        return
    job.cancelled_by = by
    audit(session, by, "job.cancel", str(job.id))
    if job.state == "queued":
        end(session, job, "cancelled", f"cancelled by {by}")
    else:
        note(session, job, f"{by} cancels it; the piece of work at hand is finished first")


def retry(session: Session, job: Job, by: str) -> None:
    """Puts a job that failed or was cancelled into the queue once more, to go on with what is left.

    Raises:
        Conflict: it waits, runs, or has finished.
    """
    if job.state not in ("failed", "cancelled"):
        doing = "has finished" if job.state == "finished" else f"is {job.state}"
        raise Conflict(f"job {job.id} {doing}; only a job that failed or was cancelled can be tried again")
    job.attempts, job.error, job.cancelled_by, job.finished_at = 0, None, None, None
    enqueue(session, job, f"tried again by {by}")
    audit(session, by, "job.retry", str(job.id))


def enqueue(session: Session, job: Job, text: str, pause: float = 0.0) -> None:
    """Lets the next worker have it, after a pause in seconds."""
    job.state, job.owner, job.leased_until, job.due = "queued", None, None, clock(session) + pause
    note(session, job, text)


def end(session: Session, job: Job, state: JobState, text: str | None = None) -> None:
    """The job's last state, unless somebody tries it again."""
    job.state, job.owner, job.leased_until, job.finished_at = state, None, None, moment(session)
    note(session, job, text)


def remove(session: Session, job: Job, by: str) -> None:
    """Forgets a job that has ended; what it indexed stays.

    Raises:
        Conflict: it has not ended.
    """
    if job.state not in ENDED:
        raise Conflict(f"job {job.id} is {job.state}; cancel it first")
    audit(session, by, "job.remove", str(job.id), {"kind": job.kind, "state": job.state})
    _forget(session, [job.id])


def prune(session: Session, days: float) -> int:
    """Forgets jobs that ended so many days ago, and returns how many there were."""
    before = moment(session) - timedelta(days=days)
    old = list(session.scalars(select(Job.id).where(Job.state.in_(ENDED), Job.finished_at < before).limit(1000)))
    _forget(session, old)
    return len(old)


def _forget(session: Session, ids: Sequence[int]) -> None:
    for table, column in ((JobEvent, JobEvent.job_id), (Job, Job.id)):
        session.execute(delete(table).where(column.in_(ids)))


@dataclass(frozen=True)
class Happened:
    """An event as it is told: a row of `job_events`, or the newest progress."""

    number: int
    kind: Literal["state", "line", "progress"]
    state: JobState
    text: str | None
    at: datetime | None
    """None for progress, which says it itself."""
    progress: dict[str, Any] | None = None


def events_after(session: Session, job: Job, after: int) -> list[Happened]:
    """What happened since that event, oldest first, at most `MOST_EVENTS`; of progress the newest alone."""
    rows = session.scalars(
        select(JobEvent)
        .where(JobEvent.job_id == job.id, JobEvent.number > after)
        .order_by(JobEvent.number)
        .limit(MOST_EVENTS)
    ).all()
    found = [Happened(row.number, row.kind, row.state, row.text, row.at) for row in rows]  # type: ignore[arg-type]
    whole = len(rows) < MOST_EVENTS or job.progress_number < rows[-1].number
    if job.progress is not None and job.progress_number > after and whole:
        newest = Happened(job.progress_number, "progress", "running", None, None, job.progress)
        found = sorted([*found, newest], key=lambda each: each.number)
    return found
