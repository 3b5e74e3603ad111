"""How long an answer may take. Long work asks `check` between its blocks and gives up once nobody waits for it any more.

Reads of the activation store ask for it themselves. Loops that compute without reading must.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

from schema.errors import TooSlow


class Deadline:
    """A moment, until which an answer must have begun."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.moment = seconds, time.monotonic() + seconds

    def lift(self) -> None:
        """The answer has begun: a stream may take as long as somebody reads it."""
        self.moment = math.inf


_DEADLINE: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def allow(seconds: float) -> Deadline:
    """From now on, in this context and what it starts, so many seconds."""
    made = Deadline(seconds)
    _DEADLINE.set(made)
    return made


def check() -> None:
    """Raises TooSlow where the time is up; without a limit it never is."""
    limit = _DEADLINE.get()
    if limit is not None and time.monotonic() > limit.moment:
        raise too_slow(limit.seconds)


def too_slow(seconds: float) -> TooSlow:
    return TooSlow(
        f"the answer took longer than the {seconds:g} s that a request may; ask for less at once, "
        "or start the service with a larger --time-limit"
    )
