"""A home: the database and the activation store that belong together."""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import func, select

from schema.database import Database, check_revision, upgrade
from schema.errors import HomeError
from schema.layout import TABLES, directions_table
from schema.ledger import Ledger
from schema.publish import storage_faults
from schema.settings import Settings
from schema.store import Store
from schema.tables import Model, Run, Setting

_STORE_ID = "store_id"


@dataclass
class Home:
    """Both stores, checked against each other."""

    settings: Settings
    database: Database
    store: Store

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.database)

    def ensure_table(self, name: str) -> None:
        """Makes a table that not every home has, such as the directions of one width."""
        if not self.store.has(name):
            with storage_faults(self.store):
                self.store.create(self.store.identity() or "", [name])

    def tables(self) -> list[str]:
        """The store's tables: those that every home has, directions of each width, and logits and scores where there are some."""
        with self.database.reading() as session:
            widths = session.scalars(select(Model.d_model).distinct().order_by(Model.d_model))
            named = [*TABLES, *(directions_table(width) for width in widths)]
        return [*named, *(name for name in ("logits", "scores") if self.store.has(name))]

    def close(self) -> None:
        self.database.close()
        self.store.refresh()


def open_home(settings: Settings) -> Home:
    """The home that is there.

    Raises:
        HomeError: there is none, it needs an upgrade, a newer Scopebase made it, or its two stores do not belong together.
    """
    home = find_home(settings)
    if home is None:
        raise HomeError(
            f"there is no Scopebase home at {settings.home}; 'scopebase index' makes one, --home or SCOPEBASE_HOME names another"
        )
    return home


def find_home(settings: Settings) -> Home | None:
    """The home if there is one; nothing is written.

    Raises:
        HomeError: as `open_home`, but for a home that is not there.
    """
    store = Store(settings.store_url)
    file = settings.database_file
    if file is not None and not file.exists():
        _refuse_orphan(store, settings)
        return None
    database = open_database(settings)
    state = check_revision(database)
    if state == "empty":
        _refuse_orphan(store, settings)
        return None
    if state == "older":
        raise HomeError(f"the database of {settings.home} has an older schema; upgrade it with 'scopebase db upgrade'")
    home = Home(settings, database, store)
    _check_pair(home)
    return home


def open_database(settings: Settings) -> Database:
    """The database as far as this user may use it: one that cannot be written is read."""
    file = settings.database_file
    frozen = file is not None and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))
    return Database(settings.database_url, read_only=frozen)


def make_home(settings: Settings) -> Home:
    """The home, made or completed where it is missing.

    Raises:
        HomeError: as `open_home`, or the place cannot be written.
    """
    check_writable(settings)
    home = find_home(settings)
    if home is None:
        try:
            settings.home.mkdir(parents=True, exist_ok=True)
            if settings.database_file is not None:
                settings.database_file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HomeError(
                f"the home {settings.home} cannot be made: {error.strerror}; choose another with --home"
            ) from error
        database = Database(settings.database_url)
        upgrade(database)
        home = Home(settings, database, Store(settings.store_url))
    with home.database.writing(alone=True) as session:
        known = session.get(Setting, _STORE_ID)
        if known is None:
            known = Setting(name=_STORE_ID, value=uuid.uuid4().hex)
            session.add(known)
    with storage_faults(home.store):
        home.store.create(known.value)
    return home


def check_writable(settings: Settings) -> None:
    """Raises HomeError where a home cannot be written, before any work is done; Unreachable where a bucket does not answer."""
    file = settings.database_file
    if settings.store_folder is None:
        Store(settings.store_url).bucket.check_writable()
    for folder in {folder for folder in (file and file.parent, settings.store_folder) if folder is not None}:
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            raise HomeError(f"the home {folder} cannot be made: {there} is a file; choose another with --home")
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise HomeError(
                f"the home {folder} cannot be written ({error.strerror}); choose another with --home"
            ) from error
    if file is not None and file.exists() and not os.access(file, os.W_OK):
        raise HomeError(f"the database {file} is read-only; make it writable, or choose another home with --home")


def _refuse_orphan(store: Store, settings: Settings) -> None:
    """A store whose database is gone: its rows mean nothing without the names, and must not be mixed with new ones."""
    if not store.lacking(["samples"]) and store.identity() is not None and _holds_rows(store):
        raise HomeError(
            f"the activation store {store.url} is there, but its database {_shown(settings)} is gone; "
            "restore the database from a backup, or move the store away and index again"
        )


def _check_pair(home: Home) -> None:
    with home.database.reading() as session:
        known = session.get(Setting, _STORE_ID)
        n_runs = session.scalar(select(func.count()).select_from(Run)) or 0
    missing = home.store.lacking(TABLES)
    found = None if "samples" in missing else home.store.identity()
    if known is not None and found is not None and found != known.value:
        raise HomeError(
            f"the activation store {home.store.url} belongs to another database than {_shown(home.settings)}; "
            "point SCOPEBASE_STORE_URL or SCOPEBASE_DATABASE_URL at its partner"
        )
    if n_runs and missing:
        raise HomeError(
            f"the activation store {home.store.url} has lost its table {missing[0]!r}, but the database lists {n_runs} runs; "
            "restore the store from a backup, or move the whole home away and index again"
        )


def _holds_rows(store: Store) -> bool:
    """More than the fence row anywhere."""
    return any(store.has(name) and store.latest(name).count_rows() > 1 for name in TABLES)


def _shown(settings: Settings) -> str:
    file = settings.database_file
    return str(file) if file is not None else settings.database_url.rsplit("@", 1)[-1]


def folder_size(folder: Path) -> int:
    """Bytes of everything under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
