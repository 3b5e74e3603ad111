"""Work that waits for others, several pieces at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Alongside(Generic[Item, Result]):
    """Does a piece of work for each item, never more than n at once.

    Its threads end with the process: who is interrupted does not wait for answers that nobody will read.
    """

    def __init__(self, work: Callable[[Item], Result], n: int) -> None:
        self._work, self._n = work, n
        self._given: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Item, Result | Exception]] = queue.SimpleQueue()

    def results(self, items: Iterable[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """Each item with what came of it, in the order in which they are done.

        Items are taken when there is room for them, by whoever reads the results.
        """
        threads = at_work = 0
        try:
            for item in items:
                if at_work == threads:
                    threading.Thread(target=self._run, daemon=True).start()
                    threads += 1
                self._given.put(item)
                at_work += 1
                if at_work == self._n:
                    yield self._done.get()
                    at_work -= 1
            while at_work:
                yield self._done.get()
                at_work -= 1
        finally:
            for _ in range(threads):
                self._given.put(None)

    def finished(self) -> Iterator[tuple[Item, Result | Exception]]:
        """What is done and was not read, for who was interrupted."""
        while not self._done.empty():
            yield self._done.get()

    def _run(self) -> None:
        while (item := self._given.get()) is not None:
            try:
                self._done.put((item, self._work(item)))
            except Exception as error:
                self._done.put((item, error))
