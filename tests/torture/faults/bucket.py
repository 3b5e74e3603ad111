"""The store is in a bucket whose server answers badly; the indexer goes on, or ends with a sentence and goes on when asked again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from schema.settings import Settings
from tests.objects import QUICK, Bucket, serving, weather
from tests.torture.case import run_index
from tests.torture.children import REFUSED, Child, Ended
from tests.torture.faults.indexer import killing
from tests.torture.world import World, in_words

FORCED = 0.65
"""Of the events on a disk, so many happen in a bucket too, where nothing is forced onto a disk."""
CALLS = 4
"""So often the command is given while the weather lasts."""


def in_weather(world: World) -> str:
    """Errors, lost, cut, partial and slow answers to a share of all requests; in half of the rounds kill -9 at an event too."""
    share = world.rng.choice((0.02, 0.05, 0.1, 0.2))
    at = world.rng.randrange(int(world.case.events * FORCED)) if world.rng.random() < 0.5 else None
    with serving(world.folder / "bucket") as bucket, _reached(bucket):
        settings = Settings.read(world.folder / "home", {"SCOPEBASE_STORE_URL": bucket.url("store")})
        bucket.fail(*weather(world.rng.randrange(1 << 30), share))
        killed, refused = _called(world, settings, at)
        disturbed = bucket.counts()["faults"]
        bucket.fail()
        world.survived(settings)
    assert disturbed, "no request was disturbed"
    death = "" if at is None else f", killed at event {at}{'' if killed else ' (not reached)'}"
    return f"{disturbed} requests disturbed ({share:.0%}){death}, refused {refused} times"


def _called(world: World, settings: Settings, at: int | None) -> tuple[bool, int]:
    """(whether it was killed, how often it ended with a sentence) until it went through or was called often enough."""
    killed, refused = False, 0
    for _ in range(CALLS):
        work = run_index if at is None or killed else partial(killing, at=at)
        ended = Child(partial(work, world.case.config, settings)).wait()
        _only_the_weather(ended)
        killed, refused = killed or ended.killed, refused + (ended.status == REFUSED)
        if not ended.killed and ended.status != REFUSED:
            break
    return killed, refused


def _only_the_weather(ended: Ended) -> None:
    """What passes is told as work that failed, and not as something that somebody must change.

    It is not always told as a bucket out of reach: half of a small file, sent as if it were all, looks like a damaged one.
    """
    in_words(ended)
    assert ended.status != REFUSED or ended.said.startswith(("Unreachable: ", "WorkFailed: ")), ended.said


@contextmanager
def _reached(bucket: Bucket) -> Iterator[None]:
    """The lane's processes reach the bucket, and give up soon."""
    before = dict(os.environ)
    os.environ |= {**bucket.environ, "SCOPEBASE_STORE_OPTIONS": QUICK}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
