"""The queue of jobs as one worker sees it. A job is leased with a fencing token, as shards are (`schema.ledger`).

Whoever takes a job raises its token; whatever an earlier holder says of it later is not heard. A worker that dies costs nothing but
time: its lease lapses, at once where it died on this host, and the next worker goes on, `MOST_ATTEMPTS` times at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, func, or_, select, update
from sqlalchemy.orm import Session

from schema.database import Database
from schema.errors import LeaseLost
from schema.jobs import end, enqueue, moment, note
from schema.ledger import LEASE_SECONDS, clock, owner_died, owner_name
from schema.tables import Job, JobEvent

MOST_ATTEMPTS = 3
BACKOFF_SECONDS = 5.0
"""Pause before the second attempt at work that could not go on; doubled for each further one."""
MOST_LINES = 200
"""Lines kept of what is said of a job."""
MOST_CHARS = 2_000


class Queue:
    """Jobs to take, and what becomes of them.

    Args:
        lease_seconds: how long a worker may be silent before another one takes its job.
    """

    def __init__(self, database: Database, owner: str | None = None, lease_seconds: float = LEASE_SECONDS) -> None:
        self.database = database
        self.owner = owner or owner_name()
        self.lease_seconds = lease_seconds

    def take(self) -> Job | None:
        """The job that waits longest, or whose worker fell silent; None where there is nothing to do."""
        self._reclaim()
        with self.database.reading() as session:  # on SQLite a look takes no lock from those who write
            if session.scalar(select(func.count()).where(_free(session))) == 0:
                return None
        with self.database.writing() as session:
            query = select(Job).where(_free(session)).order_by(Job.id).limit(1).with_for_update(skip_locked=True)
            while (job := session.scalars(query).one_or_none()) is not None:
                if self._begin(session, job):
                    return job
                session.flush()
        return None

    def _begin(self, session: Session, job: Job) -> bool:
        """Takes the job, unless it has fallen silent too often or was to be cancelled."""
        if job.state == "running" and job.cancelled_by is not None:
            end(session, job, "cancelled", f"cancelled by {job.cancelled_by}; its worker {job.owner} is gone")
            return False
        if job.state == "running" and job.attempts >= MOST_ATTEMPTS:
            job.error = (
                f"{job.attempts} workers fell silent over it, {job.owner} the last; look into their logs "
                "(out of memory?), then try again: what is committed stays"
            )
            end(session, job, "failed", job.error)
            return False
        silent = f"{job.owner} fell silent; " if job.state == "running" else ""
        job.state, job.owner, job.token, job.attempts = "running", self.owner, job.token + 1, job.attempts + 1
        job.leased_until = clock(session) + self.lease_seconds
        job.begun_at = job.begun_at or moment(session)
        job.progress = None
        note(session, job, f"{silent}attempt {job.attempts} of {MOST_ATTEMPTS}, by {self.owner}")
        return True

    def _reclaim(self) -> None:
        """Ends the leases of workers that died on this host."""
        with self.database.reading() as session:
            running = session.execute(select(Job.id, Job.owner, Job.token).where(Job.state == "running")).all()
        dead = [(id_, token) for id_, owner, token in running if owner and owner_died(owner)]
        if dead:
            with self.database.writing() as session:
                for id_, token in dead:
                    session.execute(
                        update(Job)
                        .where(Job.id == id_, Job.token == token, Job.state == "running")
                        .values(leased_until=0.0)
                    )

    def beat(self, job: Job, progress: dict[str, Any] | None = None) -> bool:
        """Renews the lease, and says how far the work is; whether somebody wants it ended.

        Raises:
            LeaseLost: another worker has it, or it was ended.
        """
        with self.database.writing() as session:
            held = self._held(session, job)
            held.leased_until = clock(session) + self.lease_seconds
            if progress is not None:
                held.n_events += 1
                held.progress, held.progress_number = progress, held.n_events
            return held.cancelled_by is not None

    def say(self, job: Job, text: str) -> None:
        """A line about what goes on, for whoever watches; not more than `MOST_LINES` of them.

        Raises:
            LeaseLost: as `beat`.
        """
        with self.database.writing() as session:
            held = self._held(session, job)
            lines = select(func.count()).where(JobEvent.job_id == job.id, JobEvent.kind == "line")
            if (session.scalar(lines) or 0) < MOST_LINES:
                note(session, held, text[:MOST_CHARS], "line")

    def finish(self, job: Job, reports: Sequence[dict[str, Any]]) -> None:
        """The work is done.

        Raises:
            LeaseLost: as `beat`; then it is the other worker's to say so.
        """
        with self.database.writing() as session:
            held = self._held(session, job)
            held.reports = list(reports)
            end(session, held, "finished")

    def fail(self, job: Job, error: str, *, again: bool) -> None:
        """The work could not be done.

        Args:
            error: a sentence for who submitted it.
            again: another attempt may do better; made after a pause, if any is left.

        Raises:
            LeaseLost: as `beat`.
        """
        with self.database.writing() as session:
            held = self._held(session, job)
            held.error = error[:MOST_CHARS]
            if held.cancelled_by is not None:
                end(session, held, "cancelled", f"cancelled by {held.cancelled_by}")
            elif again and held.attempts < MOST_ATTEMPTS:
                pause = BACKOFF_SECONDS * 2 ** (held.attempts - 1)
                enqueue(session, held, f"{held.error} (tried again in {pause:.0f} s)", pause)
            else:
                end(session, held, "failed", held.error)

    def give_back(self, job: Job, why: str | None = None, pause: float = 0.0) -> None:
        """Stops where the work stands: ended where that was asked for, else for the next worker. It counts as no attempt.

        Args:
            why: unless it is because this worker ends.
            pause: seconds until somebody may take it again.

        Raises:
            LeaseLost: as `beat`.
        """
        with self.database.writing() as session:
            held = self._held(session, job)
            if held.cancelled_by is not None:
                end(session, held, "cancelled", f"cancelled by {held.cancelled_by}")
            else:
                held.attempts -= 1
                enqueue(session, held, f"given back by {self.owner}{': ' + why if why else ', which ends'}", pause)

    def _held(self, session: Session, job: Job) -> Job:
        """The job as it is now, if this worker still holds it."""
        mine = select(Job).where(Job.id == job.id, Job.token == job.token, Job.state == "running")
        held = session.scalars(mine.with_for_update()).one_or_none()
        if held is None:
            raise LeaseLost(f"job {job.id} is in other hands by now")
        return held


def _free(session: Session) -> Any:
    """What a worker may take."""
    present = clock(session)
    return or_(
        and_(Job.state == "queued", Job.due <= present), and_(Job.state == "running", Job.leased_until < present)
    )
