"""Seeded faults over the write path, one after another in several lanes, each in a folder of its own.

Fault K of a seed is the same whenever it is asked for: its kind and every number that it draws come from the seed and K.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.torture.case import Case
from tests.torture.faults import bucket, clock, cluster, database, disk, helpers, indexer, people, upkeep
from tests.torture.postgres import Server
from tests.torture.world import Missed, Skipped, World

Fault = Callable[[World], str]


@dataclass(frozen=True)
class Kind:
    """One way in which something breaks."""

    fault: Fault
    share: int
    """How many of 200."""
    does: str


KINDS: dict[str, Kind] = {
    "indexer-event": Kind(indexer.at_an_event, 22, "kill -9 of the indexer at the entry to or return from a store"),
    "indexer-time": Kind(indexer.at_a_time, 17, "kill -9 of the indexer at a random instant"),
    "indexer-postgres": Kind(indexer.at_an_event_on_postgres, 14, "the first, over PostgreSQL"),
    "two-indexers": Kind(indexer.two_together, 12, "two indexers on one run, one killed"),
    "lease-lapsed": Kind(indexer.stopped_past_its_lease, 10, "SIGSTOP of a lease holder past its lease"),
    "clock-jumps": Kind(clock.jumps, 8, "the clock is set an hour back or forth"),
    "clocks-differ": Kind(clock.differ, 5, "two indexers whose clocks differ by an hour"),
    "disk-full": Kind(disk.full, 10, "a disk that is full again and again"),
    "postgres-kill": Kind(database.postmaster, 10, "kill -9 of PostgreSQL while the indexer writes"),
    "postgres-restart": Kind(database.restarted, 6, "kill -9 of PostgreSQL right behind a commit"),
    "postgres-backend": Kind(database.backends, 8, "kill -9 of a backend of PostgreSQL"),
    "connection-cut": Kind(database.connection_cut, 11, "connections cut in mid-transaction"),
    "bucket-weather": Kind(
        bucket.in_weather, 22, "a bucket that fails some requests; in half also kill -9 of the indexer"
    ),
    "helper-killed": Kind(helpers.killed, 8, "kill -9 of one of the two processes of `--workers 2`"),
    "ray-worker": Kind(cluster.killed("worker"), 3, "kill -9 of a worker of `--engine ray`"),
    "ray-driver": Kind(cluster.killed("driver"), 3, "kill -9 of the command that uses Ray"),
    "ray-raylet": Kind(cluster.killed("raylet"), 2, "kill -9 of Ray's process for this machine"),
    "ray-head": Kind(cluster.killed("head"), 2, "kill -9 of Ray's head"),
    "api-killed": Kind(people.api_killed, 12, "the API killed in the midst of label writes"),
    "import-killed": Kind(people.import_killed, 5, "kill -9 in the midst of the import of a pack"),
    "removal-killed": Kind(upkeep.removal_killed, 6, "kill -9 in the midst of a removal"),
    "backup-killed": Kind(upkeep.backup_killed, 4, "kill -9 in the midst of a backup, then of its restore"),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one fault."""

    at: int
    kind: str
    survived: bool
    said: str
    seconds: float
    skipped: bool = False
    """It could not be tried here."""
    missed: bool = False
    """Nothing was broken: the command was done before."""


def kind_of(seed: int, at: int, only: tuple[str, ...]) -> str:
    """Kinds come in rounds, so that few faults are of many kinds too."""
    names = [name for name in KINDS if not only or name in only]
    deck = [name for name in names for _ in range(KINDS[name].share)]
    shuffled = random.Random(f"{seed} kinds")
    order = names[:]
    shuffled.shuffle(order)
    shuffled.shuffle(deck)
    deck = [*order, *deck]
    return deck[at % len(deck)] if at < len(deck) else random.Random(f"{seed} {at} kind").choice(deck)


def run_faults(
    case: Case,
    folder: Path,
    seed: int,
    numbers: list[int],
    only: tuple[str, ...] = (),
    lanes: int = 2,
    until: float | None = None,
) -> Iterator[Outcome]:
    """Runs these faults, some at a time; what they come to, as they end.

    Args:
        until: by the monotonic clock, after which none is begun.
    """
    read, write = os.pipe()
    pids = []
    for lane in range(lanes):
        pid = os.fork()
        if pid == 0:
            os.close(read)
            _lane(case, folder / f"lane-{lane}", seed, numbers[lane::lanes], only, until, write)
            os._exit(0)
        pids.append(pid)
    os.close(write)
    try:
        with os.fdopen(read) as lines:
            for line in lines:
                yield Outcome(**json.loads(line))
    finally:
        for pid in pids:
            os.waitpid(pid, 0)


def _lane(
    case: Case, folder: Path, seed: int, numbers: list[int], only: tuple[str, ...], until: float | None, write: int
) -> None:
    """One lane's life: its faults, one after another; each is tried in this very process, which only forks and looks."""
    servers: list[Server] = []

    def server() -> Server:
        if not servers:
            servers.append(Server(folder / "postgres"))
        return servers[0]

    try:
        for at in numbers:
            if until is not None and time.monotonic() > until:
                return
            outcome = _try(case, folder / str(at), seed, at, only, server)
            os.write(write, (json.dumps(asdict(outcome)) + "\n").encode())
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    finally:
        for each in servers:
            each.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _try(case: Case, folder: Path, seed: int, at: int, only: tuple[str, ...], server: Callable[[], Server]) -> Outcome:
    kind = kind_of(seed, at, only)
    folder.mkdir(parents=True)
    world = World(case, folder, random.Random(f"{seed} {at}"), server)
    begin, skipped, missed = time.monotonic(), False, False
    try:
        survived, said = True, KINDS[kind].fault(world)
    except KeyboardInterrupt:
        raise
    except Skipped as why:
        survived, skipped, said = True, True, f"skipped: {why}"
    except Missed as what:
        survived, missed, said = True, True, f"missed: {what}"
    except BaseException as error:
        survived, said = False, f"{type(error).__name__}: {error}"[-4000:]
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(at, kind, survived, said, time.monotonic() - begin, skipped, missed)


def quiet() -> None:
    """Children may write to pipes that nobody reads any more."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
