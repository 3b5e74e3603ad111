"""Stop strings over token borders, thousands of them: each character costs a look-up for every length that stop strings have."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Stops:
    """The stop strings of a choice."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = frozenset(stop for stop in stops if stop)
        self._sorted = sorted(self._stops)
        self._lengths = sorted({len(stop) for stop in self._stops}, reverse=True)
        self._first = {stop[0] for stop in self._stops}
        self._last = {stop[-1] for stop in self._stops}
        self.longest = max(self._lengths, default=0)

    def find(self, text: str, begin: int) -> int | None:
        """Where the first stop string that is complete begins, of those that end after `begin`; of several that end there, the longest."""
        for end in range(begin + 1, len(text) + 1):
            if text[end - 1] not in self._last:
                continue
            for length in self._lengths:
                if length <= end and text[end - length : end] in self._stops:
                    return end - length
        return None

    def held(self, text: str) -> int:
        """How many characters at the end of a text may yet become a stop string."""
        for start in range(max(len(text) - self.longest + 1, 0), len(text)):
            if text[start] in self._first and self._begins(text[start:]):
                return len(text) - start
        return 0

    def _begins(self, part: str) -> bool:
        place = bisect_left(self._sorted, part)
        return place < len(self._sorted) and self._sorted[place].startswith(part)
