"""How much each asker may have: one bucket a key or address, that fills at a steady rate (a token bucket)."""

from __future__ import annotations

import math
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from schema.errors import InputError, TooMany

MOST_BUCKETS = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3600}
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])")


@dataclass(frozen=True)
class Rate:
    """So many requests, or tokens, in so many seconds; all of them may come at once."""

    quota: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Rate | None:
        """`50/s`, `600/m`, `10000/h`; None for `none`.

        Raises:
            InputError: it is none of these.
        """
        if text == "none":
            return None
        found = _RATE.fullmatch(text)
        if found is None:
            raise InputError(f"--rate-limit {text!r}: requests a second, minute or hour such as 50/s or 600/m, or none")
        return cls(int(found[1]), _UNITS[found[2]])


@dataclass(frozen=True)
class Share:
    """What is left of a quota."""

    allowed: bool
    remaining: int
    wait: float
    """Seconds until the same may be taken again; 0 where it may be now."""


class Buckets:
    """One bucket an asker. The ones that asked last are kept; who is forgotten begins with a full bucket."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, asker: str, n: int = 1) -> Share:
        """Takes so much out of the asker's bucket, if there is so much in it."""
        with self._lock:
            level = self._level(asker)
            allowed = level >= n
            level -= n * allowed
            self._put(asker, level)
        return Share(allowed, max(int(level), 0), max((n - level) * self.rate.seconds / self.rate.quota, 0.0))

    def correct(self, asker: str, n: int) -> None:
        """Puts so much back; a negative number takes it, whatever is left, and what is missing then is to be waited for."""
        with self._lock:
            self._put(asker, min(self.rate.quota, self._level(asker) + n))

    def _level(self, asker: str) -> float:
        moment = self._clock()
        level, before = self._levels.pop(asker, (float(self.rate.quota), moment))
        return min(self.rate.quota, level + (moment - before) * self.rate.quota / self.rate.seconds)

    def _put(self, asker: str, level: float) -> None:
        self._levels[asker] = (level, self._clock())
        if len(self._levels) > MOST_BUCKETS:
            self._levels.popitem(last=False)


class Spending:
    """The tokens that one request took from its asker's bucket before anybody knew how many it would come to."""

    def __init__(self, buckets: Buckets, asker: str, taken: int) -> None:
        self._buckets, self._asker, self._taken = buckets, asker, taken

    def settle(self, used: int) -> None:
        """Says how many it came to. The first word counts."""
        taken, self._taken = self._taken, 0
        if taken:
            self._buckets.correct(self._asker, taken - used)


def spend(buckets: Buckets, asker: str, most: int) -> tuple[Spending, Share]:
    """Takes the most tokens that a request may come to; one that may come to more than the quota needs a full bucket.

    Raises:
        TooMany: so many are not there.
    """
    taken = min(most, buckets.rate.quota)
    share = buckets.take(asker, taken)
    if not share.allowed:
        wait = max(1, math.ceil(share.wait))
        raise TooMany(
            f"{asker} has {share.remaining:,} of its {buckets.rate.quota:,} tokens a minute left, and this may come to {most:,}, "
            f"prompt and answer together; go on in {wait} s, or lower max_tokens",
            wait,
        )
    return Spending(buckets, asker, taken), share
