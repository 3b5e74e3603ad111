"""The SQL database of a home: engines for both dialects, and the migrations that make and check it."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Select, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import NullPool

from schema import deadline
from schema.errors import Conflict, HomeError, InputError, WorkFailed

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parents[1] / "migrations"
BUSY_SECONDS = 60
ALONE_SECONDS = 60
_ALONE = text(
    "SELECT pg_advisory_xact_lock(7166501), set_config('idle_in_transaction_session_timeout', :milliseconds, true)"
)
"""Whoever is alone and is not heard of any more, because its machine is suspended or cut off, is thrown out by the server."""


def make_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine with what each dialect needs to be durable and shared by several processes.

    SQLite: write-ahead log (readers and one writer at a time), a full fsync at each commit, foreign keys on, and transactions that
    take the write lock at once, so that a read followed by a write never fails half way.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        try:
            return create_engine(url, pool_pre_ping=True)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise InputError(
                f"no driver for {parsed.drivername!r} ({error}); pip install 'scopebase[postgres]'"
            ) from None
    if read_only:
        file = Path(parsed.database or "").absolute()
        return create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(_frozen(file), uri=True, check_same_thread=False),
            poolclass=NullPool,
        )
    engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _tune_sqlite)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(_begin(connection)))
    return engine


def _frozen(file: Path) -> str:
    """A database that this user cannot write. Nothing can be made beside it; a log that a writer keeps there is read along."""
    log = file.with_name(file.name + "-wal")
    kept = log.exists() and log.stat().st_size
    return f"{file.as_uri()}?mode=ro{'' if kept else '&immutable=1'}"


def _begin(connection: Any) -> str:
    return "BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE"


def _tune_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


class Database:
    """Sessions over one engine. Reads and writes are separate because SQLite takes its lock by intent."""

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = url
        self.read_only = read_only
        self.engine = make_engine(url, read_only=read_only)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        self._reads = self.engine.execution_options(reads=True)
        self._read = sessionmaker(self._reads, expire_on_commit=False)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one consistent state and changes nothing."""
        with _in_words(self.url), self._read() as session:
            yield session

    def scalar(self, query: Select[Any]) -> Any:
        """One value, without a session around it: for what every request asks."""
        with _in_words(self.url), self._reads.connect() as connection:
            return connection.scalar(query)

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on any error.

        Args:
            alone: wait for whoever else is alone; for what is looked up and then made, such as names and counts.
        """
        with _in_words(self.url), self._write.begin() as session:
            if alone:
                _wait_alone(session.connection())
            yield session
            deadline.check()  # whoever asked was told that it failed: then it must not happen

    def close(self) -> None:
        self.engine.dispose()


def _wait_alone(connection: Connection) -> None:
    """Until the transaction ends, nobody else gets past here. On SQLite a writer is alone anyhow."""
    if connection.dialect.name == "postgresql":
        connection.execute(_ALONE, {"milliseconds": str(1000 * ALONE_SECONDS)})


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Driver errors that a person can mend, as one sentence."""
    try:
        yield
    except StaleDataError as error:
        raise Conflict("somebody else changed it at the same moment; read it again") from error
    except DBAPIError as error:
        if (
            isinstance(error, OperationalError) or error.connection_invalidated
        ):  # thrown out for being silent, for instance
            name = make_url(url).render_as_string(hide_password=True)
            reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
            raise WorkFailed(
                f"the database {name} failed: {reason}; mend that and run the same command again"
            ) from error
        if "NUL (0x00)" in str(error.orig) or r"\u0000 cannot be" in str(error.orig):
            raise InputError("a text holds a NUL character, which PostgreSQL does not take; leave it out") from error
        if "not a database" in str(error.orig) or "malformed" in str(error.orig):
            raise HomeError(
                f"{make_url(url).database} is no SQLite database, or a damaged one; restore it from a backup"
            ) from error
        raise


def migration_config(url: str) -> Config:
    """Alembic's configuration without an ini file."""
    from alembic.config import Config

    config = Config(stdout=sys.stdout)  # its own default is what standard output was when Alembic was imported
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


def revisions() -> list[str]:
    """The schema's revisions, oldest first: the numbers that the migrations' files begin with.

    Who opens a home asks for them, and importing Alembic takes longer than all the rest of that.
    """
    return sorted(path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def newest_revision() -> str:
    return revisions()[-1]


def known_revision(revision: str) -> bool:
    """Whether this Scopebase has a schema of that name."""
    return revision in revisions()


def current_revision(database: Database) -> str | None:
    """The schema revision that the database is at; None for an empty one."""
    with _in_words(database.url), database.engine.execution_options(reads=True).connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found


def check_revision(database: Database) -> str:
    """`empty`, `current` or `older`.

    Raises:
        HomeError: a newer Scopebase made it.
    """
    revision = current_revision(database)
    if revision is None:
        return "empty"
    if revision not in revisions():
        raise HomeError(
            f"this home was made by a newer Scopebase (schema {revision}, this one knows up to {newest_revision()}); "
            "upgrade with: pip install -U scopebase"
        )
    return "current" if revision == newest_revision() else "older"


def upgrade(database: Database, revision: str = "head") -> None:
    """Brings the database to a revision, in one transaction; who comes at the same time finds it done."""
    from alembic import command

    config = migration_config(database.url)
    with _in_words(database.url), database.engine.begin() as connection:
        _wait_alone(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def downgrade(database: Database, revision: str) -> None:
    from alembic import command

    config = migration_config(database.url)
    with _in_words(database.url), database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
