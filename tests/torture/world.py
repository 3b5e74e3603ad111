"""What a fault is given: a folder of its own, the case, chance, and how its survival is checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from indexer.config import IndexConfig
from schema.settings import Settings
from tests.torture.case import Case, check, copy_home, run_index
from tests.torture.children import DONE, REFUSED, Child, Ended
from tests.torture.postgres import Server


class Skipped(Exception):
    """What would be tried cannot be, here; the sentence says why."""


class Missed(Exception):
    """Everything is as it should be, but nothing was broken: the command was done before. The sentence says what was tried."""


@dataclass(frozen=True)
class World:
    """One fault's surroundings."""

    case: Case
    folder: Path
    rng: random.Random
    server: Callable[[], Server]
    """A PostgreSQL server of this lane, which nobody else uses now."""

    def empty(self) -> Settings:
        """A home that is not there yet."""
        return Settings.read(self.folder / "home", {})

    def begun(self) -> Settings:
        """A home in which one dataset is indexed, with labels."""
        return copy_home(self.case.begun, self.folder / "home")

    def either(self) -> tuple[Settings, tuple[str, ...]]:
        """One or the other, and the labels that are in it."""
        return (self.empty(), ()) if self.rng.random() < 0.5 else (self.begun(), tuple(self.case.labels))

    def shared(self, url: str | None = None) -> Settings:
        """A home that is not there yet, in an empty database of the server's."""
        return Settings.read(self.folder / "home", {"SCOPEBASE_DATABASE_URL": url or self.server().database()})

    def instant(self, settings: Settings) -> int:
        """One of the events of the command in this home."""
        return self.rng.randrange(self.case.events_begun if settings.home.exists() else self.case.events)

    def again(self, settings: Settings, config: IndexConfig | None = None) -> Ended:
        """The same command once more, undisturbed; it must come to its end."""
        ended = Child(partial(run_index, config or self.case.config, settings)).wait()
        assert ended.status == DONE, f"the same command again ended with {ended.status}: {ended.said[-2000:]}"
        return ended

    def survived(self, settings: Settings, labels: tuple[str, ...] = ()) -> None:
        """The same command again, then everything as if nothing had happened."""
        self.again(settings)
        check(settings, self.case.reference, labels)


def told(said: str, hit: bool) -> str:
    """What a fault says of itself.

    Raises:
        Missed: nothing was hit.
    """
    if not hit:
        raise Missed(said)
    return said


def in_words(ended: Ended) -> None:
    """A disturbed command is killed, done, or ends with one sentence; never with anything else."""
    assert ended.killed or ended.status in (DONE, REFUSED), ended.said[-3000:]
    assert "\n" not in ended.said.strip() or ended.status != REFUSED, ended.said
