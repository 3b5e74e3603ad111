"""Work in a process of its own: who watches hears all of it, and ends it; who works notices that nobody watches."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from indexer.apart import Alone, Piped, Work, serve, watch
from indexer.progress import Progress
from schema.errors import NoCluster, WorkFailed

DEAD: Any = SimpleNamespace(exitcode=-9, join=lambda _seconds: None)


class Heard:
    """Keeps everything."""

    def __init__(self, borders: int = 1 << 30) -> None:
        self.words: list[tuple[Any, ...]] = []
        self.borders = borders

    def say(self, text: str) -> None:
        self.words.append((text,))

    @contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Heard]:
        self.words.append((title, total, done))
        yield self
        self.words.append(("end of", title))

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.words.append((amount, tokens))

    def note(self, text: str) -> None:
        self.words.append((text,))

    def border(self) -> None:
        self.borders -= 1
        if self.borders < 0:
            raise KeyboardInterrupt


def watched(work: Work, heard: Progress) -> list[Any]:
    """The work in a thread, as if it were a process."""
    ours, theirs = multiprocessing.Pipe()
    other = threading.Thread(target=lambda: (serve(theirs, work), theirs.close()))
    other.start()
    try:
        return watch(ours, DEAD, heard)
    finally:
        ours.close()
        other.join()


def test_everything_is_heard_in_its_order() -> None:
    def work(progress: Progress) -> list[Any]:
        progress.say("begins")
        for name in ("songs", "tales"):
            with progress.bar(name, 9, 2) as bar:
                bar.advance(1, tokens=5)
                bar.note("encode")
            progress.border()
        return ["report"]

    heard = Heard()
    assert watched(work, heard) == ["report"]
    bar = [(1, 5), ("encode",)]
    first, second = [("songs", 9, 2), *bar, ("end of", "songs")], [("tales", 9, 2), *bar, ("end of", "tales")]
    assert heard.words == [("begins",), *first, *second]


def test_its_error_is_the_watchers() -> None:
    def work(_progress: Progress) -> list[Any]:
        raise NoCluster("no Ray cluster answers")

    with pytest.raises(NoCluster, match="no Ray cluster answers"):
        watched(work, Heard())


def test_a_process_that_dies_is_told_with_its_status() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(WorkFailed, match="the process that uses Ray ended with status -9; .* what is committed stays"):
        watch(ours, DEAD, Heard())
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(KeyboardInterrupt):  # ended together with this one: then it is no failure
        watch(ours, DEAD, Heard(borders=1))


def test_work_that_nobody_watches_ends_at_its_next_border() -> None:
    ended = threading.Event()

    def work(progress: Progress) -> list[Any]:
        try:
            while True:
                progress.border()
        finally:
            ended.set()

    with pytest.raises(KeyboardInterrupt):
        watched(work, Heard(borders=1))
    assert ended.is_set()
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    with pytest.raises(Alone):
        Piped(theirs).say("anybody?")
