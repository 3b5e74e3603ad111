"""Sweeps at work in a service: one at a time, in a thread, beside whoever else asks the model."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from api.services.library import Library
from api.services.sweeps.book import begin, delete_sweep, find_sweep, note_error, show_sweep
from api.services.sweeps.work import work
from schema.audit import audit
from schema.errors import Conflict, NotFound, ScopebaseError, TooMany
from schema.generation import Generator
from schema.wire.sweeps import State, SweepAnswer, SweepItem, SweepRequest

MOST_WAITING = 32
_LOG = logging.getLogger("scopebase.sweeps")


class Runner:
    """Safe for several threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sweep")
        self._stops: dict[str, threading.Event] = {}
        self._states: dict[str, State] = {}
        self._lock = threading.Lock()

    @property
    def states(self) -> dict[str, State]:
        """The sweeps that run or wait here."""
        with self._lock:
            return dict(self._states)

    def start(self, generator: Generator, request: SweepRequest, author: str) -> SweepAnswer:
        """Begins a sweep or goes on with it; the answer has what is done so far.

        Raises:
            TooMany: MOST_WAITING wait already.
            ScopebaseError: see `begin`.
        """
        if request.name not in self.states and len(self.states) >= MOST_WAITING:
            raise TooMany(f"{MOST_WAITING} sweeps wait already; send this one when some are done")
        if begin(self._library, generator, request, author):
            with self._lock:
                if request.name not in self._states:
                    self._states[request.name] = "waiting"
                    self._stops[request.name] = threading.Event()
                    self._worker.submit(self._work, generator, request.name, self._stops[request.name])
        return show_sweep(self._library, request.name, self.states)

    def stop(self, name: str, actor: str) -> SweepAnswer:
        """Stops a sweep after the text at hand; points that are done stay done.

        Raises:
            NotFound: there is none of that name.
            Conflict: it is not at work here.
        """
        with self._lock:
            event = self._stops.get(name)
        with self._library.home.database.writing() as session:
            find_sweep(session, name)
            if event is None:
                raise Conflict(f"sweep {name} is not at work in this service")
            audit(session, actor, "sweep.stop", name)
        event.set()
        return show_sweep(self._library, name, self.states)

    def delete(self, name: str, actor: str) -> SweepItem:
        """Removes a sweep with what it holds.

        Raises:
            NotFound: there is none of that name.
            Conflict: it is at work here.
        """
        with self._lock:
            if name in self._stops:
                raise Conflict(f"sweep {name} is at work; stop it, and delete it then")
            return delete_sweep(self._library, name, actor)

    def close(self) -> None:
        """Stops them all and waits for the one at work."""
        with self._lock:
            for event in self._stops.values():
                event.set()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _work(self, generator: Generator, name: str, stop: threading.Event) -> None:
        try:
            if not stop.is_set():
                with self._lock:
                    self._states[name] = "running"
                work(self._library, generator, name, stop)
        except ScopebaseError as error:
            self._note(name, str(error))
        except Exception as error:
            _LOG.exception("sweep %s", name)
            self._note(name, f"a fault of Scopebase ({type(error).__name__}); the log has its trace")
        finally:
            with self._lock:
                del self._states[name], self._stops[name]

    def _note(self, name: str, error: str) -> None:
        with suppress(NotFound):  # somebody else deleted it
            note_error(self._library, name, error)
