"""Where other threads meet the model's: requests that wait for a row, calls that want a turn, and the end of the service."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from schema.errors import ScopebaseError, TooMany, WorkFailed
from steering.queue import Line


class Desk:
    """Safe for any thread, but for what is said to be the owner's: the thread that owns the model."""

    def __init__(self, rows: int, queue: int) -> None:
        """
        Args:
            rows: of the batch.
            queue: requests that may wait while every row is taken.
        """
        self._rows, self._queue = rows, queue
        self._changed = threading.Condition()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._until: float | None = None
        self._owner: int | None = None
        self._pace, self._last_end = 1.0, time.monotonic()
        self.waiting: deque[Line] = deque()
        """First come, first served. The owner's, but for what `put` adds."""
        self.taken = 0
        """Rows at work. The owner's."""
        self.fault: str | None = None

    def run(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Calls a function on the owner's thread, between two steps.

        Raises:
            WorkFailed: closing, or out of order.
        """
        future: Future[Any] = Future()
        if threading.get_ident() == self._owner:
            _fulfil(future, lambda: function(*args))
            return future
        with self._changed:
            self._check_open()
            self._calls.append((future, lambda: function(*args)))
            self._changed.notify()
        return future

    def put(self, lines: Sequence[Line]) -> None:
        """Queues a request.

        Raises:
            TooMany: the queue is full.
            WorkFailed: closing, or out of order.
        """
        with self._changed:
            self._check_open()
            waiting = {line.work for line in self.waiting if not (line.work.begun or line.work.over)}
            if len(waiting) >= self._queue + max(self._rows - self.taken, 0):
                detail = f"{len(waiting)} requests wait for the model, which is as many as may; try again later"
                raise TooMany(detail, max(1, math.ceil(self._pace)))
            self.waiting.extend(lines)
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Takes no more; after so many seconds it is `overdue`."""
        with self._changed:
            self._until = min(self._until or math.inf, time.monotonic() + seconds)
            self._changed.notify()

    @property
    def overdue(self) -> bool:
        return self._until is not None and time.monotonic() >= self._until

    def attend(self, *, busy: bool) -> bool:
        """The owner's: answers calls, waiting for something to do where it is not busy; False when it is time to end."""
        self._owner = threading.get_ident()
        with self._changed:
            while not (busy or self.waiting or self._calls):
                if self._until is not None:
                    return False
                self._changed.wait()
            calls = list(self._calls)
            self._calls.clear()
        for future, call in calls:
            _fulfil(future, call)
        if any(line.work.over for line in self.waiting):
            with self._changed:
                self.waiting = deque(line for line in self.waiting if not line.work.over)
        return True

    def ended(self) -> None:
        """The owner's: a text ended. From one end to the next, of late, is how long whoever is refused had better wait."""
        now = time.monotonic()
        self._pace = 0.8 * self._pace + 0.2 * min(now - self._last_end, 60.0)
        self._last_end = now

    def dismiss(self, error: ScopebaseError) -> None:
        """The owner's: fails whatever waits."""
        with self._changed:
            waiting, calls = list(self.waiting), list(self._calls)
            self.waiting.clear()
            self._calls.clear()
        for line in waiting:
            line.work.fail(error)
        for future, _ in calls:
            future.set_exception(error)

    def _check_open(self) -> None:
        if self.fault is not None:
            raise WorkFailed(self.fault)
        if self._until is not None:
            raise WorkFailed("the model is being shut down; try again when the service is back")


def _fulfil(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
