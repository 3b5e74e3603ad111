"""Workers on a Ray cluster. Nothing else imports Ray, and Ray does nothing but run workers.

Each actor holds a model and its SAEs (`indexer.remote`), and does a shard whenever it is told to. It leases, stages and publishes through
the ledger like any other worker, so that whoever dies here, actor, driver or head, loses at most the shards in hands and doubles none.
Actors are not restarted by Ray: the driver replaces them, so that it can tell a lost machine from work that kills whoever does it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import psutil

from indexer.config import Cluster
from indexer.lifeline import Lifeline, Line, Ours, Theirs, answers
from indexer.machines import Machine, pin, room, share
from indexer.progress import Bar, Progress
from indexer.remote import Done, Hello, Order, installed
from indexer.seats import Ask, Seat, first_line, note
from indexer.worker import publish_staged
from schema.errors import InputError, NoCluster, ScopebaseError, WorkFailed
from schema.home import Home

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns of what its next version does
try:
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
except ImportError:
    raise InputError("--engine ray needs Ray, which is not installed; pip install 'scopebase[ray]'") from None

LOOK_SECONDS = 0.5
"""How often the driver looks at the ledger, and how long a worker rests that found nothing to do."""
PATIENCE = 3
"""Failures a worker, with nothing done between them, after which the command gives up."""
STORE_BYTES = 100 << 20
"""Of the object store of a Ray that is started here; hardly anything goes through it."""


def connect(cluster: Cluster, progress: Progress) -> Lifeline:
    """Ray as a cluster that is there, or started on this machine, without a word of its own. Returns what it hangs on.

    Raises:
        NoCluster: none answers.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address in (None, "local"):
        progress.say("starting Ray on this machine")
        cores = max(os.cpu_count() or 1, (cluster.workers or 1) * (cluster.cpus_per_worker or 1))
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
        return Ours([child for child in psutil.Process().children() if child.name() in ("gcs_server", "raylet")])
    place = (cluster.address or "").removeprefix("ray://")
    try:
        if ":" in place and not answers(place):  # Ray would try for two minutes
            raise ConnectionError("nothing takes a connection there")
        ray.init(address=cluster.address, **quiet)
    except Exception as error:  # Ray, its client and gRPC raise their own
        raise NoCluster(
            f"no Ray cluster answers at --address {cluster.address}: {first_line(error)}; "
            "start one with 'ray start --head', or leave --address out for a Ray of this machine"
        ) from error
    return Line(cluster.address) if (cluster.address or "").startswith("ray://") else Theirs(servers_here())


def servers_here() -> dict[str, str]:
    """What this process hangs on in a cluster: its head, and the node that it has joined."""
    here = ray.get_runtime_context()
    node = next(node for node in ray.nodes() if node["NodeID"] == here.get_node_id())
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    return {"the head of the Ray cluster": here.gcs_address, "this machine's part of the Ray cluster": address}


def machines() -> list[Machine]:
    """Those of the cluster that live."""
    return [
        Machine(n["NodeManagerHostname"], n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]
    ]


def make_actor() -> Any:
    """The actor's class. Made in a function, so that Ray carries it whole: its process finds the rooms only after the first import."""

    class Actor:
        def hello(self, order: bytes) -> Hello:
            import importlib
            import pickle

            importlib.import_module("scopebase")  # makes the rooms importable
            from indexer.remote import RemoteWorker

            self.worker = RemoteWorker(pickle.loads(order))
            return self.worker.hello()

        def tell(self, method: str, asked: tuple[object, ...]) -> Done | None:
            found: Done | None = getattr(self.worker, method)(*asked)
            return found

    return ray.remote(Actor)


class Crew:
    """The workers of a command, and who tells them what to do next."""

    def __init__(self, cluster: Cluster, home: Home, gpus: float, progress: Progress) -> None:
        self.cluster, self.home, self.gpus, self.progress = cluster, home, gpus, progress
        self.seats: list[Seat] = []
        self._numbers = itertools.count(1)
        self._fruitless = 0
        """Failures since a shard was done."""
        self._proved = False
        """A shard was done."""
        self._said = ""

    @contextlib.contextmanager
    def at_work(self, order: Callable[[int], Order]) -> Any:
        """The workers are there meanwhile.

        Args:
            order: what they are given, by the cores of each.
        """
        own = not ray.is_initialized()
        self.lifeline: Lifeline = connect(self.cluster, self.progress) if own else Line()
        try:
            found = machines()
            cores = share(found, self.cluster, self.gpus)
            self.needs = {"CPU": cores, "GPU": self.gpus, **pin(found, self.home.settings)}
            self.order = pickle.dumps(order(cores))
            self.actor = make_actor()
            self.fill()
            yield self
        except Exception as error:
            if (said := self.lifeline.broke(error)) is None:
                raise
            raise WorkFailed(said) from error
        finally:
            if not self.lifeline.holds():
                self.lifeline.cut()
            for seat in [*self.seats]:
                self._leave(seat)
            if own:
                ray.shutdown()

    def fill(self) -> None:
        """As many workers as are asked for; where no number is, as there is room for, while machines come and go."""
        if not self.lifeline.check():
            return
        found = machines()
        places = room(found, self.needs)
        wanted = self.cluster.workers or places
        starting = [seat for seat in reversed(self.seats) if seat.hello is None]
        for seat in starting[: max(0, len(self.seats) - wanted)]:
            self._leave(seat)
        for _ in range(wanted - len(self.seats)):
            cpus, gpus, *_ = self.needs.values()
            pinned = {name: need for name, need in self.needs.items() if name.startswith("node:")}
            handle = self.actor.options(num_cpus=cpus, num_gpus=gpus, resources=pinned, max_restarts=0).remote()
            self.seats.append(Seat(next(self._numbers), handle, handle.hello.remote(self.order)))
        if places < max(1, wanted):
            each = f"{self.needs['CPU']:g} cores" + (f" and {self.gpus:g} GPUs" if self.gpus else "")
            self._say_once(f"the cluster has room for {places} workers of {each}; others start when machines come")

    def work(self, ask: Callable[[Seat], Ask], over: Callable[[], bool], bar: Bar) -> None:
        """Keeps all workers at it until it is over.

        Raises:
            InputError: a worker found at once that it cannot be done.
            WorkFailed: workers failed again and again.
        """
        looked, idle = 0.0, False
        while True:
            if time.monotonic() - looked >= LOOK_SECONDS:
                self.progress.border()
                if self._look(over, idle, bar):
                    return
                looked, idle = time.monotonic(), False
            for seat in self.seats:
                if seat.call is None and seat.rests_until <= time.monotonic():
                    seat.call = seat.handle.tell.remote(*ask(seat))
            calls = {seat.call: seat for seat in self.seats if seat.call is not None}
            if not calls:
                time.sleep(0.1)
                continue
            for call in ray.wait(list(calls), timeout=LOOK_SECONDS / 2)[0]:
                idle |= self._hear(calls[call], bar)

    def _look(self, over: Callable[[], bool], idle: bool, bar: Bar) -> bool:
        """Whether it is over; who is missing is replaced."""
        try:
            if idle:  # nothing to lease: others hold the rest, unless they died
                publish_staged(self.home)
                self.home.ledger.reclaim()
            if over():
                return True
            owners = [seat.hello.owner for seat in self.seats if seat.hello]
            bar.note(note(self.seats, self.home.ledger.held(owners)))
        except WorkFailed as error:  # a database or bucket that is away for a moment
            self._fail(str(error), error)
            time.sleep(self._pause())
        self.fill()
        return False

    def _hear(self, seat: Seat, bar: Bar) -> bool:
        """Takes what a worker says; whether it found nothing to do."""
        call, seat.call = seat.call, None
        try:
            said = ray.get(call)
        except RayTaskError as error:
            self._failed(seat, error.cause)
        except RayError as error:
            self._lost(seat, error)
        else:
            if isinstance(said, Hello):
                self._greet(seat, said)
            elif said is None:
                seat.rests_until = time.monotonic() + LOOK_SECONDS
                return True
            else:
                self._fruitless, self._proved = 0, True
                bar.advance(0 if said.kind != "logits" else 1, tokens=said.tokens)
        return False

    def _greet(self, seat: Seat, hello: Hello) -> None:
        seat.hello = hello
        if hello.scopebase != installed():
            raise WorkFailed(
                f"{hello.host} has Scopebase {hello.scopebase}, this machine {installed()}; install the same on all machines"
            )
        self.progress.say(f"{seat} is ready")

    def _failed(self, seat: Seat, cause: BaseException) -> None:
        """A worker that lives could not do what it was told."""
        if isinstance(cause, InputError) and not self._proved:
            raise cause
        words = str(cause) if isinstance(cause, ScopebaseError) else f"{type(cause).__name__}: {first_line(cause)}"
        if "OutOfMemory" in type(cause).__name__:
            words += "; with --layers-per-worker a worker holds fewer SAEs"
        seat.rests_until = time.monotonic() + self._pause()
        if seat.hello is None:
            self._leave(seat)
        self._fail(f"{seat} failed: {words}", cause)

    def _lost(self, seat: Seat, error: RayError) -> None:
        """A worker died or is out of reach; what it had in hands is anybody's."""
        self._leave(seat)
        why = "it died" if isinstance(error, RayActorError) else first_line(error)
        self._fail(f"{seat} is lost ({why}); its work goes to others", error)

    def _fail(self, words: str, cause: BaseException) -> None:
        self._fruitless += 1
        if self._fruitless > PATIENCE * max(1, len(self.seats)):
            raise WorkFailed(f"{words}; nothing was done since {self._fruitless} failures, so this stops") from cause
        self._say_once(words)

    def _pause(self) -> float:
        return min(30.0, 2.0**self._fruitless)

    def _leave(self, seat: Seat) -> None:
        """Ends a worker, and opens what it held."""
        self.seats.remove(seat)
        if self.lifeline.holds():
            with contextlib.suppress(RayError):
                ray.kill(seat.handle)
        if seat.hello is not None:
            with contextlib.suppress(ScopebaseError):  # else its lease lapses
                self.home.ledger.free(seat.hello.owner)

    def _say_once(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self.progress.say(text)
