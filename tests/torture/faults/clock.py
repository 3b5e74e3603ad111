"""Clocks that jump by an hour, and two machines whose clocks differ by one."""

from __future__ import annotations

import time
from functools import partial

import torch

from indexer import run as running
from indexer.config import IndexConfig
from schema.settings import Settings
from tests.torture.case import run_index
from tests.torture.children import DONE, Child
from tests.torture.events import Events
from tests.torture.world import World, in_words

HOUR = 3600.0


class Clock:
    """This process's wall clock, which somebody sets; what passes without a wall clock goes on."""

    def __init__(self) -> None:
        self.ahead, self._time = 0.0, time.time
        time.time = lambda: self._time() + self.ahead

    def jump(self, seconds: float) -> None:
        self.ahead += seconds


def jumping(config: IndexConfig, settings: Settings, at: int, seconds: float) -> None:
    """The command, in the midst of which the clock is set."""
    torch.set_num_threads(1)
    clock = Clock()
    Events(at, lambda: clock.jump(seconds)).watch()
    running.index(config, settings)


def jumps(world: World) -> str:
    """The clock jumps by an hour, back or forth."""
    settings, labels = world.either()
    at, seconds = world.instant(settings), world.rng.choice((-HOUR, HOUR))
    ended = Child(partial(jumping, world.case.config, settings, at, seconds)).wait()
    assert ended.status == DONE, f"the command ended with {ended.status}: {ended.said[-2000:]}"
    world.survived(settings, labels)
    return f"the clock jumps by {seconds:+.0f} s at event {at}"


def differ(world: World) -> str:
    """Two indexers on one home, the clock of one an hour ahead: it takes every lease for lapsed, and nothing is there twice."""
    settings, labels = world.either()
    ahead = world.rng.choice((-HOUR, HOUR))
    one = Child(partial(run_index, world.case.config, settings))
    time.sleep(world.rng.uniform(0, world.case.seconds / 2))
    other = Child(partial(jumping, world.case.config, settings, 0, ahead))
    for ended in (one.wait(), other.wait()):
        in_words(ended)
    world.survived(settings, labels)
    return f"two indexers, one clock {ahead:+.0f} s"
