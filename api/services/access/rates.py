"""How many requests each asker may make: one bucket a key or address, that fills at a steady rate (a token bucket)."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from schema.errors import InputError

MOST_BUCKETS = 10_000
_UNITS = {"s": 1, "m": 60, "h": 3600}
_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])")


@dataclass(frozen=True)
class Rate:
    """So many requests in so many seconds; all of them may come at once."""

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
    """Seconds until the next request is allowed; 0 where it is now."""


class Buckets:
    """One bucket an asker. The ones that asked last are kept; who is forgotten begins with a full bucket."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, asker: str) -> Share:
        """Takes one request out of the asker's bucket, if there is one in it."""
        speed = self.rate.quota / self.rate.seconds
        with self._lock:
            moment = self._clock()
            level, before = self._levels.pop(asker, (float(self.rate.quota), moment))
            level = min(self.rate.quota, level + (moment - before) * speed)
            allowed = level >= 1
            level -= allowed
            self._levels[asker] = (level, moment)
            if len(self._levels) > MOST_BUCKETS:
                self._levels.popitem(last=False)
        return Share(allowed, int(level), 0.0 if level >= 1 else (1 - level) / speed)
