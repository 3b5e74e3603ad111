"""The indexer is killed, overtaken, stopped, or works beside another."""

from __future__ import annotations

import os
import signal
import time
from functools import partial

import torch

from indexer import run as running
from indexer.config import IndexConfig
from schema import ledger, removals
from schema.settings import Settings
from tests.torture.case import run_index
from tests.torture.children import DONE, Child
from tests.torture.events import Events
from tests.torture.world import Missed, World, in_words, told

SHORT_LEASE = 1.0
"""Seconds, where somebody waits for a lease to lapse."""


def killing(config: IndexConfig, settings: Settings, at: int) -> None:
    """The command, until it kills itself at an event."""
    torch.set_num_threads(1)
    Events(at, lambda: os.kill(os.getpid(), signal.SIGKILL)).watch()
    running.index(config, settings)


def at_an_event(world: World) -> str:
    """kill -9 at the entry to or return from something that touches a store; in half of the rounds a second time."""
    settings, labels = world.either()
    return _killed_at_events(world, settings, labels)


def at_an_event_on_postgres(world: World) -> str:
    """The same over PostgreSQL."""
    return _killed_at_events(world, world.shared(), ())


def _killed_at_events(world: World, settings: Settings, labels: tuple[str, ...]) -> str:
    first = world.instant(settings)
    again = [world.rng.randrange(world.case.events // 2)] if world.rng.random() < 0.5 else []
    hits, hit = [], False
    for at in (first, *again):
        ended = Child(partial(killing, world.case.config, settings, at)).wait()
        in_words(ended)
        hits.append(f"{at}{'' if ended.killed else ' (not reached)'}")
        hit = hit or ended.killed
    world.survived(settings, labels)
    return told(f"killed at events {', '.join(hits)}", hit)


def at_a_time(world: World) -> str:
    """kill -9 at a random instant, in the midst of whatever goes on then."""
    settings, labels = world.either()
    seconds = world.rng.uniform(0, world.case.seconds)
    child = Child(partial(run_index, world.case.config, settings))
    time.sleep(seconds)
    child.kill()
    ended = child.wait()
    in_words(ended)
    world.survived(settings, labels)
    return told(f"killed after {seconds:.2f} s", ended.killed)


def two_together(world: World) -> str:
    """Two indexers on one run; one of them is killed at an event, the other goes on."""
    on_postgres = world.rng.random() < 0.5
    settings, labels = (world.shared(), ()) if on_postgres else world.either()
    at = world.instant(settings) // 2  # the other does about half of the work
    one = Child(partial(killing, world.case.config, settings, at))
    time.sleep(world.rng.uniform(0, 0.3))
    other = Child(partial(run_index, world.case.config, settings))
    first, ended = one.wait(), other.wait()
    in_words(first)
    assert ended.status == DONE, f"the other indexer ended with {ended.status}: {ended.said[-2000:]}"
    world.survived(settings, labels)
    where = "PostgreSQL" if on_postgres else "SQLite"
    return told(f"two indexers on {where}, one killed at event {at}", first.killed)


def stopping(config: IndexConfig, settings: Settings, at: int) -> None:
    """The command, which is stopped at an event, outside of transactions, as a machine that is suspended is."""
    _short_leases()
    torch.set_num_threads(1)
    Events(at, lambda: os.kill(os.getpid(), signal.SIGSTOP), outside=True).watch()
    running.index(config, settings)


def _patiently(config: IndexConfig, settings: Settings) -> None:
    _short_leases()
    run_index(config, settings)


def _short_leases() -> None:
    ledger.LEASE_SECONDS = removals.LEASE_SECONDS = SHORT_LEASE


def stopped_past_its_lease(world: World) -> str:
    """SIGSTOP of a lease holder; another takes its shard over and finishes; then the first wakes up and must not be heard."""
    settings = world.shared() if world.rng.random() < 0.5 else world.empty()
    at = world.rng.randrange(int(world.case.events_outside * 0.9))
    sleeper = Child(partial(stopping, world.case.config, settings, at))
    if not sleeper.stopped():
        in_words(sleeper.wait())
        world.survived(settings)
        raise Missed(f"event {at} was not reached")
    other = Child(partial(_patiently, world.case.config, settings))
    finished = other.wait()
    assert finished.status == DONE, f"the other indexer ended with {finished.status}: {finished.said[-2000:]}"
    sleeper.kill(signal.SIGCONT)
    in_words(sleeper.wait())
    world.survived(settings)
    return f"stopped at event {at}, past its lease"
