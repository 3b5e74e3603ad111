"""A job on Ray, done by a process of its own.

Ray ends the process that uses it when its head or its part of this machine dies, and takes that process's signals over. A worker of the
queue outlives the one and needs the other, so it only watches.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from indexer.config import Cluster, IndexConfig
from indexer.progress import Bar, NoBar, Progress
from schema.errors import ScopebaseError, WorkFailed
from schema.records import RunReport
from schema.settings import Settings

LOOK_SECONDS = 0.5
END_SECONDS = 10.0
"""How long the process has to give back what its workers hold, before it is ended."""

Work = Callable[[Progress], list[RunReport]]


class Alone(Exception):
    """Nobody watches any more."""


class Piped:
    """A `Progress`, and its bar, that the process at the other end of a pipe hears."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def say(self, text: str) -> None:
        self.tell("say", text)

    @contextmanager
    def bar(self, title: str, total: int | None = None, done: int = 0) -> Iterator[Bar]:
        self.tell("bar", title, total, done)
        yield self

    def advance(self, amount: int, tokens: int = 0) -> None:
        self.tell("advance", amount, tokens)

    def note(self, text: str) -> None:
        self.tell("note", text)

    def border(self) -> None:
        """Raises Alone where the other end is closed, which is all that it ever says."""
        if self._pipe.poll():
            raise Alone

    def tell(self, *words: object) -> None:
        try:
            self._pipe.send(words)
        except OSError:
            raise Alone from None


def index_apart(config: IndexConfig, settings: Settings, cluster: Cluster, progress: Progress) -> list[RunReport]:
    """`indexer.spread.index` in a process of its own.

    Raises:
        WorkFailed: the process died.
        Whatever else it raises, and whatever `progress.border` raises; then what its workers held is free again.
    """
    context = multiprocessing.get_context("spawn")  # torch and Ray have threads, which a fork would break
    pipe, theirs = context.Pipe()
    process = context.Process(target=_main, args=(theirs, config, settings, cluster), daemon=True)
    process.start()
    theirs.close()
    try:
        return watch(pipe, process, progress)
    finally:
        pipe.close()
        for end in (process.terminate, process.kill):
            process.join(END_SECONDS)
            if process.is_alive():
                end()
        process.join()


def watch(pipe: Connection, process: BaseProcess, progress: Progress) -> list[RunReport]:
    """What the process at the other end makes; what it says on the way goes to the progress."""
    bar: Bar = NoBar()
    with ExitStack() as bars:
        while True:
            progress.border()
            if not pipe.poll(LOOK_SECONDS):
                continue
            try:
                kind, *words = pipe.recv()
            except (EOFError, OSError):
                process.join(END_SECONDS)
                progress.border()  # whoever ended it may have ended this one too
                raise WorkFailed(
                    f"the process that uses Ray ended with status {process.exitcode}; Ray's head or its part of this machine "
                    "may have died, and what is committed stays"
                ) from None
            if kind == "done":
                return list(words[0])
            if kind == "failed":
                raise words[0]
            if kind == "bar":
                bars.close()
                bar = bars.enter_context(progress.bar(*words))
            else:
                getattr(progress if kind == "say" else bar, kind)(*words)


def _main(pipe: Connection, config: IndexConfig, settings: Settings, cluster: Cluster) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to this process too; the worker decides
    from indexer.spread import index

    serve(pipe, lambda progress: index(config, settings, cluster, progress))


def serve(pipe: Connection, work: Work) -> None:
    """Does the work and tells how it ended. What is no error of Scopebase's ends the process with its trace."""
    told = Piped(pipe)
    try:
        told.tell("done", work(told))
    except Alone:
        return
    except ScopebaseError as error:
        told.tell("failed", error)
