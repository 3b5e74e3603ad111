"""Things kept in memory up to a bound in bytes, the longest unused given up first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Thing = TypeVar("Thing", bound=Sized)


class Held:
    """Safe for several threads; two that miss at once compute twice and agree."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._things: OrderedDict[Hashable, Sized] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], Thing]) -> Thing:
        """The thing of this key, computed where it is not held."""
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                return self._things[key]  # type: ignore[return-value]
        thing = compute()
        size = thing.nbytes
        with self._lock:
            self._n_bytes += size - self._sizes.get(key, 0)
            self._things[key], self._sizes[key] = thing, size
            while len(self._things) > 1 and self._n_bytes > self.most_bytes:
                oldest, _ = self._things.popitem(last=False)
                self._n_bytes -= self._sizes.pop(oldest)
        return thing
