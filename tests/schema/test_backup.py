"""What is backed up comes back, into either kind of database; half a backup or half a restore is never taken for a whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, select

from api.services.labels.book import create, get
from api.services.library import Library
from api.services.removing import a_dataset, do
from indexer.run import index
from schema import backup as backing
from schema.backup import back_up, restore
from schema.database import Database, downgrade
from schema.errors import HomeError, InputError, WorkFailed
from schema.home import Home, open_home
from schema.settings import Settings
from schema.tables import Run
from schema.upkeep import maintain
from schema.verify import verify
from schema.wire.labels import NewLabel
from tests.indexer.test_run import config, everything

NAMES = ("problems", "songs", "tales")


@pytest.fixture
def home(tmp_path: Path, indexed: Settings) -> Iterator[Home]:
    shutil.copytree(indexed.home, tmp_path / "home")
    opened = open_home(Settings.read(tmp_path / "home", {}))
    yield opened
    opened.close()


def rows(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row as the model reads it."""
    from schema.tables import Base

    with database.reading() as session:
        return {
            name: [dict(row) for row in session.execute(select(table).order_by(*table.primary_key.columns)).mappings()]
            for name, table in Base.metadata.tables.items()
        }


def test_a_home_comes_back_whatever_its_database(home: Home, tmp_path: Path, database_url: str) -> None:
    """SQLite -> either kind -> SQLite."""
    label = create(Library(home), NewLabel(feature="tiny-qwen3/1-tiny/3", text="rhymes — 韻"), "ann")
    made = back_up(home, tmp_path / "one")
    assert made.rows["runs"] == 3
    other = Settings.read(tmp_path / "other", {"SCOPEBASE_DATABASE_URL": database_url})
    restore(tmp_path / "one", other)
    assert everything(other) == everything(home.settings)
    second = open_home(other)
    assert rows(second.database) == rows(home.database)
    assert get(Library(second), label.id).text == "rhymes — 韻"
    assert verify(second, deep=True).findings == []
    back_up(second, tmp_path / "two")
    second.close()
    third = Settings.read(tmp_path / "third", {})
    restore(tmp_path / "two", third)
    with open_home(third).database.reading():
        assert rows(open_home(third).database) == rows(home.database)


def test_numbers_that_were_given_do_not_come_back(
    home: Home, tmp_path: Path, database_url: str, index_args: dict[str, Any], data_dir: Path
) -> None:
    """The newest run was removed before the backup: what is indexed after the restore gets a new number."""
    do(home, a_dataset("tales"), "ann")
    back_up(home, tmp_path / "backup")
    other = Settings.read(tmp_path / "other", {"SCOPEBASE_DATABASE_URL": database_url})
    restore(tmp_path / "backup", other)
    index(config(index_args, data_dir, names=NAMES, layers="all"), other)
    opened = open_home(other)
    with opened.database.reading() as session:
        assert sorted(session.scalars(select(Run.id))) == [1, 2, 4]
    assert verify(opened, deep=True).findings == []
    opened.close()


def test_a_backup_of_an_older_schema_is_brought_up_to_date(home: Home, tmp_path: Path) -> None:
    downgrade(home.database, "0002")
    old = Home(home.settings, home.database, home.store)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(backing, "_removals", lambda _home: 0)  # that table is not there yet
    try:
        made = back_up(old, tmp_path / "backup")
    finally:
        monkey.undo()
    assert made.revision == "0002"
    other = Settings.read(tmp_path / "other", {})
    restore(tmp_path / "backup", other)
    opened = open_home(other)
    assert inspect(opened.database.engine).has_table("removals")
    assert verify(opened).findings == []
    opened.close()


def test_what_maintenance_takes_away_meanwhile_is_copied_anew(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = backing._fetch, []

    def fetch(source: Any, path: str, to: Path) -> str:
        if "tokens.lance/data" in path and not seen:
            seen.append(path)
            snapshot = home.store.latest("tokens")
            snapshot.delete("key = -5")
            snapshot.optimize.compact_files()
            maintain(home.store, "tokens", lambda: True)
        return real(source, path, to)

    monkeypatch.setattr(backing, "_fetch", fetch)
    back_up(home, tmp_path / "backup")
    assert seen
    other = Settings.read(tmp_path / "other", {})
    restore(tmp_path / "backup", other)
    assert everything(other) == everything(home.settings)


def test_a_removal_meanwhile_begins_it_again(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = backing._copy_table, []

    def copy(given: Home, table: str, part: Path) -> dict[str, str]:
        if table == "forward" and not seen:
            seen.append(table)
            do(home, a_dataset("tales"), "ann")
        return real(given, table, part)

    monkeypatch.setattr(backing, "_copy_table", copy)
    assert back_up(home, tmp_path / "backup").rows["runs"] == 2
    other = Settings.read(tmp_path / "other", {})
    restore(tmp_path / "backup", other)
    assert verify(open_home(other), deep=True).findings == []


def test_a_backup_that_died_is_none(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backing, "_fetch", full)
    with pytest.raises(WorkFailed, match="full"):
        back_up(home, tmp_path / "backup")
    assert not list(tmp_path.glob("backup*"))


def test_a_restore_that_died_is_begun_again(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(home, tmp_path / "backup")
    other = Settings.read(tmp_path / "other", {})

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    for place in ("_put", "_set_sequences"):
        with monkeypatch.context() as patch:
            patch.setattr(backing, place, dies)
            with pytest.raises(KeyboardInterrupt):
                restore(tmp_path / "backup", other)
    restore(tmp_path / "backup", other)
    assert everything(other) == everything(home.settings)
    assert verify(open_home(other)).findings == []


def test_a_file_that_was_cut_off_before_it_was_backed_up_is_said(home: Home, tmp_path: Path) -> None:
    """Its hash is right: a full disk had cut it off in the store."""
    back_up(home, tmp_path / "backup")
    file = next((tmp_path / "backup" / "store" / "forward.lance" / "_versions").glob("*.manifest"))
    file.write_bytes(file.read_bytes()[:-7])
    listed = tmp_path / "backup" / "backup.json"
    told = json.loads(listed.read_text())
    told["files"][str(file.relative_to(tmp_path / "backup"))] = hashlib.sha256(file.read_bytes()).hexdigest()
    listed.write_text(json.dumps(told))
    fresh = Settings.read(tmp_path / "fresh", {})
    with pytest.raises(InputError, match=r"manifest is damaged or gone; take another backup"):
        restore(tmp_path / "backup", fresh)
    assert not fresh.home.exists()


def test_damage_and_places_that_are_taken_are_said(home: Home, tmp_path: Path) -> None:
    back_up(home, tmp_path / "backup")
    with pytest.raises(InputError, match="is there already"):
        back_up(home, tmp_path / "backup")
    with pytest.raises(HomeError, match="there is a home at"):
        restore(tmp_path / "backup", home.settings)
    fresh = Settings.read(tmp_path / "fresh", {})
    with pytest.raises(InputError, match="is no whole backup"):
        restore(tmp_path, fresh)
    file = next((tmp_path / "backup" / "store" / "forward.lance" / "data").iterdir())
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="is damaged or gone"):
        restore(tmp_path / "backup", fresh)
    file.write_bytes(whole)
    said = tmp_path / "backup" / "backup.json"
    said.write_text(json.dumps({**json.loads(said.read_text()), "revision": "9999"}))
    with pytest.raises(InputError, match="made by a newer Scopebase"):
        restore(tmp_path / "backup", fresh)
    assert not fresh.home.exists()
