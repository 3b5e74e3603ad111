"""How long an answer may take. Long work asks `check` between its blocks and gives up once nobody waits for it any more."""

from __future__ import annotations

import time
from contextvars import ContextVar

from schema.errors import TooSlow

_DEADLINE: ContextVar[tuple[float, float] | None] = ContextVar("deadline", default=None)


def allow(seconds: float) -> None:
    """From now on, in this context and what it starts, so many seconds."""
    _DEADLINE.set((time.monotonic() + seconds, seconds))


def check() -> None:
    """Raises TooSlow where the time is up; without a limit it never is."""
    limit = _DEADLINE.get()
    if limit is not None and time.monotonic() > limit[0]:
        raise too_slow(limit[1])


def too_slow(seconds: float) -> TooSlow:
    return TooSlow(
        f"the answer took longer than the {seconds:g} s that a request may; ask for less at once, "
        "or start the service with a larger --time-limit"
    )
