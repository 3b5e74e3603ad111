from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from schema.errors import HomeError
from schema.home import check_writable, find_home, make_home, open_home
from schema.settings import Settings
from schema.tables import Setting


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(tmp_path / "home", {})


def with_rows(settings: Settings) -> None:
    """A home whose store holds something."""
    from tests.schema.test_publish import land

    home = make_home(settings)
    land(home.store, 0, 2)
    home.close()


def test_a_home_is_made_once_and_opened_again(settings: Settings) -> None:
    assert find_home(settings) is None
    first = make_home(settings)
    again = make_home(settings)
    assert first.store.identity() == again.store.identity() is not None
    opened = open_home(settings)
    with opened.database.reading() as session:
        assert session.get_one(Setting, "store_id").value == opened.store.identity()


def test_no_home_is_one_sentence(settings: Settings) -> None:
    with pytest.raises(HomeError, match="there is no Scopebase home at .*'scopebase index' makes one"):
        open_home(settings)
    assert not settings.home.exists()


def test_a_lost_database_is_reported_and_not_replaced(settings: Settings) -> None:
    with_rows(settings)
    os.remove(settings.home / "scopebase.db")
    for call in (open_home, make_home):
        with pytest.raises(HomeError, match="its database .* is gone; restore"):
            call(settings)
    assert not (settings.home / "scopebase.db").exists()


def test_a_store_of_another_database_is_refused(settings: Settings, tmp_path: Path) -> None:
    with_rows(settings)
    other = Settings.read(tmp_path / "other", {})
    with_rows(other)
    shutil.rmtree(settings.home / "store")
    shutil.copytree(other.home / "store", settings.home / "store")
    with pytest.raises(HomeError, match="belongs to another database"):
        open_home(settings)


def test_a_lost_table_is_reported_once_there_are_runs(indexed: Settings, tmp_path: Path) -> None:
    copy = Settings.read(tmp_path / "copy", {})
    shutil.copytree(indexed.home, copy.home)
    shutil.rmtree(copy.home / "store" / "postings.lance")
    with pytest.raises(HomeError, match=r"has lost its table 'postings', but the database lists 3 runs"):
        open_home(copy)


def test_a_home_of_a_newer_layout_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with_rows(settings)
    monkeypatch.setattr("schema.store.FORMAT", "0")
    with pytest.raises(HomeError, match="has layout '1', this Scopebase reads '0'"):
        open_home(settings)


def test_a_home_under_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(HomeError, match="is a file"):
        check_writable(Settings.read(tmp_path / "file" / "home", {}))


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    """A directory that cannot be written, not even by root."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        return folder
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere and nothing can be mounted here")
    return folder


@pytest.fixture
def freeze(read_only: Path):  # type: ignore[no-untyped-def]
    def now() -> None:
        if os.geteuid() == 0:
            subprocess.run(["mount", "-o", "remount,ro", str(read_only)], check=True)
        else:
            for path in [read_only, *read_only.rglob("*")]:
                path.chmod(0o555 if path.is_dir() else 0o444)

    yield now
    if os.geteuid() == 0:
        subprocess.run(["umount", str(read_only)], check=True)
    else:
        for path in [read_only, *read_only.rglob("*")]:
            path.chmod(0o755)


def test_a_read_only_home_is_refused_for_writing_and_answers_questions(
    read_only: Path, freeze, indexed: Settings
) -> None:  # type: ignore[no-untyped-def]
    from api.services.library import Library
    from api.services.questions.overlap import overlap

    settings = Settings.read(read_only / "home", {})
    shutil.copytree(indexed.home, settings.home)
    freeze()
    with pytest.raises(
        HomeError, match=r"cannot be written \(Read-only file system\)|cannot be written \(Permission denied\)"
    ):
        check_writable(settings)
    home = open_home(settings)
    assert overlap(Library(home), "tiny-qwen3/1-tiny", ["problems", "songs"]).overlap[0][0] == 1.0
    home.close()


def test_a_reader_who_may_not_write_sees_what_the_writer_has_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.read(tmp_path / "home", {})
    writer = make_home(settings)
    with writer.database.writing() as session:
        session.add(Setting(name="fresh", value="1"))
    assert settings.database_file is not None
    assert settings.database_file.with_name("scopebase.db-wal").stat().st_size > 0
    may = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not Path(path).is_relative_to(settings.home) and may(path, mode)
    )
    reader = open_home(settings)
    with reader.database.reading() as session:
        assert session.get_one(Setting, "fresh").value == "1"
    reader.close()
    writer.close()


def test_settings_come_from_the_environment() -> None:
    environ = {
        "SCOPEBASE_HOME": "/x",
        "SCOPEBASE_DATABASE_URL": "postgres://u@h/d",
        "SCOPEBASE_STORE_URL": "s3://bucket/scopebase",
    }
    settings = Settings.read(None, environ)
    assert settings.home == Path("/x")
    assert settings.database_url == "postgresql+psycopg://u@h/d"
    assert settings.database_file is None
    assert settings.store_folder is None
    assert Settings.read("/y", environ).home == Path("/y")
    assert Settings.read(None, {}).database_file == Path("scopebase-data/scopebase.db")
