"""Server-sent events as OpenAI sends them, and noticing that nobody reads them any more. Pure ASGI: a middleware of another kind would hide
the client's leaving."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.problems import as_openai, described
from schema.errors import ScopebaseError, WorkFailed
from schema.wire.sampling import Answered

LOG = logging.getLogger("scopebase.requests")
SLOW_SECONDS = 30.0
"""A client that takes nothing for so long is given up."""
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")


class ClientLeft(Exception):
    """Nobody waits for the answer."""


class Stream(Response):
    """An answer that is sent piece by piece.

    Args:
        pieces: server-sent events, whole.
        close: called once nobody reads on, whatever the reason.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._pieces, self._close = pieces, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self._close()
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(TimeoutError):  # the connection is cut, so that the client does not take a part for the whole
            async for piece in self._pieces:
                async with asyncio.timeout(SLOW_SECONDS):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(Stream):
    """Events as OpenAI sends them.

    Args:
        chunks: those that are there, again and again. A ScopebaseError among them is told in the stream, which then ends without `[DONE]`.
        close: as in `Stream`.
    """

    def __init__(self, chunks: AsyncIterator[list[Answered]], close: Callable[[], None]) -> None:
        super().__init__(frames(chunks), close)


async def frames(chunks: AsyncIterator[list[Answered]]) -> AsyncIterator[bytes]:
    """The bytes of a stream."""
    try:
        async for some in chunks:
            if some:
                yield b"".join(_frame(chunk.model_dump_json(exclude_unset=True)) for chunk in some)
        yield DONE
    except ScopebaseError as error:
        yield _fault(error)
    except Exception as error:  # a fault of ours, without its words: they may hold what was asked
        LOG.exception("a stream broke off")
        yield _fault(WorkFailed(f"a fault of Scopebase ({type(error).__name__}); the server's log has its trace"))


async def unless_left(http: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work comes to.

    Raises:
        ClientLeft: nobody waits for it any more; it was cancelled.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(http.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _frame(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def _fault(error: ScopebaseError) -> bytes:
    return _frame(json.dumps(as_openai(described(error.http_status, str(error), code=error.code))))
