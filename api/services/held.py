"""Things kept in memory up to a bound in bytes, the longest unused given up first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Thing = TypeVar("Thing", bound=Sized)


class Shelf:
    """Things by key. Safe for several threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._things: OrderedDict[Hashable, Any] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._n_bytes = 0
        self._lock = threading.Lock()

    def find(self, key: Hashable) -> Any:
        """What is kept under the key; None where nothing is."""
        with self._lock:
            if key not in self._things:
                return None
            self._things.move_to_end(key)
            return self._things[key]

    def put(self, key: Hashable, thing: Any, size: int) -> None:
        """Keeps it, and gives up what there is no room for any more; the newest stays whatever its size."""
        with self._lock:
            self._n_bytes += size - self._sizes.get(key, 0)
            self._things[key], self._sizes[key] = thing, size
            self._things.move_to_end(key)
            while len(self._things) > 1 and self._n_bytes > self.most_bytes:
                oldest, _ = self._things.popitem(last=False)
                self._n_bytes -= self._sizes.pop(oldest)


class Held:
    """A shelf that makes what it lacks; two that miss at once compute twice and agree."""

    def __init__(self, most_bytes: int) -> None:
        self._shelf = Shelf(most_bytes)

    def holds(self, key: Hashable) -> bool:
        return self._shelf.find(key) is not None

    def put(self, key: Hashable, thing: Thing) -> None:
        self._shelf.put(key, thing, thing.nbytes)

    def get(self, key: Hashable, compute: Callable[[], Thing]) -> Thing:
        """The thing of this key, computed where it is not held."""
        found: Thing | None = self._shelf.find(key)
        if found is None:
            found = compute()
            self._shelf.put(key, found, found.nbytes)
        return found
