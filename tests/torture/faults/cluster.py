"""`index --engine ray`: something that belongs to the cluster on this machine is killed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from tests.indexer.ray_chaos import one_round
from tests.torture.case import in_words_of_the_command
from tests.torture.world import Skipped, World, told

SHARDS = 4
"""Killed behind so many at most; Ray starts slowly, and a kill that comes too late tries nothing."""


def killed(victim: str) -> Callable[[World], str]:
    """kill -9 of a worker, which the command survives by itself, or of what makes it end with a sentence."""

    def fault(world: World) -> str:
        if importlib.util.find_spec("ray") is None:
            raise Skipped("Ray is not installed: pip install 'scopebase[ray]'")
        settings, labels = world.either()
        n = world.rng.randrange(SHARDS)
        options = in_words_of_the_command(world.case.config, settings)[3:]
        hit, again, words = one_round(settings, options, victim, n, world.rng)
        assert again <= (1 if victim == "worker" else 2), f"{again} shards were done again"
        assert "Traceback" not in words, words
        world.survived(settings, labels)
        said = f"{victim} {'killed' if hit else 'not reached'} after {n} shards, {again} done again. {words}"
        return told(said.strip(), hit)

    return fault
