"""Migrations and engines, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, text

from schema.database import (
    Database,
    check_revision,
    current_revision,
    downgrade,
    migration_config,
    newest_revision,
    upgrade,
)
from schema.errors import HomeError, WorkFailed
from schema.tables import Base


def test_up_and_down_and_up_again(database_url: str) -> None:
    database = Database(database_url)
    assert check_revision(database) == "empty"
    upgrade(database)
    assert current_revision(database) == newest_revision()
    assert check_revision(database) == "current"
    tables = set(inspect(database.engine).get_table_names())
    assert set(Base.metadata.tables) <= tables
    downgrade(database, "base")
    assert set(inspect(database.engine).get_table_names()) <= {"alembic_version"}
    upgrade(database)
    upgrade(database)  # a second time does nothing
    assert set(Base.metadata.tables) <= set(inspect(database.engine).get_table_names())
    database.close()


def test_the_migrations_make_what_the_models_say(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    config = migration_config(database_url)
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.check(config)  # raises where autogenerate would find something
    database.close()


def test_a_newer_database_is_refused(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with database.writing() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(HomeError, match=r"made by a newer Scopebase \(schema 9999.*pip install -U scopebase"):
        check_revision(database)
    database.close()


def test_a_transaction_is_whole_or_nothing(database_url: str) -> None:
    database = Database(database_url)
    upgrade(database)
    with pytest.raises(RuntimeError), database.writing() as session:
        session.execute(text("INSERT INTO settings VALUES ('a', 'b')"))
        raise RuntimeError
    with database.reading() as session:
        assert session.scalar(text("SELECT count(*) FROM settings")) == 0
    database.close()


def test_sqlite_is_durable_and_enforces_its_keys(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    upgrade(database)
    with database.writing() as session:
        pragmas = {
            name: session.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


def test_a_database_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "scopebase.db"
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(HomeError, match="is no SQLite database"):
        check_revision(Database(f"sqlite:///{file}"))


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql+psycopg://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(WorkFailed, match="the database postgresql") as caught:
        check_revision(database)
    assert "secret" not in str(caught.value)


def test_migrations_import_nothing_of_ours() -> None:
    """A migration describes the past; the models go on changing."""
    for file in Path("migrations/versions").glob("*.py"):
        assert not re.search(r"^(?:from|import) (?:schema|api|indexer|scopebase)", file.read_text(), re.MULTILINE), file
