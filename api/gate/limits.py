"""How large, how long, how many at once: keeps one request from taking the service away from the others."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.gate.access import GENERATING, OPEN, Access
from api.gate.messages import headers_of, is_upload
from api.problems import Refusal, problem
from schema.deadline import Deadline, allow, too_slow

LOG = logging.getLogger("scopebase.requests")
CLOSE = {"connection": "close"}
"""What is left of a body that is not read would be taken for the next request."""
PATIENCE = 30.0
"""Seconds that an upload may take, beside those that it needs at ..."""
SLOWEST = 2048
"""... so many bytes a second. Who sends slower holds a place that others wait for."""


class Limits:
    """Innermost: what comes through here is worked on."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access
        self._at_work: set[asyncio.Task[Any]] = set()
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        upload = is_upload(scope)
        most = self.access.upload_bytes if upload else self.access.body_bytes
        declared = headers.get("content-length", "")
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > self.access.target_bytes:
            answer = problem(
                414, f"the address is longer than {self.access.target_bytes:,} bytes; ask for less at once"
            )
        elif declared.isdigit() and int(declared) > most:
            answer = problem(413, _too_large(most, upload), headers=CLOSE)
        elif len(self._at_work) >= self.access.concurrent:
            answer = problem(503, f"{len(self._at_work)} requests are at work; try again", headers={"retry-after": "1"})
        elif len(self._under_way) >= self.access.generating and scope["path"] in GENERATING:
            detail = f"{len(self._under_way)} texts are on their way to clients; try again"
            answer = problem(429, detail, headers={"retry-after": "1"})
        else:
            await self._work(scope, Body(receive, most, upload), send, None if upload else self.access.seconds)
            return
        await answer(scope, receive, send)

    async def _work(self, scope: Scope, body: Body, send: Send, seconds: float | None) -> None:
        """Answers that the time is up while a thread may still be at it: it stops at its next block, and counts until then."""
        begun = given_up = False
        limit: Deadline | None = None

        async def sending(message: Message) -> None:
            nonlocal begun
            if not given_up:
                begun = True
                if limit is not None:
                    limit.lift()
                await send(message)

        async def work() -> None:
            nonlocal limit
            if seconds is not None:
                limit = allow(seconds)
            await self.app(scope, body, sending)

        def handed_over() -> None:
            """The route's word that the work is another's now, which has bounds of its own."""
            self._at_work.discard(task)
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

        def under_way() -> None:
            """The route's word that its answer has begun, before a byte of it is sent."""
            nonlocal begun
            begun = True

        def aside() -> None:
            """The route's word that its answer takes long and costs next to nothing; the route bounds how many there are."""
            self._at_work.discard(task)

        scope.setdefault("state", {}).update(handed_over=handed_over, under_way=under_way, aside=aside)
        task = asyncio.ensure_future(work())
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not task.done() and not begun and seconds is not None:
            given_up = True
            task.cancel()
            task.add_done_callback(_said_nothing)
            await _late(body, seconds)(scope, body, send)
        else:
            await task


class Body:
    """A request's, as it comes. One that says no length, or a wrong one, is stopped where it becomes too large; an upload, which has
    all the time that it needs, where it trickles."""

    def __init__(self, receive: Receive, most: int, upload: bool) -> None:
        self._receive, self._most, self._upload = receive, most, upload
        self._read, self._whole, self._begun = 0, False, time.monotonic()
        self.awaited = False
        """Whether somebody waits for more of it."""

    async def __call__(self) -> Message:
        self.awaited = not self._whole
        message = await (self._trickle() if self._upload and not self._whole else self._receive())
        self.awaited = False
        self._read += len(message.get("body", b""))
        if self._read > self._most:
            raise HTTPException(413, _too_large(self._most, self._upload), CLOSE)
        self._whole = self._whole or not message.get("more_body", False)
        return message

    async def _trickle(self) -> Message:
        left = self._begun + PATIENCE + self._read / SLOWEST - time.monotonic()
        try:
            return await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError:
            raise HTTPException(408, _too_slow(self._read), CLOSE) from None


def _late(body: Body, seconds: float) -> Refusal:
    """The answer to a request whose time is up."""
    if body.awaited:
        said = f"the request's body was not whole within {seconds:g} s; send it faster, or send less"
        return problem(408, said, headers=CLOSE)
    error = too_slow(seconds)
    return problem(error.http_status, str(error))


def _too_slow(read: int) -> str:
    return f"the body stopped coming after {read:,} bytes; send it at {SLOWEST:,} bytes a second at least"


def _too_large(most: int, upload: bool) -> str:
    kind, option = ("an upload", "--max-upload") if upload else ("a question", "--max-body")
    return f"the body is larger than {most:,} bytes, the most that {kind} may be ({option}); send it in parts"


def _said_nothing(task: asyncio.Task[None]) -> None:
    """What became of a request that was given up is nobody's answer, but not nobody's business."""
    if not task.cancelled() and task.exception() is not None:
        LOG.warning("a request that was given up ended with: %s", task.exception())
