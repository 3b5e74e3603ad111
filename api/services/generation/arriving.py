"""From the engine's thread to whoever waits: on an event loop, or in a thread that reads one answer."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from api.services.generation.assembly import Assembly
from api.services.generation.forms import Form
from api.services.generation.prepared import Prepared
from schema.errors import WorkFailed
from schema.generation import Choice, Event, Failed, Generator, Ticket
from schema.wire.sampling import Answered

MOST_UNREAD = 2_000
"""Events of one request that wait for a slow reader; then it is given up, and its place in the batch is another's."""
Whole = TypeVar("Whole", bound=Answered)
Chunk = TypeVar("Chunk", bound=Answered)


class Arriving:
    """The events of one request, read on the event loop that made this."""

    def __init__(self, most_unread: int = MOST_UNREAD) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._some = asyncio.Event()
        self._first: Event | None = None
        self._most = most_unread
        self._lock = threading.Lock()
        self._ticket: Ticket | None = None
        self._closed = False

    async def submit(self, generator: Generator, choices: Sequence[Choice]) -> None:
        """Queues the request. Raises what `Generator.submit` raises."""
        await asyncio.to_thread(self._submit, generator, choices)

    async def begun(self) -> None:
        """Waits for the first event.

        Raises:
            ScopebaseError: it says that the request failed.
        """
        await self._some.wait()
        if isinstance(self._first, Failed):
            raise self._first.error

    async def next(self) -> list[Event]:
        """All that has come, at least one."""
        events = [await self._events.get()]
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events

    def close(self) -> None:
        """Nobody reads on: what is not done is cancelled. Safe at any time, more than once."""
        with self._lock:
            self._closed = True
            ticket = self._ticket
        if ticket is not None:
            ticket.cancel()

    def _submit(self, generator: Generator, choices: Sequence[Choice]) -> None:
        ticket = generator.submit(choices, self._deliver)
        with self._lock:
            self._ticket = ticket
            gone = self._closed
        if gone:  # the client left while this thread was at it
            ticket.cancel()

    def _deliver(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop is closed: the service has ended
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: Event) -> None:
        if self._closed:
            return
        if self._events.qsize() >= self._most:
            self.close()
            event = Failed(WorkFailed("the answer was read much more slowly than it was written, so it was given up"))
        self._first = self._first or event
        self._events.put_nowait(event)
        self._some.set()


async def stream(arriving: Arriving, assembly: Assembly[Whole, Chunk]) -> AsyncIterator[list[Chunk]]:
    """The chunks of an answer, several where several events have come at once."""
    yield assembly.open()
    while not assembly.done:
        yield [chunk for event in await arriving.next() for chunk in assembly.take(event)]


async def collect(arriving: Arriving, assembly: Assembly[Whole, Chunk]) -> Whole:
    """The whole answer."""
    while not assembly.done:
        for event in await arriving.next():
            assembly.take(event)
    return assembly.answer()


def generate(generator: Generator, prepared: Prepared, form: Form[Whole, Chunk]) -> Iterator[Chunk]:
    """The chunks of an answer, in this thread; the last one tells the usage."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    assembly = Assembly(prepared, form, keeps=False, tells_usage=True)
    ticket = generator.submit(prepared.choices, events.put)
    try:
        yield from assembly.open()
        while not assembly.done:
            yield from assembly.take(events.get())
    finally:
        ticket.cancel()


def complete(generator: Generator, prepared: Prepared, form: Form[Whole, Chunk]) -> Whole:
    """The whole answer, in this thread."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    assembly = Assembly(prepared, form)
    ticket = generator.submit(prepared.choices, events.put)
    try:
        while not assembly.done:
            assembly.take(events.get())
    finally:
        ticket.cancel()
    return assembly.answer()
