"""Where the jobs are that a command speaks of: in a home's own database, or behind a service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from schema.wire.jobs import IndexJob, JobEvent, JobItem, JobRemoval
from schema.words import JobState

if TYPE_CHECKING:
    from schema.database import Database
    from scopebase.client import Client

LOOK_SECONDS = 0.5


class JobsOf(Protocol):
    """What can be asked of either."""

    def submit(self, body: IndexJob, key: str | None) -> JobItem: ...

    def list(self, state: JobState | None) -> list[JobItem]: ...

    def show(self, job: int) -> JobItem: ...

    def events(self, job: int) -> Iterator[JobEvent]: ...

    def cancel(self, job: int) -> JobItem: ...

    def retry(self, job: int) -> JobItem: ...

    def remove(self, job: int) -> JobRemoval: ...


class HomeJobs:
    """Those of a home. Who can write its database may do everything with them."""

    def __init__(self, database: Database, author: str) -> None:
        from api.services.jobs import book

        self._book, self._database, self._who = book, database, book.Asker(author)

    def submit(self, body: IndexJob, key: str | None) -> JobItem:
        return self._book.submit_job(self._database, body, self._who.name, key)

    def list(self, state: JobState | None) -> list[JobItem]:
        page = self._book.list_jobs(self._database, state, limit=1000)
        found = [*page.data]
        while page.next_cursor:
            page = self._book.list_jobs(self._database, state, limit=1000, cursor=page.next_cursor)
            found += page.data
        return found

    def show(self, job: int) -> JobItem:
        return self._book.show_job(self._database, job)

    def events(self, job: int) -> Iterator[JobEvent]:
        after, ended = 0, False
        while not ended:
            events, ended = self._book.job_events(self._database, job, after)
            yield from events
            after = events[-1].id if events else after
            if not ended:
                time.sleep(LOOK_SECONDS)

    def cancel(self, job: int) -> JobItem:
        return self._book.cancel_job(self._database, job, self._who)

    def retry(self, job: int) -> JobItem:
        return self._book.retry_job(self._database, job, self._who)

    def remove(self, job: int) -> JobRemoval:
        return self._book.remove_job(self._database, job, self._who)


class ServiceJobs:
    """Those of a service."""

    def __init__(self, client: Client) -> None:
        self._jobs = client.jobs

    def submit(self, body: IndexJob, key: str | None) -> JobItem:
        return self._jobs.submit(**body.model_dump(mode="json", exclude_defaults=True, exclude={"kind"}), key=key)

    def list(self, state: JobState | None) -> list[JobItem]:
        return self._jobs.list(state=state)

    def show(self, job: int) -> JobItem:
        return self._jobs.show(job)

    def events(self, job: int) -> Iterator[JobEvent]:
        return self._jobs.events(job)

    def cancel(self, job: int) -> JobItem:
        return self._jobs.cancel(job)

    def retry(self, job: int) -> JobItem:
        return self._jobs.retry(job)

    def remove(self, job: int) -> JobRemoval:
        return self._jobs.remove(job)
