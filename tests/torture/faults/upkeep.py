"""Removal, backup and restore are killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

from api.services.removing import a_dataset, do
from schema.backup import back_up, restore
from schema.errors import NotFound
from schema.home import open_home
from schema.removals import trim
from schema.settings import Settings
from schema.verify import verify
from tests.torture.case import check, copy_home, digest
from tests.torture.children import Child, done
from tests.torture.events import Events
from tests.torture.world import World, in_words

REMOVED = "songs"


def _dying(at: int | None) -> Events:
    events = Events(at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    events.watch()
    return events


def _removed(settings: Settings, at: int | None) -> str:
    home = open_home(settings)
    events = _dying(at)
    try:
        do(home, a_dataset(REMOVED), "ann")
    except NotFound:
        trim(home)  # the call before had done so much
    return str(events.n)


def removal_killed(world: World) -> str:
    """kill -9 while a dataset is removed; the same again, and nothing of it is left; indexed anew it is what it was."""
    settings = copy_home(world.case.begun, world.folder / "home")
    n = int(done(partial(_removed, copy_home(world.case.begun, world.folder / "counting"), None)))
    at = world.rng.randrange(n)
    in_words(Child(partial(_removed, settings, at)).wait())
    done(partial(_removed, settings, None))
    assert done(partial(_left, settings)) == "0 "
    world.again(settings)
    check(settings, world.case.reference, tuple(world.case.labels))
    return f"removal killed at event {at} of {n}"


def _left(settings: Settings) -> str:
    """Rows of `forward`, and what verification finds."""
    home = open_home(settings)
    n = home.store.latest("forward").count_rows("key >= 0")
    return f"{n} {'; '.join(each.problem for each in verify(home, deep=True).findings)}"


def _backed_up(settings: Settings, folder: Path, at: int | None) -> str:
    home = open_home(settings)
    events = _dying(at)
    back_up(home, folder)
    return str(events.n)


def _restored(folder: Path, settings: Settings, at: int | None) -> str:
    events = _dying(at)
    restore(folder, settings)
    return str(events.n)


def backup_killed(world: World) -> str:
    """kill -9 while a backup is made, and while it is brought back: half of either is never taken for a whole."""
    settings = world.begun()
    before = done(lambda: repr(digest(settings)))
    n = int(done(partial(_backed_up, settings, world.folder / "counting", None)))
    at = world.rng.randrange(n)
    folder = world.folder / "backup"
    in_words(Child(partial(_backed_up, settings, folder, at)).wait())
    assert not folder.exists() or (folder / "backup.json").exists()
    if not folder.exists():
        done(partial(_backed_up, settings, folder, None))
    n = int(done(partial(_restored, folder, Settings.read(world.folder / "counted", {}), None)))
    after = world.rng.randrange(n)
    other = Settings.read(world.folder / "other", {})
    in_words(Child(partial(_restored, folder, other, after)).wait())
    if (other.home / "store").exists() and not (other.home / "store" / "half-restored").exists():
        shutil.rmtree(other.home)  # it was killed behind the end
    done(partial(_restored, folder, other, None))
    assert done(lambda: repr(digest(other))) == before
    world.again(other)
    check(other, world.case.reference, tuple(world.case.labels))
    return f"backup killed at event {at}, its restore at event {after} of {n}"
