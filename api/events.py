"""Server-sent events with names and numbers, as a browser's EventSource reads them: it asks again by itself, from the last one it saw."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

from api.streams import Stream
from schema.errors import ScopebaseError
from schema.wire.jobs import JobEvent

LOG = logging.getLogger("scopebase.requests")
AGAIN = b"retry: 2000\n\n"
"""Milliseconds after which a reader whose line was cut asks again."""
STILL_HERE = b": still here\n\n"


class NumberedStream(Stream):
    """A job's events.

    Args:
        events: those that are there, again and again; an empty list says that nothing happened for long.
        close: as in `Stream`.
    """

    def __init__(self, events: AsyncIterator[list[JobEvent]], close: Callable[[], None]) -> None:
        super().__init__(_pieces(events), close)


async def _pieces(events: AsyncIterator[list[JobEvent]]) -> AsyncIterator[bytes]:
    yield AGAIN
    try:
        async for some in events:
            yield b"".join(_piece(event) for event in some) or STILL_HERE
    except ScopebaseError as error:  # whoever reads asks again, and is told then
        LOG.warning("a stream of events broke off: %s", error)


def _piece(event: JobEvent) -> bytes:
    return f"id: {event.id}\nevent: {event.event}\ndata: {event.model_dump_json()}\n\n".encode()
