"""`index --workers 2`: one of its two processes is killed."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from functools import partial

import psutil
import torch

from indexer import run as running
from indexer.config import IndexConfig
from schema.settings import Settings
from scopebase.cli.workers import helpers
from tests.indexer.ray_chaos import progress
from tests.torture.case import in_words_of_the_command
from tests.torture.children import DONE, Child
from tests.torture.world import World, in_words, told

PATIENCE = 120.0
"""Seconds until a helper has loaded its libraries and holds a shard, on a busy machine."""


def with_a_helper(config: IndexConfig, settings: Settings) -> None:
    """`index --workers 2`; this process, which has its libraries already, waits for the other, or it would have no work left."""
    with helpers(1, in_words_of_the_command(config, settings)):
        torch.set_num_threads(1)
        _await(settings, 0, os.getpid())
        running.index(config, settings)


def killed(world: World) -> str:
    """kill -9 of the helper, whose work the command does then; or of the command, while whose helper goes on it is given again."""
    settings, labels = world.either()
    n, seconds = world.rng.randrange(3), world.rng.uniform(0, 0.3)
    which = world.rng.choice(("helper", "command"))
    command = Child(partial(with_a_helper, world.case.config, settings))
    helper = _await(settings, n, command.pid)
    time.sleep(seconds)
    if helper:
        with suppress(ProcessLookupError):
            os.kill(command.pid if which == "command" else helper, signal.SIGKILL)
    ended = command.wait()
    in_words(ended)
    assert which == "command" or ended.status == DONE, f"the command ended with {ended.status}: {ended.said[-2000:]}"
    world.again(settings)
    _gone(helper)
    world.survived(settings, labels)
    said = f"{which} killed {seconds:.2f} s after {n} shards{'' if helper else ' (not reached)'}"
    return told(said, bool(helper))


def _await(settings: Settings, n: int, command: int) -> int:
    """The helper, once it holds a shard and n are committed; 0 where the command ends before."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and psutil.Process(command).status() != psutil.STATUS_ZOMBIE:
        done, held = progress(settings)
        others = [pid for pid in held if pid != command]
        if done >= n and others:
            return others[0]
        time.sleep(0.003)
    return 0


def _gone(pid: int) -> None:
    """Waits for the end of a process that is nobody's child any more."""
    with suppress(psutil.NoSuchProcess):
        if pid:
            psutil.Process(pid).wait(PATIENCE)
