"""The workers of a cluster as the driver sees them, and how it tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexer.remote import Hello

NAMED = 4
"""So many workers are told one by one; of more, how many do what."""
Ask = tuple[str, tuple[object, ...]]
"""A method of `indexer.remote.RemoteWorker` and what to call it with."""


@dataclass
class Seat:
    """One actor as the driver sees it."""

    number: int
    handle: Any
    call: Any
    """What it is at, or None."""
    hello: Hello | None = None
    """Who it is, once it has started."""
    group: int = -1
    """The SAEs that it holds."""
    rests_until: float = 0.0

    def __str__(self) -> str:
        return f"worker {self.number}" + (f" on {self.hello.host} (pid {self.hello.pid})" if self.hello else "")


def note(seats: Sequence[Seat], kinds: Mapping[str, str]) -> str:
    """Who is at what.

    Args:
        kinds: the kind of shard that a worker has in hands, by its name in the ledger.
    """
    known = [(seat.number, seat.hello) for seat in seats if seat.hello is not None]
    if len(known) <= NAMED:
        return ", ".join(f"{n}@{h.host} {kinds.get(h.owner, 'waits')}" for n, h in known) or "workers start"
    busy = [*kinds.values()]
    counted = ", ".join(f"{busy.count(kind)} {kind}" for kind in sorted(set(busy)))
    return f"{len(known)} workers on {len({hello.host for _, hello in known})} machines: {counted or 'all wait'}"


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
