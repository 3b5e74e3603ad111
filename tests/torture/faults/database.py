"""PostgreSQL dies, its backends die, and connections to it are cut in the middle of a transaction."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

from tests.torture.case import add_labels, run_index
from tests.torture.children import DONE, Child, done
from tests.torture.proxy import Proxy
from tests.torture.world import World, in_words, told

LABELS = tuple(f"said before {number}" for number in range(3))


def postmaster(world: World) -> str:
    """kill -9 of the server while the indexer writes; it is started again, then the same command."""
    server = world.server()
    settings = world.shared()
    seconds = world.rng.uniform(0, world.case.seconds)
    child = Child(partial(run_index, world.case.config, settings))
    time.sleep(seconds)
    server.kill()
    ended = child.wait()
    in_words(ended)
    server.start()
    world.survived(settings)
    done_before = ended.status == DONE
    return told(
        f"PostgreSQL killed after {seconds:.2f} s, the indexer {'was done' if done_before else 'said so'}",
        not done_before,
    )


def restarted(world: World) -> str:
    """The same between two commands: what was acknowledged before is there after."""
    server = world.server()
    settings = world.shared()
    in_words(Child(partial(run_index, world.case.first, settings)).wait())
    done(lambda: add_labels(settings, LABELS))
    server.kill()
    server.start()
    world.survived(settings, LABELS)
    return "PostgreSQL killed right behind a commit"


def backends(world: World) -> str:
    """kill -9 of one process that serves a connection: the server throws all of them out and recovers."""
    server = world.server()
    settings = world.shared()
    seconds = world.rng.uniform(0.1, world.case.seconds)
    child = Child(partial(run_index, world.case.config, settings))
    time.sleep(seconds)
    hit = server.backends()
    for pid in hit[:1]:
        os.kill(pid, signal.SIGKILL)
    in_words(child.wait())
    server.start()
    world.survived(settings)
    return told(f"{'a backend' if hit else 'nothing'} killed after {seconds:.2f} s", bool(hit))


def connection_cut(world: World) -> str:
    """Connections break off after some bytes, in whatever they were in; sometimes the answer to COMMIT is what gets lost."""
    server, rng = world.server(), world.rng
    direct = world.shared(server.database())
    proxy = Proxy(server.port, rng, rng.randrange(1, 6), rng.choice((2_000, 10_000, 60_000)))
    name = direct.database_url.rsplit("/", 1)[1]
    through = world.shared(f"postgresql+psycopg://postgres@127.0.0.1:{proxy.port}/{name}")
    try:
        n_calls = 0
        while True:
            ended = Child(partial(run_index, world.case.config, through)).wait()
            in_words(ended)
            n_calls += 1
            if ended.status == DONE:
                break
            assert n_calls <= proxy.cuts + 1, f"the command does not get on: {ended.said[-1000:]}"
    finally:
        proxy.close()
    world.survived(direct)
    return told(f"{proxy.made} connections cut, {n_calls} calls", proxy.made > 0)
