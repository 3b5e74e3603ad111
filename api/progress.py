"""Long work as an answer: a line of NDJSON now and then while it goes on, and its report as the last one.

The work goes on in a thread of its own, which no time limit of requests ends. Who hangs up ends it: its next step is its last.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, Protocol

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from schema.errors import ScopebaseError
from schema.wire.base import Problem, Progress

LOG = logging.getLogger("scopebase.requests")
NDJSON = "application/x-ndjson"
LOOKED = 0.1
"""Seconds between two looks at the work."""
OFTEN = 0.5
"""Seconds from a line to the next where something was done."""
SELDOM = 5.0
"""The same where nothing was: whoever waits, and what stands in between, sees that somebody is there."""

Advance = Callable[[int, int], None]
"""(done since, of how many)."""


class HungUp(Exception):
    """Nobody waits for the report any more."""


class Shape(Protocol):
    """A `Progress` with a report."""

    def __call__(self, *, done: int, of: int, report: Any = None, problem: Problem | None = None) -> Progress: ...


def streamed(work: Callable[[Advance], BaseModel], shape: Shape) -> StreamingResponse:
    """The answer to a question whose work has begun.

    Args:
        work: calls `advance(0, n)` when everything is checked, then after each step.

    Raises:
        ScopebaseError: the work refused before that.
    """
    watched = _Watched(work)
    watched.checked.wait()
    if watched.error is not None and not watched.begun:
        raise watched.error
    return StreamingResponse(watched.lines(shape), media_type=NDJSON)


class _Watched:
    """Work in a thread, and how far it has come."""

    def __init__(self, work: Callable[[Advance], BaseModel]) -> None:
        self.done = self.of = 0
        self.begun = self.ended = self._hung_up = False
        self.checked = threading.Event()
        self.report: BaseModel | None = None
        self.error: Exception | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[Advance], BaseModel]) -> None:
        try:
            self.report = work(self._advance)
        except HungUp:
            pass
        except Exception as error:
            self.error = error
        finally:
            self.ended = True
            self.checked.set()

    def _advance(self, n: int, of: int) -> None:
        self.done, self.of, self.begun = self.done + n, of, True
        self.checked.set()
        if self._hung_up:
            raise HungUp

    async def lines(self, shape: Shape) -> AsyncIterator[bytes]:
        try:
            said, when = -1, 0.0
            while not self.ended:
                since = time.monotonic() - when
                if since >= SELDOM or (self.done != said and since >= OFTEN):
                    said, when = self.done, time.monotonic()
                    yield _line(shape(done=said, of=self.of))
                await asyncio.sleep(LOOKED)
            problem = _problem(self.error) if self.error is not None else None
            yield _line(shape(done=self.done, of=self.of, report=self.report, problem=problem))
        finally:
            self._hung_up = True


def _problem(error: Exception) -> Problem:
    """What went wrong after the answer had begun, as it would have been said before."""
    if isinstance(error, ScopebaseError):
        status = error.http_status
        return Problem(type="about:blank", title=HTTPStatus(status).phrase, status=status, detail=str(error))
    LOG.error("work that was answered line by line failed", exc_info=error)
    detail = f"a fault of Scopebase ({type(error).__name__}); the server's log has its trace"
    return Problem(type="about:blank", title=HTTPStatus(500).phrase, status=500, detail=detail)


def _line(progress: Progress) -> bytes:
    return progress.model_dump_json(exclude_none=True).encode() + b"\n"
