"""Watching jobs. Each watcher has a place of its own in a job's events and holds nothing but its number: a slow one misses steps of
progress, never a state, and keeps nobody waiting. Those who have seen equally much share one look into the database a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from api.services.jobs.book import job_events
from schema.database import Database
from schema.errors import NotFound, TooMany
from schema.wire.jobs import JobEvent

MOST_WATCHERS = 256
LOOK_SECONDS = 1.0
QUIET_SECONDS = 15.0
"""After so long without an event a watcher is told that there was none, so that nothing in between cuts the line."""
LONGEST = 3600.0
"""A watcher that is still there after this asks again; who left without a word is not kept for ever."""

Looked = asyncio.Task[tuple[list[JobEvent], bool]]


class Feed:
    """Events of jobs for all who watch in this process."""

    def __init__(self, database: Database, look_seconds: float = LOOK_SECONDS, longest: float = LONGEST) -> None:
        self.database, self.look_seconds, self.longest = database, look_seconds, longest
        self._looks: dict[tuple[int, int], Looked] = {}
        self._watching = 0

    def join(self) -> None:
        """Counts a watcher in.

        Raises:
            TooMany: there are `MOST_WATCHERS` already.
        """
        if self._watching >= MOST_WATCHERS:
            raise TooMany(f"{self._watching} watch jobs here already; ask for the job itself now and then", 5)
        self._watching += 1

    def leave(self) -> None:
        self._watching -= 1

    async def follow(self, job_id: int, after: int) -> AsyncIterator[list[JobEvent]]:
        """What happens to a job after that event, until it has ended; an empty list where nothing did for long."""
        begin = told = time.monotonic()
        while time.monotonic() - begin < self.longest:
            try:
                events, ended = await self._look(job_id, after)
            except NotFound:  # it was forgotten meanwhile
                return
            if events or time.monotonic() - told >= QUIET_SECONDS:
                after = events[-1].id if events else after
                told = time.monotonic()
                yield events
            if ended:
                return
            await asyncio.sleep(self.look_seconds)

    async def _look(self, job_id: int, after: int) -> tuple[list[JobEvent], bool]:
        key = (job_id, after)
        look = self._looks.get(key)
        if look is None:
            look = asyncio.ensure_future(asyncio.to_thread(job_events, self.database, job_id, after))
            self._looks[key] = look
            asyncio.get_running_loop().call_later(self.look_seconds, self._looks.pop, key, None)
        return await asyncio.shield(look)
