"""Jobs: long work for the service's workers. `client.jobs.submit(...)`, then `for event in client.jobs.events(job.id)`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schema.errors import WorkFailed
from schema.wire.base import Page
from schema.wire.jobs import JobEvent, JobItem, JobRemoval
from schema.words import JobState
from scopebase.client.asking import Asking, given
from scopebase.client.rows import Rows
from scopebase.client.transport import NobodyThere, Transport

ENDED = ("finished", "failed", "cancelled")


class Jobs(Asking):
    """A service's jobs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(
        self,
        model: str,
        sae: str,
        datasets: Mapping[str, str] | Sequence[Mapping[str, str]],
        *,
        key: str | None = None,
        **more: Any,
    ) -> JobItem:
        """Indexes datasets through a model and its SAEs, on a worker.

            client.jobs.submit("Qwen/Qwen3-1.7B-Base", "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50", {"gsm8k": "hub:openai/gsm8k:main"})

        Args:
            datasets: name -> source.
            key: this submission's own word: sent twice, it makes one job. A new one unless given.
            **more: further words of `scopebase index`, such as `layers` and `template`.
        """
        named = (
            [{"name": name, "source": source} for name, source in datasets.items()]
            if isinstance(datasets, Mapping)
            else [dict(each) for each in datasets]
        )
        body = given({"kind": "index", "model": model, "sae": sae, "datasets": named, **more})
        headers = {"idempotency-key": key or uuid.uuid4().hex}
        return self._transport.ask("POST", "/jobs", JobItem, json=body, headers=headers)

    def list(self, *, state: JobState | None = None, author: str | None = None) -> Rows[JobItem]:
        """The newest first."""
        return self._all("/jobs", Page[JobItem], {"state": state, "author": author})

    def show(self, job: int) -> JobItem:
        """How far it is, and what became of it."""
        return self._get("/jobs/{job}", JobItem, {}, job=job)

    def events(self, job: int, *, after: int = 0) -> Iterator[JobEvent]:
        """What happens to a job, as it happens, until it has ended. A line that is cut is taken up again where it was.

        Args:
            after: go on after this event.

        Raises:
            ScopebaseError: as the other methods; also where the service stays away.
        """
        failures = 0
        while True:
            try:
                for event in self._transport.events(f"/jobs/{job}/events", JobEvent, after):
                    failures, after = 0, event.id
                    yield event
            except (WorkFailed, NobodyThere):
                failures += 1
                if failures > self._transport.retries:
                    raise
                time.sleep(min(5.0, 0.5 * 2**failures))
                continue
            now = self.show(job)
            if now.state in ENDED and now.last_event <= after:
                return

    def wait(self, job: int) -> JobItem:
        """The job once it has ended, whichever way."""
        for _ in self.events(job, after=self.show(job).last_event):
            pass
        return self.show(job)

    def cancel(self, job: int) -> JobItem:
        """Ends it, at once or at the next border between two pieces of work; what is committed stays."""
        return self._post("/jobs/{job}/cancel", JobItem, {}, job=job)

    def retry(self, job: int) -> JobItem:
        """Goes on with one that failed or was cancelled."""
        return self._post("/jobs/{job}/retry", JobItem, {}, job=job)

    def remove(self, job: int) -> JobRemoval:
        """Forgets one that has ended."""
        return self._delete("/jobs/{job}", JobRemoval, {}, job=job)
